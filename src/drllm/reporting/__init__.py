"""The report of a run folder: tables, charts, one page, Markdown. No torch.

Reads `runs`; computes no verdict.
"""
