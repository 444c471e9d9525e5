"""What everything else stands on: routes, errors, configurations, files, names, progress.

Imports no torch and nothing else of drllm, but for old module names that somebody asks for (`moved.py`); any other folder may import it.
"""
