"""Evaluators, one benchmark family a file: each has a class ``Evaluator``."""
