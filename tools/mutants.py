"""Counts the mutants of the last `make test-mutants` by module, and names the survivors."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).resolve().parents[1]
KILLED, NOT_RUN = ("killed", "timeout", "segfault"), ("not checked",)
LEAST = 0.9


def counts() -> dict[str, dict[str, list[str]]]:
    """Names of mutants by module and by what became of them; modules of which nothing was tried are left out."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted((ROOT / "mutants").rglob("*.py.meta")):
        by_status = collections.defaultdict(list)
        for name, code in json.loads(path.read_text())["exit_code_by_key"].items():
            by_status[status_by_exit_code[code]].append(name)
        if by_status.keys() - set(NOT_RUN):
            found[path.relative_to(ROOT / "mutants" / "src" / "drllm").as_posix().removesuffix(".py.meta")] = dict(by_status)
    return found


def main() -> int:
    """Print the table and the survivors; 1 where a module lies below the limit."""
    short, survivors = [], []
    sys.stdout.write("| module | tried | killed | survived | no test | killed, % | not tried |\n|---|---|---|---|---|---|---|\n")
    for module, by_status in counts().items():
        killed = sum(len(by_status.get(status, ())) for status in KILLED)
        alive = [name for status, names in by_status.items() if status not in (*KILLED, *NOT_RUN) for name in names]
        n_untested, share = len(by_status.get("no tests", ())), killed / (killed + len(alive))
        n_left = sum(len(by_status.get(status, ())) for status in NOT_RUN)
        row = (f"`{module}`", killed + len(alive), killed, len(alive) - n_untested, n_untested, f"{100 * share:.1f}", n_left)
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
        short += [module] if share < LEAST else []
        survivors += alive
    for name in survivors:
        sys.stdout.write(f"survived: mutmut show {name}\n")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
