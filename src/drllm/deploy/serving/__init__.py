"""Serving on vLLM: what is served (`spec`), how the server starts (`launch`), what runs inside it (`engine`).

`launch.launch` and `spec.ServeSpec` are the interface; requests and answers are described in docs/serve.md. The engine imports `spec`,
never `launch`.
"""
