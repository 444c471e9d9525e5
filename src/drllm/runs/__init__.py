"""The run folder: every file in it, how it is written, read, merged and counted. Nobody else knows a file name of it.

No torch; imports `core`, `tasks`, `stats` and `policies`.
"""
