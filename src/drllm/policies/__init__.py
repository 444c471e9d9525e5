"""What decides a route: policies, how one is saved and loaded, and its card. Tensors, never a model.

Imports nothing of drllm but `core`; a policy is handed hidden states by `model`. The kinds of other packages are imported
through their entry points when a saved policy names one.
"""
