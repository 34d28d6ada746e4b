"""A run's folder and what is written into it: configuration, metrics, times, unreadable examples, rewinds."""
