"""What several transforms share: the interfaces of the stages, and boxes."""
