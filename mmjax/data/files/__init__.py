"""What files of each format hold, and where in them it is: bytes in, plain values out."""
