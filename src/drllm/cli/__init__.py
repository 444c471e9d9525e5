"""The `drllm` command: one file a command. The only folder that reads arguments and writes to the terminal."""
