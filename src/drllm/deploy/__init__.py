"""A policy in use: export to a checkpoint, a look at one prompt, serving on vLLM.

Imports `model`, `policies` and what lies below.
"""
