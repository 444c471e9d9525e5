"""`reproduce()`: run the stages behind the tables and figures asked for, each once, and write them as one page."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from drllm.errors import InputError
from drllm.files import write_text
from drllm.registry import did_you_mean
from drllm.reporting.parts import Commands, Heading, Paragraph, Part, to_markdown
from drllm.reproducing.exhibits import Exhibit
from drllm.reproducing.paper_figures import FIGURES
from drllm.reproducing.paper_tables import LATENCY, TABLES
from drllm.reproducing.published import PAPER
from drllm.reproducing.setup import Setup
from drllm.reproducing.stages import Bench, Stage

EXHIBITS: dict[str, Exhibit] = {exhibit.name: exhibit for exhibit in (*TABLES, *FIGURES, LATENCY)}
ALL = "all"


def wanted_exhibits(names: Sequence[str]) -> list[Exhibit]:
    """The tables and figures of these names, in the paper's order; `all` stands for every one. `InputError` for an unknown name."""
    for name in names:
        if name != ALL and name not in EXHIBITS:
            known = (*EXHIBITS, ALL)
            raise InputError(f"unknown table or figure {name!r}{did_you_mean(name, known)}; choose from {', '.join(known)}")
    if not names:
        raise InputError(f"no table or figure named: write `drllm reproduce table3`; choose from {', '.join((*EXHIBITS, ALL))}")
    return [exhibit for exhibit in EXHIBITS.values() if ALL in names or exhibit.name in names]


def stages_of(exhibits: Sequence[Exhibit], setup: Setup) -> list[Stage]:
    """What they need, each stage once: searches, then policies, then evaluations, then what takes time by the clock."""
    return list(dict.fromkeys(stage for exhibit in exhibits for stage in exhibit.stages(setup)))


def reproduce(
    bench: Bench,
    exhibits: Sequence[Exhibit],
) -> Path:
    """Run every stage that is not done, then write `OUT/reproduce/<names>.html`, the same as `.md`, and each picture as PNG and CSV.

    A stage that was done under the same settings is found again, so a killed call resumes, and a table asked for later takes what another
    has left. The page of `all` is `all.html`.

    Args:
        bench: the model, the setup, and what the search runs on.
        exhibits: what to show; `wanted_exhibits`.

    Returns:
        The path of the page.
    """
    from drllm.reporting.drawing import need_matplotlib
    from drllm.reporting.page import need_page, to_html

    need_matplotlib()  # before hours of work
    need_page()
    import matplotlib.style

    stages = stages_of(exhibits, bench.setup)
    for number, stage in enumerate(stages, 1):
        started = time.monotonic()
        sys.stderr.write(f"drllm: [{number}/{len(stages)}] {stage.name}\n")
        bench.run(stage)
        sys.stderr.write(f"drllm: [{number}/{len(stages)}] {stage.name}: {time.monotonic() - started:.0f} s\n")
    bench.folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context("default"):  # a user's own matplotlibrc must not change the pictures
        parts = _page(bench, exhibits)
    name = ALL if len(exhibits) == len(EXHIBITS) else "-".join(exhibit.name for exhibit in exhibits)
    write_text(bench.folder / f"{name}.md", to_markdown(parts))
    write_text(bench.folder / f"{name}.html", to_html(parts))
    return bench.folder / f"{name}.html"


def _page(bench: Bench, exhibits: Sequence[Exhibit]) -> list[Part]:
    setup, config = bench.setup, bench.setup.config
    source = f", questions from {setup.data}" if setup.data else ""
    parts: list[Part] = [
        Heading(f"{PAPER} on {setup.model}", 1),
        Paragraph(
            f"Dr.LLM's tables and figures, made again at scale {config.scale:g}: learned from {', '.join(setup.tasks)}{source}. "
            "Intervals are of 95 %. A claim holds where interval and McNemar's test say so; where they leave it open, that is said. "
            f"Weights {bench.routed.fingerprint}, {str(bench.routed.model.dtype).removeprefix('torch.')}."
        ),
    ]
    for exhibit in exhibits:
        parts += [Heading(exhibit.title), *exhibit.show(bench, bench.folder)]
        commands = dict.fromkeys(command for stage in exhibit.stages(setup) if (command := stage.command(setup)))
        parts += [Paragraph(f"`{_command(setup, exhibit.name)}`, which does:"), Commands(tuple(commands))]
    return parts


def _command(setup: Setup, name: str) -> str:
    return shlex.join(["drllm", "reproduce", name, *setup.flags])


def dry_run(exhibits: Sequence[Exhibit], setup: Setup, plain_ms: float) -> list[str]:
    """Every stage with its plain forwards and hours, and their sum, as lines."""
    rows = [(stage.name, stage.forwards(setup), stage.command(setup)) for stage in stages_of(exhibits, setup)]
    lines = [f"{'plain forwards':>16} {'hours':>9}  stage"]
    for name, forwards, command in rows:
        lines.append(f"{forwards:16,.0f} {_hours(forwards, plain_ms):9.3f}  {name}")
        if command:
            lines.append(f"{'':28}{command}")
    total = sum(forwards for _, forwards, _ in rows)
    lines.append(f"{total:16,.0f} {_hours(total, plain_ms):9.3f}  in all, at {plain_ms:g} ms a plain forward of one question")
    return lines


def _hours(forwards: float, plain_ms: float) -> float:
    return forwards * plain_ms / 3.6e6
