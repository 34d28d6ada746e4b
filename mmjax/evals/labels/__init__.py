"""Labels of sequences: how they are read and compared."""
