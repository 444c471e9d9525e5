"""Every method beside every other on the same questions, and the pages made of their verdicts.

`python -m drllm_research.comparison` runs it; `make table-methods` writes `docs/results.md` and `results/policies-*/tables.md`.
"""
