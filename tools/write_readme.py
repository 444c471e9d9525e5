"""Write the README's table of results and its picture from what is stored in `results/`.

python tools/write_readme.py
"""

from __future__ import annotations

import re
import shutil
import tempfile
import textwrap
from pathlib import Path

import pandas as pd

from drllm.reporting.chart import Chart
from drllm.reporting.drawing import write_charts
from drllm.reporting.scan import scan_parts
from drllm.runs.load import load_run
from drllm_research.comparison.stored import Results

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
SCAN = "scan-smollm2-135m-q4"
MIXED = (Results(ROOT / "results" / "policies-smollm2-135m-q4"), "mixed")
KINDS = (Results(ROOT / "results" / "policies-qwen2.5-coder-1.5b-q4"), "kinds")
MODEL, LARGER = "SmolLM2-135M", "Qwen2.5-Coder-1.5B"
# (the README's words, the first two cells of the row in docs/results.md's table "What holds")
POLICIES = (
    (
        "`codebook`: one of a few routes a prompt, five kinds of questions together",
        ("smollm2-135m-q4, mixed traffic (mixed)", "`codebook`"),
    ),
    (
        "`codebook --budget 0.9`: 0.9 of the blocks run; the tasks it learned from",
        ("smollm2-135m-q4, in domain (in-domain)", "`codebook@0.9`"),
    ),
    (
        "`routers --preset paper`: Dr.LLM's recipe; the tasks they learned from",
        ("smollm2-135m-q4, in domain (in-domain)", "`paper`"),
    ),
    (
        f"{LARGER}: `codebook --budget 0.9`; letters, likelihoods and numbers together",
        ("qwen2.5-coder-1.5b-q4, mixed traffic (kinds)", "`codebook@0.9`"),
    ),
)
# Settings in which nothing is seen to gain at no more passes: the words below say so.
NO_GAIN = tuple(f"qwen2.5-coder-1.5b-q4, {setting}" for setting in ("in domain (letters)", "mixed traffic (kinds)"))
TITLES = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "openbookqa": "OpenBookQA", "piqa": "PIQA", "boolq": "BoolQ"}
TITLES |= {"commonsenseqa": "CommonsenseQA", "arith-6": "arithmetic", "arith-8": "arithmetic"}
CAVEAT = (
    "{model} unless named; held-out questions, means over seeds ({larger}: {seeds}), paired 95 % intervals. The single route "
    "had the same data and budget. All of the first row's gain is {where}. On {larger} no gain is shown at no more passes; what it gains "
    "on the single route is {where_larger}. A gain where it was chosen is often gone elsewhere: so every policy stands beside the base, "
    "the best single route and its own routes dealt to "
    "others ([all tables; RUN, OUT, DATA, ROWS](docs/results.md#how-to-read-the-tables))."
)


def rows_of(page: str) -> dict[tuple[str, str], list[str]]:
    """Rows of every table of a page, by their first two cells."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row for row in rows if len(row) > 2}


def first_interval(cell: str) -> str:
    """The pooled difference of a cell that has two, and a word."""
    found = re.match(r"[-+\d.]+ \([-+\d.]+ to [-+\d.]+\)", cell)
    if found is None:
        raise SystemExit(f"docs/results.md has no difference in {cell!r}: generate it anew (make table-methods)")
    return found[0]


def command_of(results: str, setting: str) -> str:
    """The command that stands above the table of a setting, such as "smollm2-135m-q4, mixed traffic (mixed)", in docs/results.md."""
    model, name = setting.partition(",")[0], setting.rpartition("(")[2].rstrip(")")
    found = re.search(rf"`(python [^`]* run --model {re.escape(model)} [^`]*--settings {name} [^`]*)`", " ".join(results.split()))
    if found is None:
        raise SystemExit(f"docs/results.md has no command for {setting}: generate it anew (make table-methods)")
    return found[1]


def scan_command() -> str:
    """The command of the stored scan, which the list of results holds; how it was spread over processes is left out."""
    row = next(line for line in (ROOT / "results" / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{SCAN}`"))
    return re.sub(r" --executor \w+ --workers \d+", "", re.findall(r"`(drllm scan [^`]*)`", row)[0])


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
    rows = rows_of(results)
    lines = ["| policy | right answers against the base, points | against the best single route | the row's command |", "|---|---|---|---|"]
    before = ""
    for words, key in POLICIES:
        to_static = first_interval(rows[key][3]) if rows[key][3] else ""
        command = command_of(results, key[0])
        lines.append(f"| {words} | {first_interval(rows[key][2])} | {to_static} | {'the same' if command == before else f'`{command}`'} |")
        before = command
    scanned = next(row for (model, spans), row in rows.items() if SCAN in model and re.match(r"mean of \d+ winners", spans))
    words = "`drllm scan`: spans run twice or skipped, the winners on new questions"
    lines.append(f"| {words} | {first_interval(scanned[-1])} | | `{scan_command()}` |")
    larger = {"larger": LARGER, "where_larger": where_the_gain_is(*KINDS, "codebook@0.9", "static_tuned@0.9")}
    if not all("open" in rows[(setting, "`codebook_by_task`")][2] for setting in NO_GAIN):
        raise SystemExit("docs/results.md shows a gain, or a loss, at no more passes: say so in the README")
    n_seeds = len(tested(*KINDS, "codebook@0.9"))
    seeds = "one" if n_seeds == 1 else str(n_seeds)
    caveat = CAVEAT.format(model=MODEL, where=where_the_gain_is(*MIXED, "codebook"), seeds=seeds, **larger)
    return "\n".join([*lines, "", textwrap.fill(caveat, 138, break_long_words=False, break_on_hyphens=False), ""])


def written(readme: str, results: str) -> str:
    """The README with its table."""
    return BLOCK.sub(lambda _: table(results), readme)


def draw(target: Path) -> None:
    """The map of the spans that run once more."""
    run = load_run(ROOT / "results" / SCAN)
    if run.scan is None:
        raise SystemExit(f"results/{SCAN} holds no scan")
    chart = next(part for part in scan_parts(run.scan, run.map) if isinstance(part, Chart) and part.name == "scan_loop")
    with tempfile.TemporaryDirectory() as folder:
        write_charts([chart], Path(folder))
        shutil.copyfile(Path(folder) / "scan_loop.png", target)


def main() -> None:
    """Write both."""
    readme, results = ROOT / "README.md", ROOT / "docs" / "results.md"
    readme.write_text(written(readme.read_text(encoding="utf-8"), results.read_text(encoding="utf-8")), encoding="utf-8")
    draw(ROOT / "docs" / "map.png")


if __name__ == "__main__":
    main()
