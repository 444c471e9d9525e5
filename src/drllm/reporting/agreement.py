"""What a retrofit from prompts alone came to, in plain lines: a box for a terminal, and the page. No torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from drllm.core.route import Route
from drllm.core.route_words import in_words
from drllm.core.text import of_the_seconds, percent, table_text
from drllm.reporting.parts import Bullets, Commands, Heading, Paragraph, Part, Table
from drllm.reporting.recommendation import boxed
from drllm.runs.recommendation import TOLERATED, Agreed

COLUMNS = ("passes", "one route", "told the kind", "dealt", "selector", "own KL", "way closed")
ABOUT = (
    "KL to the base along its answer, in nats a token, on the select prompts at equal mean passes; each is routed by a selector that did "
    "not learn from it. Dealt: its routes, given to other prompts. Own KL: what a perfect selector would reach. Way closed: from one route "
    "to own KL."
)


def title(found: Agreed) -> str:
    return "Deploy the policy promised" if found.deploy else "Keep the base"


def lines(found: Agreed) -> Iterator[str]:
    """The reasons, one sentence each."""
    if found.point >= 0:
        start = "It makes" if found.deploy else "The policy promised makes"
        seconds = f"An answer takes {of_the_seconds(found.ratio, found.ratio_low, found.ratio_high)}."
        yield f"{start} {found.passes:.1f} block passes a prompt, the base {found.n_layers}. {seconds}"
    yield f"{'Promise' if found.point >= 0 else 'No promise'}: {found.promise}"
    if found.point >= 0 and not found.deploy:
        if found.differ > TOLERATED and not found.asked_differ:
            yield f"Not deployed: where no --differ is given, answers may differ on at most {100 * TOLERATED:g} % of prompts."
        else:
            yield "Not deployed: it does not save time for sure."
    if found.point < 0:
        more = "more prompts; a larger --differ, or none, which says what these prompts bear; more --minutes or --heal-steps"
        yield f"What could change this: {more}. Each in another --out."
    parts = ", ".join(f"{n:,} {name}" for name, n in found.prompts.items())
    yield f"Prompts: {parts}. Adapters learned from the first, the selector from the second, and the last tested the promise alone."
    yield f"Trying took {found.minutes:.1f} of {found.asked_minutes:g} minutes."


def commands(found: Agreed, out: str) -> list[str]:
    """What to do next, to be pasted into a shell."""
    report = f"drllm report {shlex.quote(out)}"
    widest = shlex.quote(f"{out}/{found.nest[0].policy}")
    merge = f"drllm export --policy {widest} --out {shlex.quote(f'{out}/merged')}"
    if not found.deploy:
        return [merge, report]
    policy = shlex.quote(f"{out}/{found.deploy}")
    return [f'drllm generate --policy {policy} "a prompt"', f'drllm inspect --policy {policy} "a prompt"', merge, report]


def point_rows(found: Agreed) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows of the comparison at equal passes; kinds are left out where there are none."""
    rows = [
        (f"{row.passes:.2f}", *(f"{kl:.4f}" for kl in (row.one, row.told, row.dealt, row.kl, row.own)), f"{percent(row.closed)} %")
        for row in found.points
    ]
    has_kinds = not all(math.isnan(row.told) for row in found.points)
    kept = [place for place, name in enumerate(COLUMNS) if has_kinds or name != "told the kind"]
    return tuple(COLUMNS[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in rows)


def panel(found: Agreed, out: str) -> str:
    """The table and the box at the end of a retrofit."""
    text = "\n".join([*lines(found), "", *(f"  {command}" for command in commands(found, out))])
    return f"{table_text(*point_rows(found), title=ABOUT)}\n{boxed(title(found), text)}"


def page_parts(found: Agreed, out: str) -> tuple[list[Part], list[Part]]:
    start: list[Part] = [Heading(f"Adaptive depth on {found.model}", 1), Heading(title(found)), Bullets(tuple(lines(found)))]
    start.append(Commands(tuple(commands(found, out))))
    nest = tuple(
        (
            *(row.policy, in_words(Route.parse(row.route).bare), str(row.passes), f"{row.kl_before:.3f}", f"{row.kl_after:.3f}"),
            *(f"{percent(row.same_before)} %", f"{percent(row.same_after)} %", f"{row.kl:.4f}"),
        )
        for row in found.nest
    )
    header = ("policy", "route", "passes", "KL before", "KL after", "same next token before", "after", "KL of the answer")
    body: list[Part] = [
        Heading("The selector at equal passes"),
        Table(*point_rows(found), caption=ABOUT),
        Heading("The nest of routes"),
        Table(header, nest, caption="KL in nats a token: before and after healing on held-out prompts; of the answer on select prompts."),
    ]
    if found.example:
        same = "the same" if found.example["base"] == found.example["policy"] else "not the same"
        body += [Heading("One prompt"), Paragraph(f"{found.example['prompt']}"), Paragraph(f"The two answers are {same}.")]
        body.append(Bullets((f"base: {found.example['base']}", f"policy ({found.example['route']}): {found.example['policy']}")))
    return start, body
