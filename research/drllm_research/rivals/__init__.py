"""Methods of other papers, for comparison: ShortGPT, TALE, PoLar, MindSkip and FlexiDepth.

Each is found through its entry point in `research/pyproject.toml`, as a method of any other package is.
"""
