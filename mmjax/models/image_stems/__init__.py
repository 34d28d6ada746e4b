"""What turns pixels into the first tokens of an image tower."""
