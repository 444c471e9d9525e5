"""Writes docs/families.md, families by what each tool takes, from the lists that the tests hold; a test holds the page to them.

python tools/write_families.py
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import engines  # noqa: E402 - of the tests, beside which it looks for its own
import families  # noqa: E402
import standings  # noqa: E402
from drllm.deploy.formats.gguf_file import PERIODS, PLAIN  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
COLUMNS = (
    "families",
    "route, search, train, generate",
    "rewards of written answers",
    "heal",
    "`checkpoint`",
    "`peft`",
    "`gguf`",
    "serve",
)
YES, NO, SOME, UNTRIED, READ = "yes", "no", "some routes", "not tried", "read"
HEAD = """# Families and tools

Which decoder-only families of transformers work with which tool, from the lists that the tests hold. Each family is a tiny random model
there; the real models that ran stand in [limits](limits.md#what-has-run-where). Written by `python tools/write_families.py` from
`tests/support/families.py`, `standings.py` and `engines.py`.

- *Some routes*: others are refused in one line, since the format or the other tool cannot hold them ([export](export.md)).
- *Not tried*: no test. The tool runs what it made beside the model, and refuses what differs.
- *heal*: trained on Llama; in the other families with *yes* a trained adapter is merged and exported.
- *gguf*: for a base that is a GGUF file. *Read*: from llama.cpp's code, not run; SmolLM2 and Gemma 3 270M were run in llama.cpp.
- *serve*: `drllm serve` by route. One exported route runs in stock vLLM where vLLM takes the family.
- An ending names a configuration: `-sliding` has sliding windows, `-tied` one matrix for embedding and head.

"""
REFUSED = """
## Refused
These cannot be routed exactly, so every tool refuses them when the model is wrapped.

| why | families |
|---|---|
"""


def page() -> str:
    """The page as Markdown: families with the same standing share a row."""
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in families.ALL_FAMILIES:
        rows[cells(name)].append(name)
    order = sorted(rows, key=lambda found: (-sum(cell == YES for cell in found), sorted(rows[found])))
    table = [COLUMNS, ("---",) * len(COLUMNS), *((", ".join(sorted(rows[found])), *found) for found in order)]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, spec in families.ALL_REFUSED.items():
        reasons[spec.reason].append(name)
    refused = "".join(
        f"| {reason} | {', '.join(sorted(names))} |\n" for reason, names in sorted(reasons.items(), key=lambda one: -len(one[1]))
    )
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in table) + REFUSED + refused


def cells(name: str) -> tuple[str, ...]:
    """What each tool makes of one family, as in `COLUMNS`."""
    model_type = families.ALL_FAMILIES[name].model_type
    written = NO if name in standings.NOT_WRITTEN else YES
    heal = YES if name in standings.HEALED else NO if name in standings.NO_LINEAR_MAPS else UNTRIED
    checkpoint = SOME if name in standings.NOT_EVERY_CHECKPOINT else YES
    peft = NO if name in standings.LAYOUT | standings.TYPES - set(standings.SOME) else SOME if name in standings.LONGER else YES
    architecture = {"gemma3_text": "gemma3", "mistral": "llama"}.get(model_type, model_type.replace("_moe", "moe"))
    gguf = READ if architecture in PLAIN else SOME if architecture in PERIODS else NO
    serve = YES if model_type in engines.FAMILIES and not name.endswith("-sliding") else NO
    return YES, written, heal, checkpoint, peft, gguf, serve


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
