"""The `drllm` command: one file a command. The only folder that reads arguments and writes to the terminal.

Nothing below imports it: whatever a command does, a caller of the library can do.
"""
