"""What a retrofit recommends, in plain lines: a box for a terminal, and the opening of the report. No torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from drllm.core.route import Route
from drllm.core.route_words import in_words
from drllm.core.text import WIDTH, of_the_seconds, p_value, percent, points_lost
from drllm.reporting.parts import Bullets, Commands, Heading, Part
from drllm.runs.recommendation import Recommendation
from drllm.runs.summary import SummaryRow
from drllm.stats.promise import smaller_promise
from drllm.tasks.splits import DRAWN

NEAR_CONSTANT = 0.02  # of accuracy above that of the commonest answer, which says nothing


def title(found: Recommendation) -> str:
    return f"Deploy the policy {found.best}" if found.deploy else "Keep the base"


def lines(found: Recommendation) -> Iterator[str]:
    """The reasons, one sentence each."""
    row = found.calibrate or found.tune
    if row is not None:
        start = "It makes" if found.deploy else f"Best that was tried: {found.best}. It makes"
        yield f"{start} {row.mean_passes:.1f} block passes a prompt, the base {row.n_layers}.{_seconds(found)}"
        base, change = row.accuracy - row.difference, f"{row.change} points" if row.better or row.worse else "no answer changed"
        yield f"Right answers: {percent(row.accuracy)} %, the base {percent(base)} %: {change} on {row.n:,} {_questions(found)}."
        if base > 1 - 0.5 / row.n:
            yield "The base is right on all of them: harder questions could show a gain, these only a loss."
        if row.accuracy <= found.constant + NEAR_CONSTANT:  # never of nan
            yield (
                f"Beware: always giving the commonest answer is right on {percent(found.constant)} % of them. So these questions do not "
                "show that it understands more."
            )
    if found.route:
        yield f"Its route, by blocks: {in_words(Route.parse(found.route, row.n_layers if row is not None else None))}."
    if found.tune is not None and found.dealt >= found.tune.accuracy:  # never of nan
        yield (
            f"On tune its own routes, dealt to other prompts, did as well ({percent(found.dealt)} %, it {percent(found.tune.accuracy)} %): "
            "that it looks at the prompt gained nothing there."
        )
    if found.promise:
        yield f"{'Promise' if found.promised else 'No promise'}: {found.promise}"
    if not found.deploy:
        yield from _why_not(found, row)
    else:
        if found.tested_in:
            yield f"All this was tested in {found.tested_in}: serve {'or export ' if found.route else ''}it in that type."
        if "loglik" in found.promise:
            yield "Judged by which of the given answers is likelier: what it writes when left to itself was not tested."
        yield "Serving needs vLLM: make serve-env, then .venv-serve/bin/drllm in place of drllm (docs/serve.md)."
    if found.missed:
        yield f"Not made: {'; '.join(f'{name} ({reason})' for name, reason in found.missed.items())}."
    yield f"Trying took {found.minutes:.1f} of {found.asked_minutes:g} minutes. {_compared(found)}"


def _compared(found: Recommendation) -> str:
    if not found.tried:
        return "No policy could be compared."
    routes = {name: f" ({in_words(Route.parse(route))})" for name, route in found.routes.items()}
    on = f" on {found.tuned:,} tune questions" if found.tuned else ""
    return f"Compared{on}: {', '.join(name + routes.get(name, '') for name in found.tried)}."


def _seconds(found: Recommendation) -> str:
    if math.isnan(found.ratio):
        return ""
    return f" An answer takes {of_the_seconds(found.ratio, found.ratio_low, found.ratio_high)}."


def _questions(found: Recommendation) -> str:
    if found.calibrate is None:
        return "tune questions, which chose it"
    rest = f" ({found.available:,} are there; more minutes, in another --out, ask more)" if found.calibrate.n < found.available else ""
    return f"calibrate questions{rest}, which had no part in choosing it"


def _why_not(found: Recommendation, row: SummaryRow | None) -> Iterator[str]:
    """What stood against it, and what would change the verdict."""
    if not found.tried:
        yield "No policy could be made."
    elif not found.best:
        yield "None of them gained right answers or saved passes on tune" + (" and kept to the budget." if found.beyond else ".")
        if (row := found.beyond) is not None:
            share = math.ceil(100 * row.mean_passes / row.n_layers) / 100
            yield (
                f"Beyond the budget the best was {row.method}: {row.change} points on {row.n:,} tune questions, {row.mean_passes:.1f} "
                f"passes a prompt (--budget {share:.2f} lets it in)."
            )
            return
    elif found.promised:
        p = f" (McNemar p {p_value(row.mcnemar_p)}; sure is below 0.05)" if row is not None and row.difference_low > 0 else ""
        yield f"Not deployed: its gain is not sure{p}, and it does not save time for sure."
    if found.best and found.objective == "speed":
        lost = points_lost(found.epsilon)
        yield f"Named on tune: the fewest passes among those that lose at most {lost} there (--promise-epsilon)."
    if row is not None and row.difference_high < 0:
        yield "It loses for sure: more questions would not change that."
        return
    in_time = found.calibrate is not None and found.calibrate.n >= found.available and not found.out_of_time
    more = f"What could change this: {'more questions' if in_time else 'more time and questions'}"
    split = "calibrate" if found.calibrate is not None else "tune"
    if row is not None and found.needed:
        rows = math.ceil(found.needed / DRAWN[split])
        more += f" (a gain like this one would be sure on about {found.needed:,} {split} questions: {rows:,} rows of a file without parts)"
    other = "--objective accuracy" if found.objective == "speed" else "--objective speed (fewer passes at no loss)"
    yield f"{more}; {other}; prompts of one kind, on which routes differ less. Each in another --out."
    of = found.calibrate
    if of is not None and not found.promised and found.objective != "speed":  # where the loss also chooses the policy
        less = smaller_promise(found.epsilon, found.delta, of.n, of.better, of.worse)
        if less is not None:
            yield f"These {of.n:,} answers bear a smaller promise: the same command with --promise-epsilon {less:g}, in this --out."


def commands(found: Recommendation, out: str) -> list[str]:
    """What to do next, to be pasted into a shell."""
    policy, chat = shlex.quote(f"{out}/{found.deploy or found.best}"), " --chat" if found.is_chat else ""
    report = f"drllm report {shlex.quote(out)}"
    fits = found.route and all(span.strength == 1 for span in Route.parse(found.route).spans)  # no format holds a strength
    export = [f"drllm export --policy {policy} --out {shlex.quote(f'{out}/exported')}"] if fits else []
    answer = f'drllm generate --policy {policy}{chat} --beside-base "a prompt"'
    if not found.deploy:
        tried = [answer, f'drllm inspect --policy {policy}{chat} "a prompt"', *export]
        return (tried if found.best else []) + [report]
    return [answer, *export, f"drllm serve {policy}", f"hf upload NAME/MODEL {policy}", report]


def panel(found: Recommendation, out: str) -> str:
    """The box at the end of a retrofit."""
    kept = [f"Every policy that was tried stands in {out}/: {', '.join(found.tried)}."] if found.tried and not found.deploy else []
    return boxed(title(found), "\n".join([*lines(found), *kept, "", *(f"  {command}" for command in commands(found, out))]))


def boxed(title: str, text: str) -> str:
    console = Console(width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as shown:
        console.print(Panel(Text(text), title=title, title_align="left", box=box.ROUNDED))
    return "\n".join(line.rstrip() for line in shown.get().rstrip().splitlines())


def opening(found: Recommendation, out: str) -> list[Part]:
    """The same as the first section of the report."""
    return [Heading(title(found)), Bullets(tuple(lines(found))), Commands(tuple(commands(found, out)))]
