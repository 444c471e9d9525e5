"""`python -m drllm`, the same as the `drllm` command."""

import sys

from drllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
