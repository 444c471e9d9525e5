"""`drllm inspect`: what a policy saw of one prompt and what it decided, block by block."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Action, Route, Visit
from drllm.core.route_words import loops_in_words
from drllm.model.prompts import Prompt, encode_prompts
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import Codebook
from drllm.policies.policy import Decider, RouteSource
from drllm.policies.text_selector import TextSelector
from drllm.policies.timed import WrappedSource

STYLES = {Action.SKIP: ("_", "blue"), Action.EXECUTE: ("|", "dim"), Action.REPEAT: ("#", "bold dark_orange3")}  # mark and its style
LOOP_STYLE = "bold dark_orange3"
BAR = 20  # characters of a probability of 1
MOST_SPOKEN = 8  # tokens and pairs shown for a route, and as many against it


@dataclass(frozen=True)
class Inspection:
    """One prompt under one policy.

    Attributes:
        policy, prompt_format: names.
        windows: the tokens of each window that routers pool; one window where a policy pools the whole prompt or reads none.
        dropped: tokens at the end that enter no window.
        probabilities: of skip, execute and repeat at each block, under the control; None of a policy that has none.
        routes, values, threshold: of a codebook, its routes, what each is worth (predicted gain plus the worth of saved passes, fractions)
            and what a route must be worth to be taken.
        spoken: of a codebook that reads text, what the prompt's tokens and pairs of them add to the worth of the route that was worth most,
            the most first.
        route: what was decided.
        text: the answer along it.
    """

    policy: str
    prompt_format: str
    windows: tuple[tuple[str, ...], ...]
    dropped: int
    probabilities: tuple[tuple[float, ...], ...] | None
    routes: tuple[Route, ...]
    values: tuple[float, ...]
    threshold: float
    spoken: tuple[tuple[str, float], ...]
    route: Route
    text: str


def inspect(
    routed: RoutedModel, prompt: Prompt, policy: RouteSource | None = None, max_new_tokens: int = 16, check_prompt_format: bool = True
) -> Inspection:
    """Answer one prompt greedily and keep what the policy saw; `policy` defaults to the model's own.

    Raises `InputError` where there is no policy, or the prompt is not one `generate` takes.
    """
    policy = policy or routed.policy
    if policy is None:
        raise InputError("there is no policy to look into: give --policy, or set the model's")
    (ids,), prompt_format = encode_prompts(routed.tokenizer, [prompt])
    watched = _Watched(policy)
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "check_prompt_format": check_prompt_format, "do_sample": False}
    (output,) = routed.generate([prompt], policy=watched, **given)
    tokens = [routed.tokenizer.decode([token]) for token in ids]
    windows_BWT = policy.windows(torch.ones((1, len(tokens)), dtype=torch.bool))
    windows = [torch.ones(len(tokens))] if windows_BWT is None else [window for window in windows_BWT[0] if window.any()]
    found = [[tokens[at] for at in window.nonzero()[:, 0]] for window in windows]
    seen = policy.name, prompt_format, tuple(map(tuple, found)), len(tokens) - sum(map(len, found))
    spoken: tuple[tuple[str, float], ...] = ()
    if isinstance(policy, Codebook) and isinstance(policy.selector, TextSelector) and policy.points:
        watched.values = policy.values([ids])[0].tolist()
        found_grams = policy.selector.spoken(ids, watched.values.index(max(watched.values)))
        spoken = tuple((routed.tokenizer.decode(list(gram)), share) for gram, share in found_grams)
    worth = tuple(watched.probabilities) or None, tuple(policy.routes), tuple(watched.values), policy.threshold, spoken
    return Inspection(*seen, *worth, output.route, output.text or "")


class _Watched(WrappedSource):
    """A policy of which one prefill is kept. It decides as the policy does: the numbers are computed beside, from the same states."""

    name: ClassVar[str] = "watched"

    def __init__(self, source: RouteSource):
        super().__init__(source)
        self.probabilities: list[tuple[float, ...]] = []
        self.values: list[float] = []

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        return _WatchedDecider(self.source.start(prompt_mask_BT), self)


class _WatchedDecider(Decider):
    def __init__(self, decider: Decider, watched: _Watched):
        self._decider, self._watched = decider, watched

    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        if (probabilities_BC := self._decider.probabilities(block, x_BTD)) is not None:
            self._watched.probabilities.append(tuple(probabilities_BC[0].tolist()))
        if (values_BK := self._decider.values(block, x_BTD)) is not None:
            self._watched.values = values_BK[0].tolist()
        return self._decider.decide(block, x_BTD)


def render(found: Inspection, width: int | None = None, colour: bool = False) -> str:
    """The inspection for a terminal; without colours it reads as well, so that it can be piped."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width or 100, color_system="standard" if colour else None, force_terminal=colour)
    route = Text.assemble(("route   ", "bold"), _strip(found.route))
    route.append(f"  {found.route.n_passes} block passes, the base {len(found.route)}  (_ skipped, | executed, # repeated)")
    parts: list[Any] = [_prompt(found), Text(""), route, *_loops(found.route)]
    if found.probabilities is not None:
        parts += [Text(""), _block_table(found.probabilities, found.route)]
    if found.values and max(found.values) == -math.inf:
        parts += [Text("\nthis prompt is unlike those that the codebook learned from, so the base is kept")]
    elif found.values:
        parts += [Text(f"\nthe route worth most is taken if that is more than {100 * found.threshold:+.2f} points; the base's is worth 0")]
        parts += [_route_table(found), *_spoken(found)]
    console.print(Group(*parts, Text(""), Text.assemble(("answer  ", "bold"), repr(found.text))))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _prompt(found: Inspection) -> Table:
    n_tokens = sum(map(len, found.windows)) + found.dropped
    table = Table(title=f"prompt ({found.prompt_format}), {n_tokens} tokens, under {found.policy}", title_justify="left", box=None)
    table.add_column("window", justify="right")
    table.add_column("tokens, each in brackets", overflow="fold")
    for place, tokens in enumerate(found.windows):
        table.add_row(str(place), Text(" ".join(f"[{repr(token)[1:-1]}]" for token in tokens)))
    if found.dropped:
        table.add_row("", Text(f"the last {found.dropped} tokens enter no window"))
    return table


def _strip(route: Route) -> Text:
    """A mark a block, with brackets around each span that runs again."""
    marks: list[Any] = [[STYLES[Action(min(n_passes, Action.REPEAT))]] for n_passes in route.in_place_actions]
    for span in dict.fromkeys(span for _, span in route.loops):
        marks[span.first].insert(0, ("[", LOOP_STYLE))
        marks[span.last].append(("]", LOOP_STYLE))
    return Text.assemble(*(mark for found in marks for mark in found))


def _loops(route: Route) -> list[Text]:
    return [Text.assemble(("loop    ", "bold"), ("[ ] ", LOOP_STYLE), words) for words in loops_in_words(route)]


def _block_table(probabilities: Sequence[Sequence[float]], route: Route) -> Table:
    table = Table(box=None)
    for name in ("block", *(action.name.lower() for action in Action)):
        table.add_column(name, justify="right")
    table.add_column("decision")
    table.add_column("probability of it")
    for block, (row, chosen) in enumerate(zip(probabilities, route, strict=True)):
        decided = Text(Action(chosen).name.lower(), STYLES[Action(chosen)][1])
        table.add_row(str(block), *(f"{value:.3f}" for value in row), decided, "=" * round(BAR * row[chosen]))
    return table


def _spoken(found: Inspection) -> list[Any]:
    """Which tokens and pairs spoke most for the route that is worth most, and against it."""
    if not found.spoken:
        return []
    best = found.routes[1 + found.values.index(max(found.values))]
    table = Table(box=None)
    table.add_column("points", justify="right")
    table.add_column("in the prompt")
    shown = [*found.spoken[:MOST_SPOKEN], *found.spoken[MOST_SPOKEN:][-MOST_SPOKEN:]]
    for text, share in shown:
        table.add_row(f"{100 * share:+.2f}", Text(repr(text)))
    return [Text.assemble("\nwhat spoke most for and against ", _strip(best)), table]


def _route_table(found: Inspection) -> Table:
    table = Table(box=None)
    for name, justify in (("worth, points", "right"), ("passes", "right"), ("route", "left"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for route, value in sorted(zip(found.routes[1:], found.values, strict=True), key=lambda pair: -pair[1]):
        table.add_row(f"{100 * value:+.2f}", str(route.n_passes), _strip(route), "taken" if route == found.route else "")
    return table
