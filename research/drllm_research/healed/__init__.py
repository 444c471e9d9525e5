"""Healed routes beside what a team would do instead: `python -m drllm_research.healed`, whose page is healed.md of docs/."""
