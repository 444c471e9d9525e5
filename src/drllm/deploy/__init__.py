"""A policy in use: export for other tools, a look at one prompt's route, serving on vLLM.

`export.py`, over `formats/`, and `inspection.py` are the interface of the first two, `serving/` of the third.
"""
