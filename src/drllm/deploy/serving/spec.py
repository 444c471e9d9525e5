"""What a server serves, as plain values: made by `drllm serve`, carried to every process in vLLM's `additional_config`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.route import Route

KEY = "drllm"  # of vLLM's additional_config
ROUTE_ARGUMENT = "drllm_route"  # of a request's vllm_xargs
PROMPT_ARGUMENT = "drllm_prompt"  # the server's own: one for all samples of a prompt, whose decision in the engine is asked for by it
TEXT_A_BLOCK, SHORTEST_LIMIT = 16, 256  # characters of a request's route: every path of some spans fits
MODES = ("static", "routes", "engine")


@dataclass(frozen=True)
class ServeSpec:
    """How a server decides routes.

    Its mode is `static`: one route, compiled in; `routes`: a route a request, which comes with it (its own `drllm_route`, else what the
    policy chooses from its tokens before the engine, else the base's); or `engine`: the policy decides inside, at prefill.
    """

    mode: str
    n_layers: int
    policy: str = ""  # its folder
    route: str | None = None  # the one route, of `static`
    repeatable: tuple[int, ...] = ()  # blocks with keys and values for a second pass, once more for each beyond: paid for, made or not
    routes: tuple[str, ...] = ()  # those that requests will mostly take, where they are known: what they have in common is compiled
    healed: tuple[str, ...] = ()  # of them, each merged into blocks of its own, which stand in this order behind the base's
    prompt_format: str | None = None  # "raw" or "chat", what a policy that reads prompts was trained on; None takes both

    def __post_init__(self) -> None:
        for name in ("repeatable", "routes", "healed"):  # lists, where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.mode not in MODES:
            raise InputError(f"serving mode {self.mode!r} is none of {', '.join(MODES)}")
        if any(not 0 <= block < self.of_base for block in self.repeatable):
            raise InputError(f"repeatable blocks {list(self.repeatable)} are not all among the model's {self.of_base} (0 is the first)")
        if (self.mode == "static") != (self.route is not None):
            raise InputError("a static server needs its one route, and no other has one")
        for text in (*self.routes, *([] if self.route is None else [self.route])):
            self.check(text)

    @cached_property
    def fixed(self) -> Route | None:
        return None if self.route is None else Route.parse(self.route, self.n_layers)

    @cached_property
    def n_caches(self) -> tuple[int, ...]:
        """For each block, how many passes of a request have keys and values."""
        if (fixed := self.fixed) is not None:
            return tuple(map(int, fixed.actions))
        return tuple(1 + self.repeatable.count(block) for block in range(self.n_layers))

    @cached_property
    def first_blocks(self) -> dict[str, int]:
        """Where the blocks of each healed route begin in the checkpoint."""
        starts, at = dict[str, int](), self.n_layers
        for text in reversed(self.healed):
            at = starts[text] = at - Route.parse(text).n_passes
        return starts

    @property
    def of_base(self) -> int:
        """Blocks of the checkpoint that are the base's."""
        return min(self.first_blocks.values(), default=self.n_layers)

    def laid(self, route: Route) -> Route:
        """A route that `check` took, through the blocks of the checkpoint."""
        if not route.adapter:
            return Route.along(route.spans, self.n_layers) if self.healed else route
        return Route.along(range(first := self.first_blocks[str(route)], first + route.n_passes), self.n_layers)

    @cached_property
    def laid_routes(self) -> list[str]:
        return [str(self.laid(self.check(text))) for text in self.routes]

    def check(self, text: Any) -> Route:
        """The route that a request asks for; `InputError` for anything that this server cannot run."""
        longest = max(SHORTEST_LIMIT, TEXT_A_BLOCK * self.n_layers)
        if not isinstance(text, str) or len(text) > longest:
            digits = f"{self.of_base} digits, 0 (skip), 1 (execute) or 2 (repeat)"
            raise InputError(
                f"{ROUTE_ARGUMENT} must be a string: {digits}, or a path such as 0-14,12-{self.of_base - 1}, up to {longest} long"
            )
        route = Route.parse(text, self.of_base)
        if route.adapter and str(route) not in self.healed:
            held = f"of healed routes it holds {', '.join(self.healed)}" if self.healed else "the server holds no adapter"
            raise InputError(f"{ROUTE_ARGUMENT} {text} is healed, and {held}: serve its policy")
        if not route.n_passes:
            raise InputError(f"{ROUTE_ARGUMENT} runs no block")
        if self.mode == "static":
            if route != self.fixed:
                raise InputError(f"this server runs one route, {self.route}: leave {ROUTE_ARGUMENT} out")
            return route
        for block, (n_passes, n_caches) in enumerate(zip(route.actions, self.n_caches, strict=False)):
            if n_passes > n_caches and not route.adapter:
                flag = f"--repeatable {block}" if n_passes == 2 else f"--repeatable {block}:{n_passes}"
                what = f"{ROUTE_ARGUMENT} runs block {block} {n_passes} times, the server keeps caches for {n_caches}"
                raise InputError(f"{what}: start it with {flag}")
        return route

    def to_config(self) -> dict[str, Any]:
        """For vLLM's `additional_config`: JSON values, part of its compile cache's key."""
        return {KEY: asdict(self) | {name: list(getattr(self, name)) for name in ("repeatable", "routes", "healed")}}

    @classmethod
    def required(cls, additional_config: Any) -> ServeSpec:
        """As `from_config`; `UnsupportedModelError` where there is none."""
        if (spec := cls.from_config(additional_config)) is None:
            raise UnsupportedModelError("drllm's model and worker are started by `drllm serve`, which says what to route")
        return spec

    @classmethod
    def from_config(cls, additional_config: Any) -> ServeSpec | None:
        """What `to_config` wrote; None where there is none."""
        values = additional_config.get(KEY) if isinstance(additional_config, dict) else None
        return None if values is None else cls(**values)
