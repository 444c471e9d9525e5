"""The routed model: loading, wrapping, blocks, cache, generation. Whatever reaches into transformers stands here.

Imports `core`, `policies` and, for the card of a saved policy, `runs`.
"""
