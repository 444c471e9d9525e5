"""A policy in use: export to a checkpoint, a look at one prompt's route, serving on vLLM.

`export.py` and `inspection.py` are the interface of the first two, `serving/` of the third.
"""
