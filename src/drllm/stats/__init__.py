"""Paired differences, their intervals and tests, and the guarantee. Arrays of verdicts in, numbers out.

numpy and scipy only; imports nothing of drllm but `core`.
"""
