"""The formats of an export, one a file: what each writes, and what it refuses.

`folder.py` is the folder that all of them write; `drllm.model.copies` compares what was written with the routed model.
"""
