"""What an image tower has before its blocks, stems, and after them, attention pooling."""
