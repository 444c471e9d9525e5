"""Write the README's tables from docs/results.md and what is stored in `results/`.

python tools/write_readme.py
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from drllm.core.text import with_interval
from drllm_research.comparison.stored import Results
from drllm_research.comparison.table import compared, read
from drllm_research.healed.page import SETTING

ROOT = Path(__file__).parents[1]
BLOCKS = {name: re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL) for name in ("results", "instead")}
SMALLS = Results(ROOT / "results" / "policies-smollm2-135m-q4")
SHORTER = "1111111111111011111111001110"  # for letters, by the larger model's codebook of 0.9
LETTERS = ("arc_easy", "arc_challenge", "openbookqa", "commonsenseqa")
IN_DOMAIN = "smollm2-135m-q4, 30 blocks: in domain: ARC and OpenBookQA together"
SMALL, LARGER = "SmolLM2-135M", "Qwen2.5-Coder-1.5B"
HEALED = ROOT / "results" / "healed-27-smollm2-135m-q4"
BESIDE = Results(ROOT / "results" / "healed-smollm2-135m-q4")
# A row of the page of healed routes -> the README's words for it.
INSTEAD = {
    "skip 0.9": "27 of 30 blocks, not healed",
    "healed 0.9": "the same, healed",
    "labels, skip 0.9": "the same, LoRA trained on right answers",
    "healed 0.8": "24 of 30 blocks, healed",
    "labels, every block": "every block, LoRA trained on right answers",
    "solved questions shown": "{shots} solved questions in the prompt",
    "weights as q4_0": "every block, weights in Q4_0 (4 bits)",
}
# (the README's words, the section of docs/results.md, the row's first cell there): accuracy and seconds of one policy.
POLICIES = (
    (f"{SMALL}: one route for all prompts (`static`); ARC, OpenBookQA", IN_DOMAIN, "static"),
    (
        f"{SMALL}: a few routes and a selector (`codebook`); six tasks",
        "smollm2-135m-q4, 30 blocks: mixed traffic: five kinds of prompts in six tasks, unlabelled",
        "codebook",
    ),
    (
        f"{LARGER}: `codebook` of 0.9 of the blocks; seven tasks, two of sums",
        "qwen2.5-coder-1.5b-q4, 28 blocks: mixed traffic: prompts of seven tasks, letters, log-likelihoods and numbers, unlabelled",
        "codebook@0.9",
    ),
)
COLUMNS = ("vs base, points", "passes", "prompt seconds, ratio (tune)")
HEAD = (
    "| policy | questions (base right) | right answers less the base's, points | blocks run | seconds ¹ | MB in bfloat16 |",
    "|---|---|---|---|---|---|",
)
UNCLOCKED = {"labels, skip 0.9": "as healed", "weights as q4_0": "not measured"}
WEIGHTS = {SMALL: (28_312_896, 3_540_096), LARGER: (233_375_232, 46_797_824)}  # outside the blocks, and of a block
TITLES = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "openbookqa": "OpenBookQA", "piqa": "PIQA", "boolq": "BoolQ"}
TITLES |= {"commonsenseqa": "CommonsenseQA"}
CAVEAT = (
    "Questions that chose nothing; 95 % intervals; the base has {sizes} MB. Row 1 ([examples](examples/README.md)): exported, in float32 "
    "({whole} MB); promised with 95 % confidence: less than {promised} points lost; on three new tasks it lost {elsewhere}. Rows 2 to 4"
    ": in drllm, whose work costs two blocks' time. Row 2 gains on {second} alone; row 3 on {third}, where always *yes* "
    "gains as much; row 4 counts letters in any form: {asked} stand bare, as asked, of the base's {asked_base}. ¹ Of a short prompt on one "
    "thread, with choosing, over the base's."
)


def healed_row() -> str:
    """The policy in `examples/`, on calibrate questions of the tasks it was healed on."""
    rows = {row["method"]: row for row in read_json(HEALED / "evaluated.json")["calibrate"]["rows"] if row["task"] == "all"}
    pooled, base = rows["healed"], rows["base"]
    clock = read_json(HEALED / "heal.json")["clock"]["prompt"]
    words = f"{SMALL}: a shorter route with an adapter (`healed`); ARC-Easy, OpenBookQA"
    points = with_interval(*(pooled[name] for name in ("difference", "difference_low", "difference_high")))
    asked = f"{base['n']:,} ({100 * base['accuracy']:.0f} %)"
    seconds = f"{clock['ratio']:.2f} ({clock['ratio_low']:.2f} to {clock['ratio_high']:.2f})"
    passes = pooled["mean_passes"]
    return f"| {words} | {asked} | {points} | {passes:.2f} of {pooled['n_layers']} | {seconds} | {megabytes(SMALL, int(passes))} |"


def elsewhere() -> str:
    """What it loses on each task that it was not healed on, in points, the least first."""
    rows = [row for row in read_json(HEALED / "evaluated.json")["elsewhere"]["rows"] if row["method"] == "healed" and row["task"] != "all"]
    lost = sorted(-100 * row["difference"] for row in rows)
    return ", ".join(f"{points:.1f}" for points in lost)


def megabytes(model: str, n_blocks: int, n_bytes: int = 2) -> str:
    """Of the weights that are stored, in bfloat16 or by the bytes of each."""
    rest, block = WEIGHTS[model]
    return f"{n_bytes * (rest + n_blocks * block) / 1e6:,.0f}"


def instead() -> str:
    """What a team would do instead, on the same questions, as Markdown."""
    about = BESIDE.told(SETTING, "test")
    right, rows = {name: of for (name, _), of in BESIDE.of(SETTING, "test").items()}, {row["name"]: row for row in about["rows"]}
    lines = [
        "| SmolLM2-135M | ARC-Easy, OpenBookQA (learned from), points | ARC-Challenge, TruthfulQA | seconds ¹ | MB of the file ² |",
        "|---|---|---|---|---|",
    ]
    for name, words in INSTEAD.items():
        less = [compared(read(right[name], of), read(right["base"], of)) for of in about["tasks"].values()]
        clock, said = rows[name]["clock"], UNCLOCKED.get(name, "the base's")
        seconds = f"{clock['ratio']:.2f} ({clock['low']:.2f} to {clock['high']:.2f})" if clock else said
        cells = [words.format(**about), *map(str, less), seconds, f"{rows[name]['mb']['stored']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def bare_letters() -> list[str]:
    """Of the answers to letters along the base and along the route that the larger model's codebook takes for them, the share as asked."""
    rows = pd.read_parquet(ROOT / "results" / "healed-25-qwen2.5-coder-1.5b-q4" / "verdicts")
    rows = rows[rows.task.isin(LETTERS) & rows.reward.eq("letter") & rows.split.isin(("test", "calibrate"))]
    return [f"{rows[rows.route == route].form.eq('asked').mean():.0%}".replace("%", " %") for route in (SHORTER, "1" * len(SHORTER))]


def read_json(path: Path) -> Any:
    """What a file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


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
    lines = [*HEAD, healed_row()]
    for words, section, name in POLICIES:
        row = row_of(results, section, name)
        points, passes, seconds = (row[column] for column in COLUMNS)
        if not all((points, passes, seconds)):
            raise SystemExit(f"docs/results.md lacks accuracy or seconds of {name!r} under {section!r}: name another row in POLICIES")
        n_blocks = re.findall(r"(\d+) blocks", section)[0]
        stored = megabytes(words.partition(":")[0], int(float(passes) if name == "static" else float(n_blocks)))
        n = int(re.findall(r"(\d+) questions:", results.partition(f"\n## {section}\n")[2])[0])
        asked = f"{n:,} ({float(row_of(results, section, 'base')['accuracy, %'].split()[0]):.0f} %)"
        lines.append(f"| {words} | {asked} | {points} | {passes} of {n_blocks} | {seconds} | {stored} |")
    promise = read_json(ROOT / "examples" / "smollm2-135m-27-of-30" / "drllm_config.json")["promise"]
    sizes = " and ".join((megabytes(SMALL, 30), megabytes(LARGER, 28)))
    as_asked, base_as_asked = bare_letters()
    caveat = CAVEAT.format(
        asked=as_asked,
        asked_base=base_as_asked,
        second=where_the_gain_is(SMALLS, "in-domain", "static"),
        third=where_the_gain_is(SMALLS, "mixed", "codebook"),
        sizes=sizes,
        elsewhere=elsewhere(),
        promised=f"{100 * promise['epsilon']:g}",
        whole=megabytes(SMALL, 27, 4),
    )
    return "\n".join([*lines, "", textwrap.fill(caveat, 138, break_long_words=False, break_on_hyphens=False), ""])


def written(readme: str, results: str) -> str:
    """The README with its tables."""
    readme = BLOCKS["instead"].sub(lambda _: instead(), readme)
    return BLOCKS["results"].sub(lambda _: table(results), readme)


def main() -> None:
    """Write it."""
    readme, results = ROOT / "README.md", ROOT / "docs" / "results.md"
    readme.write_text(written(readme.read_text(encoding="utf-8"), results.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
