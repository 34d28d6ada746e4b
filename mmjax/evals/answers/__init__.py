"""Answers to questions: how they are compared."""
