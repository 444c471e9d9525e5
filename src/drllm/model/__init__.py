"""The routed model: loading, wrapping, blocks, cache, generation. Whatever reaches into transformers stands here.

Imports `core` and `policies`.
"""
