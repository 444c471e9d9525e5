"""What everything else stands on: routes, errors, configurations, files, names, progress.

Imports no torch and nothing else of drllm; any other folder may import it.
"""
