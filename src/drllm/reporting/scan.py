"""A scan on a page and on a terminal: the map of each kind of span, and the winners beside random spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from drllm.core.text import p_value, points, table_text, with_interval
from drllm.reporting.drawing import number, usage_colours, whole
from drllm.reporting.parts import Bullets, Chart, Folded, Heading, Paragraph, Part, Table
from drllm.runs.scan_result import CLAIM_LEAD, CLAIMED, ELSEWHERE, LEAD, RANDOM, WINNER, Cell, Difference, Measured, ScanResult
from drllm.stats.paired import decided

NAMES = {"loop": "run once more", "damped": "run once more at strength {strength:g}", "skip": "skipped"}
HEADER = ("span", "passes", "where it was chosen, points", "on new questions, points", "better / worse", "McNemar p")
LIMITS = (1, 2, 5, 10, 20, 50)  # points: where colours may end
LOSS = 10  # points
CURSE = (
    "The winners were chosen on the first questions, so their figures there are too good; on new questions, which chose nothing, that is "
    "gone. Random spans have the winners' kinds and lengths and were drawn blindly."
)


def scan_parts(result: ScanResult, cells: Sequence[Cell]) -> Iterator[Part]:
    yield Heading("Scan" if result.sizes else "Audit")
    if claims := tuple(_claim(result, row) for row in result.in_group(CLAIMED)):
        yield Bullets(claims)
    if result.sizes:
        yield Paragraph(_raced(result))
    yield Table(*_columns(result), caption=_caption(result))
    yield Paragraph(
        " ".join(
            filter(None, (conclusion(result), CURSE if result.in_group(WINNER) and result.in_group(RANDOM) else "", _by_chance(result)))
        )
    )
    if result.notes:
        yield Paragraph(f"Note: {'; '.join(result.notes)}.")
    yield from (_map(result, kind, [cell for cell in cells if cell.kind == kind]) for kind in result.kinds if cells)
    routes = [(_name(row), row.route) for row in result.rows]
    yield Folded("Routes", (Table(("span", "route"), tuple(routes), code=frozenset({"route"})),))


def render(result: ScanResult) -> str:
    lines = [table_text(*_columns(result), _caption(result)), *([_raced(result)] if result.sizes else []), conclusion(result)]
    return "\n".join(filter(None, (*lines, _by_chance(result), *(_claim(result, row) for row in result.in_group(CLAIMED)))))


def conclusion(result: ScanResult) -> str:
    """What the winners have on new questions, in a sentence."""
    winners = result.in_group(WINNER)
    if not winners:
        return ""
    if winners[0].fresh is None:
        return "The winners were not measured on new questions, so what they gain is not known."
    sure = [row for row in winners if row.fresh and decided(row.fresh.low, row.fresh.high, row.fresh.p or 0.0)]
    what = f"{len(sure)} of {len(winners)} winners are better than the base on {winners[0].fresh.n:,} new questions"
    lead = result.mean_of(LEAD)
    if lead is None or lead.fresh is None:
        return f"{what}."
    found = with_interval(lead.fresh.mean, lead.fresh.low, lead.fresh.high)
    return f"{what} (interval and McNemar's test agree); as a mean they have {found} points over the random spans."


def _raced(result: ScanResult) -> str:
    rounds = ", ".join(f"{count:,} on {size}" for count, size in zip(result.candidates, result.sizes, strict=True))
    cost = result.cost
    return (
        f"The race, candidates on questions: {rounds}. It cost {cost.race:,.0f} plain forwards, {cost.share:.1%} of the {cost.full:,.0f} "
        f"that all candidates on all questions cost; measuring again cost {cost.random + cost.fresh:,.0f}."
    )


def _caption(result: ScanResult) -> str:
    weights = f"{result.model or 'the model'} ({result.dtype}, weights {result.fingerprint})"
    return f"{weights} on {', '.join(result.tasks)}; differences to the base, in brackets: 95 % intervals"


def _by_chance(result: ScanResult) -> str:
    """The winner's curse, beside what was seen."""
    found, seen = result.chance, result.mean_of(WINNER)
    if found is None or seen is None or seen.raced is None:
        return ""
    word = "which luck alone can show" if seen.raced.mean <= found.high else "more than luck alone shows"
    return (
        f"On the questions that chose them the winners gain {points(seen.raced.mean)} points, {word}: were no span of any effect, the "
        f"luckiest would gain {_shown(found)} there (each question's differences turned by a coin, the winners named anew)."
    )


def _claim(result: ScanResult, row: Measured) -> str:
    """What became of a claim, and what the same change has elsewhere."""
    assert row.fresh is not None  # claims are measured there alone
    found = decided(row.fresh.low, row.fresh.high, row.fresh.p or 0.0)
    word = {True: "a gain", False: "a loss", None: "no sure difference"}[found]
    told = f"Claimed: {row.kind and f'{_name(row)}, '}route {row.route}{f' ({row.source})' if row.source else ''}. "
    told += f"Measured: {word}, {_shown(row.fresh)} points on {row.fresh.n:,} questions."
    if row.gain is not None:
        told += f" The claimed {row.gain:+g} points {_judged(row.gain / 100, row.fresh)}."
    lead = result.mean_of(CLAIM_LEAD, row.route)
    if lead is None or lead.fresh is None:
        return told
    return f"{told} Against the same change at other blocks, drawn blindly, it has {_shown(lead.fresh)} points."


def _judged(gain: float, fresh: Difference) -> str:
    """Where a claimed gain lies, and what follows."""
    if not fresh.low <= gain <= fresh.high:
        place, word = ("above", "the claim does not hold") if gain > fresh.high else ("below", "it does better than claimed")
        return f"lie {place} that interval: {word} on these questions"
    if not fresh.low <= 0 <= fresh.high or not gain:
        return "lie inside that interval: the claim holds on these questions"
    needed = fresh.n * ((fresh.high - fresh.low) / 2 / gain * 2.8 / 1.96) ** 2  # intervals shrink with the root of n; a power of 80 %
    return f"lie inside that interval, and so does no change at all: about {max(needed, fresh.n):,.0f} questions would tell them apart"


def _columns(result: ScanResult) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows; without a race the column of what chose is left out."""
    rows = tuple(_table(result))
    if result.sizes:
        return HEADER, rows
    return HEADER[:2] + HEADER[3:], tuple(row[:2] + row[3:] for row in rows)


def _table(result: ScanResult) -> Iterator[tuple[str, ...]]:
    for row in result.rows:
        yield (f"{row.group}: {_name(row)}", f"{row.passes:g} of {result.n_layers}", *_cells(row))
    named = {WINNER: "mean of the winners", RANDOM: "mean of the random spans", ELSEWHERE: "the same change at other blocks, mean"}
    claims = {row.route: f"{_name(row)}: " for row in result.in_group(CLAIMED)}
    for row in result.means:
        passes = f"{row.passes:.1f} of {result.n_layers}" if row.group in named else ""
        yield (claims.get(row.route, "") + named.get(row.group, row.group), passes, *_cells(row))


def _name(row: Measured) -> str:
    blocks = f"{row.first}-{row.last}" if row.last > row.first else str(row.first)
    return f"{row.kind} {blocks}" if row.kind else row.route


def _cells(row: Measured) -> tuple[str, ...]:
    fresh = row.fresh
    tested = ("", "") if fresh is None or fresh.p is None else (f"{fresh.better} / {fresh.worse}", p_value(fresh.p))
    return _with_n(row.raced), _with_n(fresh), *tested


def _with_n(found: Difference | None) -> str:
    return "" if found is None else f"{_shown(found)}, n {found.n}"


def _shown(found: Difference) -> str:
    return with_interval(found.mean, found.low, found.high)


def _map(result: ScanResult, kind: str, cells: Sequence[Cell]) -> Chart:
    """The spans of one kind: colour is the score beside the base's, a square is as large as the questions it had are many."""
    sizes = sorted({cell.questions for cell in cells})
    limit = _limit(cells)
    what = NAMES[kind].format(strength=result.strength)
    how, order = "The score is the verdict: these answers have no margin.", ""
    if any(cell.score != cell.accuracy for cell in cells):
        how = "The score is half the verdict, half how clear the answer is."
        order = " The first questions are those that the base is least sure of: there spans differ most."
    title = f"Spans of blocks {what}: score minus the base's"
    caption = (
        f"Spans {what}, by their first and last block. Colour: score minus the base's in points, blue worse, orange better, ends at "
        f"{limit:g}. {how} The larger a square, the more questions it answered: {', '.join(map(str, sizes))}.{order}"
    )
    header = ("kind", "first", "last", "route", "questions", "score", "accuracy")
    rows = tuple((c.kind, c.first, c.last, c.route, c.questions, number(c.score), number(c.accuracy)) for c in cells)

    def draw(panels: Sequence[Any]) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        def square(x: float, y: float, side: float, **look: Any) -> Rectangle:
            return Rectangle((x - side / 2, y - side / 2), side, side, **look)

        (axes,) = panels
        sides = {size: (place + 2) / (len(sizes) + 1) for place, size in enumerate(sizes)}
        edge: dict[str, Any] = {"edgecolor": "0.75", "linewidth": 0.4}
        drawn = PatchCollection([square(c.first, c.last, sides[c.questions]) for c in cells], cmap=usage_colours(), **edge)
        drawn.set_array([100 * cell.score for cell in cells])
        drawn.set_clim(-limit, limit)
        axes.add_collection(drawn)
        axes.set_aspect("equal")
        right = max(cell.first for cell in cells)
        for row, (size, side) in enumerate(sides.items()):  # in the lower right corner, where a map of spans has no square
            x, y = 0.65 * right, right / 18 * (len(sides) - row)
            axes.add_patch(square(x, y, side, facecolor="0.6", **edge))
            axes.text(x + 1, y, f"{size} questions", verticalalignment="center", fontsize="small")
        axes.figure.colorbar(drawn, ax=axes, label="score minus the base's, points", extend="both", shrink=0.8)
        for axis, set_limits in ((axes.yaxis, axes.set_ylim), (axes.xaxis, axes.set_xlim)):
            whole(axis)
            set_limits(-0.6, result.n_layers - 0.4)
        axes.set_ylabel("last block of the span")
        axes.set_xlabel("first block of the span")

    return Chart(f"scan_{kind}", title, caption, header, rows, draw, height=6.4)


def _limit(cells: Sequence[Cell]) -> float:
    """Where colours end: twice the best gain at least, so that it can be told from none; greater losses than `LOSS` look alike."""
    best = 200 * max(cell.score for cell in cells)
    usual = sorted(100 * abs(cell.score) for cell in cells)[len(cells) // 4]
    return next((limit for limit in LIMITS if limit >= max(best, min(usual, LOSS))), LIMITS[-1])
