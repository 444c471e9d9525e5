"""Studies of one question each, whose figures stand in `docs/`; each is run by `python -m drllm_research.studies.NAME`.

Nothing imports them.
"""
