"""The scan of a model: every span of blocks run again, or skipped, measured by racing on questions that no later stage reads.

Imports `searching` and what lies below it; reads fit questions only, unless asked for others.
"""
