"""What runs inside a vLLM server: the plugin's entry points, models, worker and HTTP surface. Imported by vLLM alone."""
