"""What files hold: tar archives, tables, caption files, records; how their parts become examples."""
