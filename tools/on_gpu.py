"""Runs a command where torch sees a GPU; where none is, says so in one line and ends well.

python tools/on_gpu.py "make test-gpu" pytest -m gpu
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch


def main(arguments: Sequence[str]) -> int:
    """Its exit status; 0 where there is no GPU: nothing failed, and the line says that nothing ran."""
    name, *command = arguments
    if not torch.cuda.is_available():
        sys.stdout.write(f"{name}: torch {torch.__version__} sees no GPU here, so nothing was run\n")
        return 0
    sys.stdout.write(f"{name}: {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    sys.stdout.flush()
    return subprocess.run(command, env=os.environ | {"DRLLM_TEST_DEVICE": "cuda"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
