"""What trackers share: their interface, and how a run opens those that its experiment names."""
