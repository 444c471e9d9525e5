"""The parts of vLLM that drllm uses though they are not documented: each is there, and as `vllm_private` takes it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from drllm.deploy.serving.engine.vllm_private import SUPPORTED
from engines import PYTHON, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]
SUPPORT = Path(__file__).parents[1] / "support"


def changed(before: str = "") -> list[str]:
    """What `vllm_parts` says in the serving environment, after a line of Python."""
    code = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{before}\nimport json, vllm_parts; print(json.dumps(vllm_parts.changed()))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_each_private_part_is_there():
    lines = changed()
    assert not lines, f"vLLM changed what drllm was checked with on {SUPPORTED}: mend deploy/serving/engine/vllm_private.py\n" + "\n".join(
        lines
    )


def test_what_a_version_changes_is_named():
    """A method that is gone and a field of a step's metadata that is new."""
    gone = "from vllm.v1.worker.gpu_model_runner import GPUModelRunner; del GPUModelRunner._model_forward"
    assert "vllm.v1.worker.gpu_model_runner: GPUModelRunner._model_forward is gone" in changed(gone)
    new = (
        "import dataclasses, vllm.v1.attention.backend as b\n"
        "@dataclasses.dataclass\n"
        "class More(b.CommonAttentionMetadata):\n"
        "    depth: int = 0\n"
        "b.CommonAttentionMetadata = More"
    )
    assert changed(new) == ["CommonAttentionMetadata: depth is new, and StepAttention.of does not cut it"]
