"""What runs inside a vLLM server, which alone imports it; module names stand in the server's command line and in our entry points.

What vLLM does not document is used in `vllm_private` alone; `schedule` and `segments` are one step along several routes.
"""
