"""vLLM's worker with a route for each request: `--worker-cls drllm.deploy.serving.engine.worker.RoutedCPUWorker`."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.route import Route
from drllm.deploy.serving.engine.answers import Decision
from drllm.deploy.serving.engine.schedule import Laid, Loops, Places, Schedule, Undecided, lay_out
from drllm.deploy.serving.engine.vllm_private import HookedWorker, StepAttention, StepSequence, stock_class
from drllm.deploy.serving.spec import PROMPT_ARGUMENT, ROUTE_ARGUMENT, ServeSpec
from drllm.policies.policy import Policy

MAX_DECISIONS = 65536  # kept for whoever asks, the newest


class RouteKeeper:
    """The routes of the requests that an engine knows."""

    def __init__(self, spec: ServeSpec):
        self.is_static = spec.mode == "static"
        self.policy = load_policy(spec) if spec.mode == "engine" else None
        self.base = lay_out(Route.full(spec.n_layers))
        self.n_caches = spec.n_caches
        self.routes: dict[str, Laid] = {}  # for as long as the engine knows the request
        self.places = Places()
        self.decisions: OrderedDict[str, Decision] = OrderedDict()  # by prompt
        # Steps, those with other routes than the base's, those of them in segments, subsets built, requests resumed, sequences a step.
        self.stats = {"steps": 0, "routed_steps": 0, "segment_steps": 0, "sets": 0, "resumed": 0, "most_sequences": 0}

    def schedule(self, sequences: Sequence[StepSequence], attention: StepAttention) -> Schedule:
        actions_SL = np.ones((len(sequences), len(self.n_caches)), dtype=np.int8)
        loops: dict[int, Loops] = {}
        undecided: dict[str, Undecided] = {}
        for place, sequence in enumerate(sequences):
            route = self._route_of(sequence)
            if route is None:  # samples of one prompt are decided once
                prompt = sequence.arguments.get(PROMPT_ARGUMENT) or sequence.request
                undecided.setdefault(prompt, Undecided(prompt, self.policy)).sequences.append(place)
            elif route is not self.base:
                actions_SL[place] = route.actions
                if route.loops:
                    loops[place] = route.loops
            self.stats["resumed"] += sequence.is_resumed
        self.stats["steps"] += 1
        self.stats["most_sequences"] = max(self.stats["most_sequences"], len(sequences))
        return Schedule(actions_SL, attention, list(undecided.values()), self.places, loops, self.n_caches)

    def note(self, schedule: Schedule, sequences: Sequence[StepSequence]) -> None:
        for prompt in schedule.undecided:
            route = schedule.route_of(prompt.sequences[0])
            for place in prompt.sequences:
                self.routes[sequences[place].request] = lay_out(route)
            self.decisions[prompt.name] = Decision(failure=prompt.failure) if prompt.failure else Decision(str(route))
            while len(self.decisions) > MAX_DECISIONS:
                self.decisions.popitem(last=False)
        self.stats["routed_steps"] += not schedule.is_base
        self.stats["segment_steps"] += schedule.in_segments
        self.stats["sets"] += len(schedule.sets)

    def forget(self, requests: Iterable[str]) -> None:
        for request in requests:
            self.routes.pop(request, None)

    def _route_of(self, sequence: StepSequence) -> Laid | None:
        """A request's route: forced, decided earlier, or the base's; None where the policy has yet to decide."""
        if sequence.request in self.routes:
            return self.routes[sequence.request]
        known = sequence.arguments.get(ROUTE_ARGUMENT)
        if known is None and self.policy is None:
            return self.base
        if known is None:  # of an earlier sample of this prompt
            known = self.decisions.get(sequence.arguments.get(PROMPT_ARGUMENT, ""), Decision()).route
        if not known:
            return None
        self.routes[sequence.request] = lay_out(Route.parse(known, len(self.n_caches)))
        return self.routes[sequence.request]


class RoutedWorker(HookedWorker):
    """Stands before a worker class of vLLM."""

    @staticmethod
    def new_keeper(additional_config: Any) -> RouteKeeper:
        return RouteKeeper(ServeSpec.required(additional_config))

    def drllm_decisions(self, prompts: Sequence[str]) -> dict[str, list[str]]:
        """What was decided in the engine on each of these prompts; of those that are known."""
        known = self.keeper.decisions
        return {prompt: list(known[prompt]) for prompt in prompts if prompt in known}

    def drllm_stats(self) -> dict[str, int]:
        return dict(self.keeper.stats)


class RoutedCPUWorker(RoutedWorker, stock_class("CPUWorker")):
    """On a processor."""


class RoutedGPUWorker(RoutedWorker, stock_class("Worker")):
    """On a GPU: the same hooks, untested there."""


def load_policy(spec: ServeSpec) -> Policy:
    """The saved policy; whether it fits the weights was checked when the server was started."""
    from drllm.policies.saved import open_folder

    return open_folder(Path(spec.policy)).unchecked()
