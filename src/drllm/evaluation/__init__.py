"""Held-out evaluation: the same questions for every method, paired statistics."""
