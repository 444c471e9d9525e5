"""What runs inside a vLLM server: the plugin's entry points, models, worker and HTTP surface. vLLM alone imports these.

Their names are in the server's command line and in the package's entry points, so they stay. What vLLM does not document is used in
`vllm_private` alone; `gathering`, `schedule` and `segments` are one step along several routes.
"""
