"""`drllm inspect`: what a policy saw of one prompt and what it decided, block by block."""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Action, Route, Visit
from drllm.core.route_words import loops_in_words
from drllm.model.prompts import Prompt, encode_prompts
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import Codebook, TextSelector
from drllm.policies.policy import Decider, RouteSource
from drllm.policies.routers import Routers, pool_matrix
from drllm.policies.timed import WrappedSource

MARKS = {Action.SKIP: "_", Action.EXECUTE: "|", Action.REPEAT: "#"}
WIDTH = 100  # characters of a line of tokens
BAR = 20  # characters of a probability of 1
MOST_SPOKEN = 8  # tokens and pairs shown for a route, and as many against it


@dataclass(frozen=True)
class Inspection:
    """One prompt under one policy."""

    policy: str
    prompt_format: str
    windows: tuple[tuple[str, ...], ...]  # the tokens of each that routers pool; one where a policy pools the whole prompt or reads none
    dropped: int  # tokens at the end that enter no window
    probabilities: tuple[tuple[float, ...], ...] | None  # of skip, execute and repeat at each block, under the control
    routes: tuple[Route, ...]  # of a codebook
    values: tuple[float, ...]  # what each is worth: predicted gain plus the worth of saved passes, fractions
    threshold: float  # what a route must be worth to be taken
    spoken: tuple[tuple[str, float], ...]  # what tokens and pairs of them add to the worth of the best route, the most first
    route: Route  # what was decided
    text: str  # the answer along it


def inspect(
    routed: RoutedModel, prompt: Prompt, policy: RouteSource | None = None, max_new_tokens: int = 16, check_prompt_format: bool = True
) -> Inspection:
    """Answer one prompt greedily and keep what the policy saw (None: the model's own); `InputError` where there is none."""
    policy = policy or routed.policy
    if policy is None:
        raise InputError("there is no policy to look into: give --policy, or set the model's")
    (ids,), prompt_format = encode_prompts(routed.tokenizer, [prompt])
    watched = _Watched(policy)
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "check_prompt_format": check_prompt_format, "do_sample": False}
    (output,) = routed.generate([prompt], policy=watched, **given)
    tokens = [routed.tokenizer.decode([token]) for token in ids]
    windows = [torch.ones(len(tokens))]  # a window is pooled, or the whole prompt, or nothing is
    if isinstance(policy, Routers):
        pooled_BWT, valid_BW = pool_matrix(torch.ones((1, len(tokens))), policy.config.n_windows)
        windows = list(pooled_BWT[valid_BW])
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


def render(found: Inspection) -> str:
    """The inspection as text."""
    return "\n".join(_lines(found))


def _lines(found: Inspection) -> Iterator[str]:
    n_tokens = sum(map(len, found.windows)) + found.dropped
    yield f"prompt ({found.prompt_format}), {n_tokens} tokens, under {found.policy}; each window's tokens in brackets"
    for place, tokens in enumerate(found.windows):
        shown = " ".join(f"[{repr(token)[1:-1]}]" for token in tokens)
        yield textwrap.fill(shown, WIDTH, initial_indent=f"{place:6}  ", subsequent_indent=" " * 8, break_on_hyphens=False)
    if found.dropped:
        yield f"        the last {found.dropped} tokens enter no window"
    passes = f"{found.route.n_passes} block passes, the base {len(found.route)}  (_ skipped, | executed, # repeated)"
    yield f"\nroute   {_strip(found.route)}  {passes}"
    yield from (f"loop    [ ] {words}" for words in loops_in_words(found.route))
    if found.probabilities is not None:
        yield "\nblock   skip  execute  repeat  decision  probability of it"
        for block, (row, chosen) in enumerate(zip(found.probabilities, found.route, strict=True)):
            decided = Action(chosen).name.lower()
            yield f"{block:5}  {row[0]:.3f}    {row[1]:.3f}   {row[2]:.3f}  {decided:8}  {'=' * round(BAR * row[chosen])}".rstrip()
    if found.values and max(found.values) == -math.inf:
        yield "\nthis prompt is unlike those that the codebook learned from, so the base is kept"
    elif found.values:
        yield f"\nthe route worth most is taken if that is more than {100 * found.threshold:+.2f} points; the base's is worth 0"
        yield "worth, points  passes  route"
        ranked = sorted(zip(found.values, found.routes[1:], strict=True), key=lambda pair: -pair[0])
        for value, route in ranked:
            yield f"{100 * value:+13.2f}  {route.n_passes:6}  {_strip(route)}{'  taken' if route == found.route else ''}"
        if found.spoken:
            yield f"\nwhat spoke most for and against {_strip(ranked[0][1])}, in points"
            for text, share in [*found.spoken[:MOST_SPOKEN], *found.spoken[MOST_SPOKEN:][-MOST_SPOKEN:]]:
                yield f"{100 * share:+13.2f}  {text!r}"
    yield f"\nanswer  {found.text!r}"


def _strip(route: Route) -> str:
    """A mark a block, with brackets around each span that runs again."""
    marks = [MARKS[Action(min(n_passes, Action.REPEAT))] for n_passes in route.in_place_actions]
    for span in dict.fromkeys(span for _, span in route.loops):
        marks[span.first] = f"[{marks[span.first]}"
        marks[span.last] += "]"
    return "".join(marks)
