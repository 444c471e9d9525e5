"""Paired differences, their intervals and tests, and the promise. Arrays of verdicts in, numbers out.

numpy and scipy only; imports nothing of drllm but `core`.
"""
