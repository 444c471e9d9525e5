"""What an evaluation can compare: the base, saved policies of a run, and blind baselines of them. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.runs.layout import TAKEN, RunFolder

BASE = "base"
BASELINES = ("random", "shuffled")
DEFAULT_OWNER = "routers"


def owner_of(name: str) -> str:
    """The policy whose blind baseline this is; empty for anything else."""
    kind, _, owner = name.partition("-")
    return (owner or DEFAULT_OWNER) if kind in BASELINES else ""


def check_name(name: str) -> None:
    """Refuse a name that no policy of a run can have."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*", name):
        raise InputError(f"--name is {name!r}, expected a letter or digit, then also - _ . @ and +: it becomes a folder of the run")
    if name in (BASE, *TAKEN) or name.endswith(".json") or owner_of(name):
        what = "a blind baseline is called" if owner_of(name) else "the base or another folder of the run is called"
        raise InputError(f"--name is {name!r}, which is what {what}: give another")


def check_methods(methods: Sequence[str], out: Path, trainable: Sequence[str]) -> None:
    """Refuse names that are neither the base, nor a saved policy of the run or a `trainable` method, nor a blind baseline of one."""
    here = [path.name for path in RunFolder(out).policies()]
    for name in methods:
        if name == BASE or (owner_of(name) or name) in (*here, *trainable):
            continue  # one that was not trained yet is refused when it loads
        known = (BASE, *here, *(f"{baseline}-{policy}" for policy in here for baseline in BASELINES))
        hint = did_you_mean(name, (*known, *BASELINES, *trainable))
        raise InputError(f"unknown method {name!r}{hint}; {out} holds {', '.join(known)}")
