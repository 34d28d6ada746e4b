"""What the readers of benchmarks share; no plug-in."""
