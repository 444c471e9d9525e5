"""The tables and figures of Dr.LLM (arXiv 2510.12773), made again for any model: `drllm reproduce`."""
