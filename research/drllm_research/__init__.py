"""Research with drllm: what makes `docs/results.md`, the paper's tables on a model of one's own, and methods of other papers.

It imports drllm, never the other way, and is not shipped with it: `pip install -e research` in a checkout.
"""
