"""A clock around a policy's decisions."""

import time
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from drllm.core.route import Route, Visit
from drllm.policies.policy import Decider, RouteSource


class WrappedSource(RouteSource):
    """Decides as the policy inside does; a subclass watches its `start`."""

    def __init__(self, source: RouteSource):
        self.source = source
        self.n_layers, self.hidden_size = source.n_layers, source.hidden_size
        self.prompt_format, self.promise, self.route = source.prompt_format, source.promise, source.route
        self.adapters = source.adapters

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route] | None:
        return self.source.routes_for(prompts)


class TimedPolicy(WrappedSource):
    name: ClassVar[str] = "timed"

    def __init__(self, source: RouteSource):
        super().__init__(source)
        self.seconds = 0.0  # of all prefills together
        self.prefills: list[float] = []  # of each prefill

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route] | None:
        """The policy's; each prefill asks once, and then `start`, where there are none."""
        self.prefills.append(0.0)
        started = time.perf_counter()
        routes = self.source.routes_for(prompts)
        self.add(time.perf_counter() - started)
        return routes

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        started = time.perf_counter()
        decider = self.source.start(prompt_mask_BT)
        self.add(time.perf_counter() - started)
        return _TimedDecider(decider, self)

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.prefills[-1] += seconds


class _TimedDecider(Decider):
    def __init__(self, decider: Decider, clock: TimedPolicy):
        self._decider, self._clock = decider, clock

    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        if x_BTD.is_cuda:
            torch.cuda.synchronize(x_BTD.device)  # the blocks' queued work is not the routers'
        started = time.perf_counter()
        decided = self._decider.decide(block, x_BTD)
        if isinstance(decided, Tensor):
            decided = decided.cpu()  # waits for a device, so that its work is counted here
        self._clock.add(time.perf_counter() - started)
        return decided

    @property
    def routes(self) -> list[Route] | None:
        """As soon as the one inside has them, so that a prompt is read no further."""
        return self._decider.routes
