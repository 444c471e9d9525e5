"""A word has one meaning (docs/glossary.md): retired ones stand nowhere in the code, its help and messages, or the documentation.

Names that users typed or that stand in files stay; `KEPT` lists them with the reason. What is left is printed by word and file.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("src/**/*.py", "src/**/static/*.*", "tools/*.py", "tests/**/*.py", "docs/**/*.md", "benchmarks/*.py", "research/**/*.py")
TEXTS = [path for place in (*PLACES, "README.md", "Makefile") for path in sorted(ROOT.glob(place))]
READ = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in TEXTS}
# (how it is found, what it meant, what is said instead)
RETIRED = (
    (r"\bknobs?\b|knob(?=_)|(?<=_)knob", "a field of a configuration; the paper's p", "option; control"),
    (r"\bgate\b(?!s)|gate(?=_config)|GateConfig", "a statistical test", "guarantee, unless it is a small network in a block"),
    (r"(?<!functools)\.partial\b", "a file not yet whole", ".tmp"),
    (r"(?<![\w`\"'-])[Bb]ooks?\b(?![`\"'])|\b[Cc]ode books?\b", "a codebook", "codebook"),
    (r"\b(?:blind|random|shuffled) controls?\b|\b(?:by the|minus) control\b|\bown controls\b|\bControls:", "a rival", "baseline"),
)
# (file, text on the line, why it stays)
KEPT: tuple[tuple[str, str, str], ...] = (
    ("docs/decisions/2026-11-28-words.md", "", "what was said, and what is"),
    ("tests/docs/test_(words|user_pages).py", "", "the words themselves"),
    ("tests/research/test_reproduce.py", "knob.csv", "a picture's name in a run folder"),
    (".*", "knob.json", "the table of operating points in a run folder"),
    ("research/drllm_research/paper/figures.py", '"knob"', "a picture's name in a run folder: knob.png"),
    (".*(rivals|glossary).*", "gate", "a small network in a block"),
    ("docs/decisions/2026-11-26-every-method-on-tune.md", "`gate` section", "the section of a YAML file"),
    ("docs/decisions/.*", "--gate-", "flags of then"),
    ("docs/decisions/.*", "MkDocs", "a package's name"),
    ("src/drllm/core/files.py|tests/searching/test_search_faults.py", ".partial", "the suffix of every version, so that each removes it"),
    ("docs/decisions/2026-12-02-serving-before-text.md", "book", "arms in files of results"),
    ("benchmarks/serve.*|tests/benchmarks/test_timing.py", "book", "arms and keys in files of results, and the flag --book"),
)


def left(text: str, name: str, pattern: str) -> int:
    """How often a word stands on lines of a file that nothing excuses."""
    excused = [part for file, part, _ in KEPT if re.fullmatch(file, name)]
    return sum(len(re.findall(pattern, line)) for line in text.splitlines() if not any(part in line for part in excused))


@pytest.mark.parametrize(("pattern", "meaning", "instead"), RETIRED, ids=[row[2] for row in RETIRED])
def test_retired_words_are_gone(pattern, meaning, instead):
    counts = Counter({name: left(text, name, pattern) for name, text in READ.items()})
    found = ", ".join(f"{name} ({n})" for name, n in counts.most_common() if n)
    assert not found, f"for {meaning!r} say {instead!r}: {found}"


def test_every_exception_is_still_needed():
    idle = [(file, part) for file, part, _ in KEPT if not any(part in text for name, text in READ.items() if re.fullmatch(file, name))]
    assert not idle
