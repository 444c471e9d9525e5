"""Write the README's table of results from docs/results.md and what is stored in `results/`.

python tools/write_readme.py
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pandas as pd

from drllm_research.comparison.stored import Results

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
MIXED = (Results(ROOT / "results" / "policies-smollm2-135m-q4"), "mixed")
IN_DOMAIN = "smollm2-135m-q4, 30 blocks: in domain: ARC and OpenBookQA together"
SMALL, LARGER = "SmolLM2-135M", "Qwen2.5-Coder-1.5B"
# (the README's words, the section of docs/results.md, the row's first cell there): accuracy and seconds of one policy.
POLICIES = (
    (f"{SMALL}: one route for all prompts (`static`); ARC, OpenBookQA", IN_DOMAIN, "static"),
    (
        f"{SMALL}: a few routes and a selector (`codebook`); six tasks together",
        "smollm2-135m-q4, 30 blocks: mixed traffic: five kinds of prompts in six tasks, unlabelled",
        "codebook",
    ),
    (f"{SMALL}: Dr.LLM's recipe (`routers`, a small network a block); ARC, OpenBookQA", IN_DOMAIN, "routers, preset paper"),
    (
        f"{LARGER}: `codebook` of nine tenths of the blocks; letters, texts and numbers",
        "qwen2.5-coder-1.5b-q4, 28 blocks: mixed traffic: prompts of seven tasks, letters, log-likelihoods and numbers, unlabelled",
        "codebook@0.9",
    ),
)
COLUMNS = ("vs base, points", "vs base, mean over tasks", "passes", "prompt seconds, ratio (tune)")
HEAD = (
    "| policy | right answers against the base, points | the same, each task counting alike | blocks run | seconds |",
    "|---|---|---|---|---|",
)
TITLES = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "openbookqa": "OpenBookQA", "piqa": "PIQA", "boolq": "BoolQ"}
TITLES |= {"commonsenseqa": "CommonsenseQA"}
CAVEAT = (
    "Questions that chose nothing, paired 95 % intervals; first seed. Seconds: reading one short prompt, deciding included, on one "
    "processor thread; the base's are 1.00. All of the second row's gain is {where}. Size: only one route for all stores fewer weights; no "
    "table has size beside both yet, and none has a healed route. All rows, rivals, commands: [results](docs/results.md)."
)


def row_of(page: str, section: str, name: str) -> dict[str, str]:
    """The cells of a policy's row by the heads of its table, which stands under the heading `section`."""
    _, found, below = page.partition(f"\n## {section}\n")
    lines = [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    cells = next((row for row in rows if row[0] == name), None)
    if not found or cells is None:
        raise SystemExit(f"docs/results.md has no row {name!r} under {section!r}: generate it anew (make table-methods)")
    return dict(zip(rows[0], cells, strict=True))


def tested(results: Results, setting: str, method: str) -> list[pd.DataFrame]:
    """The test answers of a method, one table a seed."""
    return [pd.DataFrame(answers) for (name, _), answers in results.of(setting, "test").items() if name == method]


def where_the_gain_is(results: Results, setting: str, method: str, rival: str = "base") -> str:
    """The fewest tasks that together hold all that a method answers more than another, over its seeds, largest first."""
    other = tested(results, setting, rival)[0]
    right = sum(answers["correct"].astype(int) - other["correct"].astype(int) for answers in tested(results, setting, method))
    gained = right.groupby(other["task"]).sum().sort_values(ascending=False)
    n = int((gained.cumsum() < gained.sum()).sum()) + 1
    return " and ".join(dict.fromkeys(TITLES[str(task)] for task in gained.index[:n]))


def table(results: str) -> str:
    """The README's table, as Markdown."""
    lines = list(HEAD)
    for words, section, name in POLICIES:
        row = row_of(results, section, name)
        points, by_task, passes, seconds = (row[column] for column in COLUMNS)
        if not all((points, by_task, passes, seconds)):
            raise SystemExit(f"docs/results.md lacks accuracy or seconds of {name!r} under {section!r}: name another row in POLICIES")
        n_blocks = re.findall(r"(\d+) blocks", section)[0]
        lines.append(f"| {words} | {points} | {by_task} | {passes} of {n_blocks} | {seconds} |")
    caveat = CAVEAT.format(where=where_the_gain_is(*MIXED, "codebook"))
    return "\n".join([*lines, "", textwrap.fill(caveat, 138, break_long_words=False, break_on_hyphens=False), ""])


def written(readme: str, results: str) -> str:
    """The README with its table."""
    return BLOCK.sub(lambda _: table(results), readme)


def main() -> None:
    """Write it."""
    readme, results = ROOT / "README.md", ROOT / "docs" / "results.md"
    readme.write_text(written(readme.read_text(encoding="utf-8"), results.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
