"""The search for good routes of each question: tree, edits, workers, the resumable run.

Imports `scoring` and what lies below it; writes records through `runs`.
"""
