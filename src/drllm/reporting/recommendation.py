"""What a retrofit recommends, in plain lines: a box for a terminal, and the opening of the report. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from drllm.core.text import points
from drllm.reporting.parts import Bullets, Commands, Heading, Part
from drllm.runs.recommendation import Recommendation
from drllm.runs.summary import SummaryRow

WIDTH = 118


def title(found: Recommendation) -> str:
    """The verdict in a few words."""
    return f"Deploy `{found.deploy}`: the policy {found.best}" if found.deploy else "Keep the base"


def lines(found: Recommendation) -> Iterator[str]:
    """The reasons, one sentence each."""
    row = found.calibrate or found.tune
    if row is not None:
        yield f"{'' if found.deploy else 'Best that was tried: '}{found.best}, {_passes(row)}{_seconds(found)}."
        yield f"Right answers against the base: {row.change} points on {row.n:,} {_questions(found)} (95 % interval in brackets)."
    if found.promise:
        yield f"{'Promise' if found.promised else 'No promise'}: {found.promise}"
    if not found.deploy:
        yield from _why_not(found)
    if found.missed:
        yield f"Not made: {'; '.join(f'{name}: {reason}' for name, reason in found.missed.items())}."


def _passes(row: SummaryRow) -> str:
    return f"{row.mean_passes:.1f} block passes a prompt, the base {row.n_layers}"


def _seconds(found: Recommendation) -> str:
    if math.isnan(found.ratio):
        return ""
    return f"; an answer takes {found.ratio:.2f} of the base's seconds ({found.ratio_low:.2f} to {found.ratio_high:.2f})"


def _questions(found: Recommendation) -> str:
    return "calibrate questions, which chose nothing" if found.calibrate is not None else "tune questions, which chose it"


def _why_not(found: Recommendation) -> Iterator[str]:
    """What stood against it, and what would change the verdict."""
    if not found.tried:
        yield "No policy could be made."
    elif not found.best:
        within = f" within {found.kept:.2f} of the base's passes" if found.kept < 1 else ""
        yield f"None of {', '.join(found.tried)} changed an answer for the better{within}."
    asked = sorted({int(found.sizes.get(name, 0)) for name in ("tuned", "calibrated")})
    more = f"more time and questions (this run compared on {' and '.join(map(str, asked))} a task)" if asked else "more questions"
    if found.needed:
        sure = f"a gain like tune's {points(found.tune.difference)} points is sure on about {found.needed:,} questions"  # type: ignore[union-attr]
        more = f"{more}: {sure}"
    other = "--objective accuracy" if found.objective == "speed" else "--objective speed, which looks for fewer passes at no loss"
    yield f"What could change this: {more}; {other}; or prompts of one kind, on which routes differ less."


def commands(found: Recommendation, out: str) -> list[str]:
    """What to do next, to be pasted into a shell."""
    policy = f"{out}/{found.deploy or found.best}"
    if not found.deploy:
        return ([f'drllm inspect --policy {policy} "a prompt"'] if found.best else []) + [f"drllm report {out}"]
    export = [f"drllm export --policy {policy} --out {out}/exported"] if found.is_static else []
    return [
        f'drllm generate --policy {policy} "a prompt"',
        *export,
        f"drllm serve {policy}",
        f"drllm push {policy} NAME/MODEL",
        f"drllm report {out}",
    ]


def panel(found: Recommendation, out: str) -> str:
    """The box at the end of a retrofit."""
    text = "\n".join([*lines(found), "", *(f"  {command}" for command in commands(found, out))])
    console = Console(width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as shown:
        console.print(Panel(Text(text), title=title(found).replace("`", ""), title_align="left", box=box.ROUNDED))
    return "\n".join(line.rstrip() for line in shown.get().rstrip().splitlines())


def opening(found: Recommendation, out: str) -> list[Part]:
    """The same as the first section of the report."""
    return [Heading(title(found)), Bullets(tuple(lines(found))), Commands(tuple(commands(found, out)))]
