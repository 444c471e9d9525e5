"""Verdicts of (question, route) pairs: log-likelihood of the choices, a generated letter, a boxed answer, or a number.

Used by the search, the methods and the evaluation, so that one verdict has one meaning everywhere. Imports `model`, `tasks` and below.
"""
