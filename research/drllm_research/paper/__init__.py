"""The tables and figures of arXiv 2510.12773 on a model of one's own: `drllm reproduce`, which is `command.py`."""
