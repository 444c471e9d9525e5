"""mergekit itself, in an environment of its own (`make mergekit-env`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PROGRAM = Path(os.environ.get("DRLLM_MERGEKIT") or Path(__file__).parents[2] / ".venv-mergekit") / "bin" / "mergekit-yaml"
IS_THERE = PROGRAM.is_file()


def merge(recipe: Path, out: Path) -> None:
    """`mergekit-yaml RECIPE OUT`, in a process without drllm."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(PROGRAM), str(recipe), str(out)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
