"""Hard negative captions for data that has none: a table of them beside any source, and what writes such a table."""
