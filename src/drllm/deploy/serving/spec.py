"""What a server serves, as plain values: made by `drllm serve`, carried to every process in vLLM's `additional_config`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route

KEY = "drllm"  # of vLLM's additional_config
ROUTE_ARGUMENT = "drllm_route"  # of a request's vllm_xargs
TICKET_ARGUMENT = "drllm_ticket"  # the server's own, under which a route decided in the engine can be asked for
MODES = ("static", "book", "engine", "forced")


@dataclass(frozen=True)
class ServeSpec:
    """How a server decides routes.

    Attributes:
        mode: `static`: one route, compiled in. `book`: a codebook decides before the engine. `engine`: the policy decides inside, at
            prefill. `forced`: a request's own `drllm_route`, else the base.
        n_layers: L.
        policy: the saved policy's folder; "" for `forced`.
        route: the one route, of `static`.
        repeatable: blocks that have keys and values for a second pass; what they cost in cache is paid whether or not a route repeats.
        routes: those that requests will mostly take, where they are known: what they have in common is compiled.
        decided: the block before which a codebook in the engine chooses; 0 for all else.
        prompt_format: "raw" or "chat", what a policy that reads prompts was trained on; None takes both.
    """

    mode: str
    n_layers: int
    policy: str = ""
    route: str | None = None
    repeatable: tuple[int, ...] = ()
    routes: tuple[str, ...] = ()
    decided: int = 0
    prompt_format: str | None = None

    def __post_init__(self) -> None:
        for name in ("repeatable", "routes"):  # lists, where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.mode not in MODES:
            raise InputError(f"serving mode {self.mode!r} is none of {', '.join(MODES)}")
        if any(not 0 <= block < self.n_layers for block in self.repeatable):
            raise InputError(f"repeatable blocks {list(self.repeatable)} are not all among the model's {self.n_layers} (0 is the first)")
        if (self.mode == "static") != (self.route is not None):
            raise InputError("a static server needs its one route, and no other has one")
        for text in (*self.routes, *([] if self.route is None else [self.route])):
            self.check(text)

    def check(self, text: Any) -> Route:
        """The route that a request asks for; `InputError` for anything that this server cannot run."""
        if not isinstance(text, str) or len(text) > 4 * self.n_layers:
            raise InputError(f"{ROUTE_ARGUMENT} must be a string of {self.n_layers} digits, 0 (skip), 1 (execute) or 2 (repeat)")
        route = Route.parse(text)
        if len(route) != self.n_layers:
            raise InputError(f"{ROUTE_ARGUMENT} has {len(route)} digits, the model has {self.n_layers} blocks")
        if not route.n_passes:
            raise InputError(f"{ROUTE_ARGUMENT} runs no block")
        if self.mode == "static":
            if text != self.route:
                raise InputError(f"this server runs one route, {self.route}: leave {ROUTE_ARGUMENT} out")
        elif extra := [block for block, action in enumerate(route) if action == 2 and block not in self.repeatable]:
            what = f"{ROUTE_ARGUMENT} repeats block {extra[0]}, the server keeps no second cache for it"
            raise InputError(f"{what}: start it with --repeatable")
        return route

    def to_config(self) -> dict[str, Any]:
        """For vLLM's `additional_config`: JSON values, part of its compile cache's key."""
        return {KEY: asdict(self) | {"repeatable": list(self.repeatable), "routes": list(self.routes)}}

    @classmethod
    def required(cls, additional_config: Any) -> ServeSpec:
        """As `from_config`; `UnsupportedModelError` where there is none."""
        if (spec := cls.from_config(additional_config)) is None:
            raise UnsupportedModelError("drllm's model and worker are started by `drllm serve`, which says what to route")
        return spec

    @classmethod
    def from_config(cls, additional_config: Any) -> ServeSpec | None:
        """Read back what `to_config` wrote; None where there is none."""
        values = additional_config.get(KEY) if isinstance(additional_config, dict) else None
        return None if values is None else cls(**values)
