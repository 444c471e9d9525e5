"""`drllm inspect`: what a policy saw of one prompt and what it decided, block by block."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Action, Route
from drllm.model.prompts import Prompt, encode_prompts
from drllm.model.routed import RoutedModel
from drllm.policies.codebook import Codebook, pool_prompt
from drllm.policies.policy import Policy
from drllm.policies.routers import PrefillRouters, Routers, pool_matrix

STYLES = {Action.SKIP: "blue", Action.EXECUTE: "dim", Action.REPEAT: "bold dark_orange3"}
MARKS = {Action.SKIP: "_", Action.EXECUTE: "|", Action.REPEAT: "#"}
BAR = 20  # characters of a probability of 1


@dataclass(frozen=True)
class Inspection:
    """One prompt under one policy.

    Attributes:
        policy, prompt_format: names.
        windows: the tokens of each window that routers pool; one window where a policy pools the whole prompt or reads none.
        dropped: tokens at the end that enter no window.
        probabilities: of skip, execute and repeat at each block, after the knob; None of a policy that has none.
        routes, values, threshold: of a code book, its routes, what each is worth (predicted gain plus the worth of saved passes, fractions)
            and what a route must be worth to be taken.
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
    route: Route
    text: str


def inspect(
    routed: RoutedModel, prompt: Prompt, policy: Policy | None = None, max_new_tokens: int = 16, check_prompt_format: bool = True
) -> Inspection:
    """Answer one prompt greedily and keep what the policy saw; `policy` defaults to the model's own.

    Raises `InputError` where there is no policy, it decides no route, or the prompt is not one `generate` takes.
    """
    policy = policy or routed.policy
    if policy is None:
        raise InputError("there is no policy to look into: give --policy, or set the model's")
    (ids,), prompt_format = encode_prompts(routed.tokenizer, [prompt])
    watched = _Watched(policy)
    output = routed.generate(
        [prompt], policy=watched, max_new_tokens=max_new_tokens, check_prompt_format=check_prompt_format, do_sample=False
    )[0]
    tokens = [routed.tokenizer.decode([token]) for token in ids]
    windows, dropped = [tokens], 0
    if isinstance(policy, Routers):
        windows, dropped = _windows(tokens, watched.mask_BT, policy.config.n_windows)
    return Inspection(
        policy.name, prompt_format, tuple(map(tuple, windows)), dropped, tuple(watched.probabilities) or None,
        policy.routes if isinstance(policy, Codebook) else (), tuple(watched.values),
        policy.points[policy.at].threshold if isinstance(policy, Codebook) and policy.points else 0.0, output.route, output.text or "",
    )  # fmt: skip


class _Watched(Policy):
    """A policy of which one prefill is kept. It decides as the policy does: the numbers are computed beside, from the same states."""

    name = "watched"

    def __init__(self, policy: Policy):
        self.policy = policy
        self.n_layers = policy.n_layers
        self.prompt_format = policy.prompt_format if policy.route is None else None  # one route for all takes both
        self.guarantee = policy.guarantee
        self.probabilities: list[tuple[float, ...]] = []
        self.values: list[float] = []
        self.mask_BT: Tensor
        self._started: Policy

    def check_model(self, n_layers: int, hidden_size: int) -> None:
        self.policy.check_model(n_layers, hidden_size)

    def start(self, prompt_mask_BT: Tensor) -> _Watched:
        self.mask_BT = prompt_mask_BT
        self._started = self.policy.start(prompt_mask_BT)
        return self

    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        if isinstance(self.policy, Routers) and isinstance(self._started, PrefillRouters):
            self.probabilities.append(tuple(self.policy.probabilities(self._started.logits(block, x_BTD))[0].tolist()))
        if isinstance(self.policy, Codebook) and block == self.policy.block and self.policy.points:
            self.values = self.policy.values(pool_prompt(x_BTD, prompt_mask_BT))[0].tolist()
        return self._started.decide(block, x_BTD, prompt_mask_BT)

    def save(self, folder: Any) -> list[str]:
        return self.policy.save(folder)

    @classmethod
    def load(cls, folder: Any) -> Policy:
        raise InputError("a watched policy is no artefact")


def _windows(tokens: list[str], mask_BT: Tensor, n_windows: int) -> tuple[list[list[str]], int]:
    """The tokens of each window, and how many enter none."""
    weights_WT = pool_matrix(mask_BT, n_windows)[0][0] > 0
    start = weights_WT.shape[1] - len(tokens)  # left padding
    found = [[tokens[place - start] for place in row.nonzero().flatten().tolist()] for row in weights_WT if bool(row.any())]
    return found, len(tokens) - sum(map(len, found))


def render(found: Inspection, width: int | None = None, colour: bool = False) -> str:
    """The inspection for a terminal; without colours it reads as well, so that it can be piped."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width or 100, color_system="standard" if colour else None, force_terminal=colour)
    parts: list[Any] = [_prompt(found), Text(""), _summary(found)]
    if found.probabilities is not None:
        parts += [Text(""), _block_table(found.probabilities, found.route)]
    if found.values:
        parts += [Text(f"\nthe route worth most is taken if that is more than {100 * found.threshold:+.2f} points; the base's is worth 0")]
        parts += [_route_table(found)]
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


def _summary(found: Inspection) -> Text:
    text = Text.assemble(("route   ", "bold"), _strip(found.route))
    return text.append(f"  {found.route.n_passes} block passes, the base {len(found.route)}  (_ skipped, | executed, # repeated)")


def _strip(route: Route) -> Text:
    return Text.assemble(*((MARKS[Action(action)], STYLES[Action(action)]) for action in route))


def _block_table(probabilities: Sequence[Sequence[float]], route: Route) -> Table:
    table = Table(box=None)
    for name in ("block", *(action.name.lower() for action in Action)):
        table.add_column(name, justify="right")
    table.add_column("decision")
    table.add_column("probability of it")
    for block, (row, action) in enumerate(zip(probabilities, route, strict=True)):
        chosen = Action(action)
        table.add_row(
            str(block), *(f"{value:.3f}" for value in row), Text(chosen.name.lower(), STYLES[chosen]), "=" * round(BAR * row[chosen])
        )
    return table


def _route_table(found: Inspection) -> Table:
    table = Table(box=None)
    for name, justify in (("worth, points", "right"), ("passes", "right"), ("route", "left"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for route, value in sorted(zip(found.routes[1:], found.values, strict=True), key=lambda pair: -pair[1]):
        table.add_row(f"{100 * value:+.2f}", str(route.n_passes), _strip(route), "taken" if route == found.route else "")
    return table
