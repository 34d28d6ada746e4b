"""Compiled programs: what is in one, what it costs, on which chips, and what a trace of it shows."""
