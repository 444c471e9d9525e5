"""Methods that bound others: blind lists and skips, which look at no prompt, and the oracle, which is told every answer.

Each is found through its entry point in `research/pyproject.toml`, as a method of any other package is.
"""
