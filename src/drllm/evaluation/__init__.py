"""Policies beside the base on held-out questions: comparison, promise, lm-evaluation-harness.

Imports `methods` and what lies below it; reads calibrate and test questions, which nothing below does.
"""
