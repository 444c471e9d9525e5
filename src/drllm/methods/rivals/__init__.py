"""Rivals that run parts of blocks: MindSkip and FlexiDepth, after their papers. Compared, never deployed.

Loaded only where one is asked for.
"""
