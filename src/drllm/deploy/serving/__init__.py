"""Serving on vLLM: what is served (`spec`), how the server starts (`launch`), what runs inside it (`engine`, which imports `spec` alone).

Requests and answers are described in docs/serve.md.
"""
