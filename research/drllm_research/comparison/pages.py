"""The pages that `make table-methods` writes: docs/results.md, and for each model results/<its folder>/tables.md with every table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from drllm.core.text import with_interval
from drllm.reporting.drawing import write_charts
from drllm.runs.layout import RunFolder
from drllm.runs.scan_result import LEAD, RANDOM, WINNER, read_scan
from drllm_research.comparison.stored import Results
from drllm_research.comparison.table import ABOUT, COLUMNS, ROW, Contrast, Section, names, sections

SHORT = COLUMNS[:9]  # of docs/results.md; the others stand in tables.md
# What is asked of a policy: the column, and beside which row. `{}` is the policy, `{@}` its budget.
QUESTIONS = {
    "less the base": "base",
    "less the best single route with the same data": "static_tuned{@}",
    "less the best route of each task, told the task": "told{@}",
    "less its own routes dealt to other prompts of the task": "shuffled-{}",
    "less blind routes under the same selector": "random_{}",
}
TOLD = "static_tuned-per-task"
GAP = "gap to the oracle closed on tune, less what blind routes close, %"
SEEDS = "seeds"
SCANNED = ("model", "spans", "passes", "where they were chosen, points over the base", "on new questions, points over the base")
JUDGED = names("codebook codebook_by_task codebook_by_task_guarded polar routers paper")
JUDGED += names("codebook@0.9 codebook_guarded@0.9 codebook_by_task@0.9 routers@0.9")
SHOWN_BUDGET = "0.9"
WIDTH = 140  # of a line of text
TEMPLATE = Path(__file__).parent / "page.md"  # the words of docs/results.md


@dataclass(frozen=True)
class Stored:
    """Folders that the pages are made of: verdicts of policies, scans, and reports of reproductions."""

    models: Sequence[Results]
    scans: Sequence[Path] = ()
    papers: Sequence[Path] = ()


def write_pages(root: Path, stored: Stored, settings: Mapping[str, Any], told: Sequence[str]) -> None:
    """Both kinds of pages below `root`, the folder of the repository."""
    apart = [*told, *(name for name, setting in settings.items() if setting.policies)]
    found = {out: sections(out, settings, told) for out in stored.models}
    for out, of_model in found.items():
        charts = [section.frontier for section in of_model if section.frontier is not None]
        if charts:
            write_charts(charts, root / "results" / out.name / "frontier")
    texts = {root / "results" / out.name / "tables.md": "\n".join(tables(out, of_model)) + "\n" for out, of_model in found.items()}
    for path, text in (texts | {root / "docs" / "results.md": results(found, stored, apart)}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def results(found: Mapping[Results, Sequence[Section]], stored: Stored, apart: Sequence[str] = ()) -> str:
    """docs/results.md: what holds, what scans found, and the test tables, but for those of the settings `apart`."""
    return TEMPLATE.read_text(encoding="utf-8").format(
        tables=",\n  ".join(f"[{name_of(out)}](../results/{out.name}/tables.md)" for out in found),
        papers=";\n  ".join(f"[{page.parts[-3]}](../{'/'.join(page.parts[-4:])}) ({claims(page)})" for page in stored.papers),
        holding="\n".join(markdown(("model, questions", "policy", *QUESTIONS, GAP, SEEDS), holding(found))),
        less=figures(found),
        scans="\n".join(markdown(SCANNED, (row for folder in stored.scans for row in scanned(folder))))
        if stored.scans
        else "None is stored.",
        tests="\n\n".join(tested(out, section) for out, of_model in found.items() for section in of_model if is_shown(section, apart)),
    )


def is_shown(section: Section, apart: Sequence[str]) -> bool:
    """Whether docs/results.md has its table; those of one task or out of domain are in tables.md alone, what holds of them in both."""
    return section.split == "test" and section.setting not in apart


def is_elsewhere(row: str) -> bool:
    """Whether a row stands in tables.md alone.

    Those of a budget that docs/results.md shows in the picture alone; routes dealt to other prompts, which it judges under "What holds".
    """
    return row.partition("@")[2] not in ("", SHOWN_BUDGET) or row.startswith("shuffled-")


def tested(out: Results, section: Section) -> str:
    """A test section: its table of methods, but for those that run the base for every prompt, which are named."""
    here = [row for row in section.rows if not is_elsewhere(row[ROW])]
    named = ", ".join(f"`{row['method']}`" for row in here if row[ROW] in section.as_base)
    same = f" The base for every prompt, with every seed, so without a row: {named}." if named else ""
    rows = (row for row in here if row[ROW] not in section.as_base)
    table = "\n".join(markdown(SHORT, ([row[column] for column in SHORT] for row in rows)))
    asked = section.title.partition("(")[2].removesuffix(")")
    chart = section.frontier
    drawn = [f"![{chart.title}](../results/{out.name}/frontier/{chart.name}.png)", fill(chart.caption, WIDTH)] if chart is not None else []
    return "\n\n".join(
        [
            f"## {name_of(out)}: {ABOUT[section.setting]}",
            fill(f"{asked}.{same}", WIDTH, break_on_hyphens=False),
            fill(f"`{section.command}`", WIDTH, break_on_hyphens=False),
            table,
            *map(str.strip, section.notes),
            *drawn,
        ]
    )


def holding(found: Mapping[Results, Sequence[Section]]) -> Iterator[list[str]]:
    """A row a policy of a test section."""
    for out, of_model in found.items():
        gaps = {section.setting: section.gaps for section in of_model if section.split == "tune"}
        for section in of_model:
            contrasts = {contrast.label: contrast for contrast in section.contrasts}
            for name in JUDGED if section.split == "test" else ():
                _, at, budget = name.partition("@")
                others = [other.replace("{}", name).replace("{@}", at + budget) for other in QUESTIONS.values()]
                if f"{name} less {TOLD}" in contrasts:  # the best route of each task was chosen in a setting of its own
                    others[others.index("told")] = TOLD
                if f"{name} less base" in contrasts:
                    where = f"{out.name.removeprefix('policies-')}, {ABOUT[section.setting].partition(':')[0]} ({section.setting})"
                    gap = gaps.get(section.setting, {}).get(name)
                    closed = gap.cell() if gap else ""
                    yield [
                        where,
                        f"`{name}`",
                        *(judged(contrasts.get(f"{name} less {other}")) for other in others),
                        closed,
                        str(section.seeds[name]),
                    ]


class Figures(dict[str, str]):
    """Differences by what they are of; those that nothing is stored of say so."""

    def __missing__(self, key: str) -> str:
        return "(not stored)"


def figures(found: Mapping[Results, Sequence[Section]]) -> Figures:
    """Pooled differences on test for the words of the page: "MODEL SETTING: POLICY less OTHER", and ", PART" for a part of the tasks.

    The best mixture of two single routes goes by "mixture".
    """
    said = Figures()
    for out, of_model in found.items():
        for section in (one for one in of_model if one.split == "test"):
            for contrast in section.contrasts:
                label = re.sub(r" less .* dealt to .*", " less mixture", contrast.label)
                about = f"{out.name.removeprefix('policies-').partition('-')[0]} {section.setting}: {label}"
                said[about] = str(contrast.pooled)
                said.update({f"{about}, {part}": str(value) for part, value in contrast.parts.items()})
    return said


def scanned(folder: Path) -> Iterator[list[str]]:
    """Rows of a scan: its winners, the random spans beside them, and the best loop."""
    result = read_scan(RunFolder(folder).scan)
    loops = [row for row in result.in_group(WINNER) if row.kind == "loop"]
    n_winners = len(result.in_group(WINNER))
    named = {
        f"mean of {n_winners} winners": result.mean_of(WINNER),
        f"mean of {len(result.in_group(RANDOM))} random spans": result.mean_of(RANDOM),
        LEAD: result.mean_of(LEAD),
        **{f"best loop: blocks {row.first} to {row.last} again": row for row in loops[:1]},
    }
    model = f"[{folder.name.removeprefix('scan-')}](../results/{folder.name}/report/report.md), {sum(result.candidates[:1]):,} spans"
    for name, row in named.items():
        if row is not None:
            passes = "" if name == LEAD else f"{row.passes:.1f} of {result.n_layers}"
            yield [
                model,
                name,
                passes,
                *(f"{with_interval(one.mean, one.low, one.high)}, n {one.n}" if one else "" for one in (row.raced, row.fresh)),
            ]


def judged(contrast: Contrast | None) -> str:
    """A difference and what follows from it by the rule above."""
    if contrast is None:
        return ""
    shown = [contrast.pooled, *([contrast.even] if contrast.even else [])]
    verdict = "open"
    if contrast.seeds_agree and all(one.low > 0 for one in shown):
        verdict = "above"
    if contrast.seeds_agree and all(one.high < 0 for one in shown):
        verdict = "below"
    return f"{'; '.join(dict.fromkeys(map(str, shown)))}: **{verdict}**"


def claims(page: Path) -> str:
    """How many claims of a reproduction hold, from its own table."""
    states = {"holds": "holds", "does not hold": "does not hold", "neither confirmed nor refuted": "open"}
    counts = Counter(re.findall(rf"^\| ({'|'.join(states)}) \|", page.read_text(encoding="utf-8"), re.M))
    return ", ".join(f"{word}: {counts[state]}" for state, word in states.items())


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def whole(section: Section) -> Iterator[str]:
    yield f"### {section.title}"
    yield ""
    yield f"`{section.command}`"
    yield ""
    yield from markdown(COLUMNS, ([row[column] for column in COLUMNS] for row in section.rows))
    yield ""
    for note in section.notes:
        yield note
        yield ""
    if (chart := section.frontier) is not None:
        yield f"![{chart.title}](frontier/{chart.name}.png)"
        yield ""
        yield chart.caption
        yield ""
    if section.contrasts:
        first = section.contrasts[0]
        heads = ["pooled", *(["mean over tasks"] if first.even else []), *first.parts]
        rows = (
            [row.label, str(row.pooled), *([str(row.even)] if row.even else []), *map(str, row.parts.values())] for row in section.contrasts
        )
        yield from markdown([f"points, {'means over seeds' if max(section.seeds.values()) > 1 else 'one seed'}", *heads], rows)
        yield ""
    if section.by_task:
        yield from markdown(section.by_task[0], section.by_task[1:])
        yield ""


def curve(out: Results) -> Iterator[str]:
    """Policy value against fit questions, of `research/drllm_research/comparison/curve.py`."""
    for setting, about in sorted((out.told("curve") or {}).items()):
        yield f"### Learning curve: {ABOUT[setting]}, tune split"
        yield ""
        yield f"`python -m drllm_research.comparison.curve --run RUN --out results/{out.name} --settings {setting}`"
        yield ""
        yield (
            "A codebook is chosen on one half of the tune questions and measured on the other, and the other way round. The routes to "
            "choose from were found on all fit questions, whatever the number learned from here: what little data gives is too high, if "
            "anything."
        )
        yield ""
        yield "| fit questions | static, points over the base | codebook, points over the base, by draw | mean |"
        yield "|---|---|---|---|"
        for row in about["rows"]:
            codebooks = row["codebook"]
            shown = ", ".join(f"{100 * value:+.1f}" for value in codebooks)
            statics = ", ".join(f"{100 * value:+.1f}" for value in row["static"])
            yield f"| {row['questions']} | {statics} | {shown} | {100 * np.mean(codebooks):+.1f} |"
        yield ""
        points, low, high = about["rise"]["points"]
        yield (
            f"From {about['rise']['from']} to {about['rise']['to']} fit questions the codebook gains {100 * points:+.1f} "
            f"({100 * low:+.1f} to {100 * high:+.1f}) points. With all questions the values differ in the seed of folds alone."
        )
        yield ""


def tables(out: Results, found: Sequence[Section]) -> Iterator[str]:
    """`tables.md` of a model: every section whole, then the learning curves."""
    yield f"# Every table of {name_of(out)}"
    yield ""
    yield "Generated by `make table-methods`; what the columns mean and what follows: [results](../../docs/results.md)."
    yield ""
    yield f"## {name_of(out)}"
    yield ""
    for one in found:
        yield from whole(one)
    yield from curve(out)


def name_of(out: Results) -> str:
    return f"{out.told('model')}, {out.told('blocks')} blocks"
