"""`mmjax data inspect` and `bench`: what a source holds, what training sees of it, and how fast."""
