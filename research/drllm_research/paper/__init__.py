"""The tables and figures of arXiv 2510.12773 on a model of one's own: `drllm reproduce`.

`command.py` is the command, found through its entry point.
"""
