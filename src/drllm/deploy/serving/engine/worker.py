"""vLLM's worker, its model runner told which route each request takes: `--worker-cls drllm.deploy.serving.engine.worker.RoutedCPUWorker`.

Hooks into the V1 runner, all of them private to vLLM 0.32 (docs/serve.md): the attention group's `build_metadata`, to see a step's
metadata, and `_model_forward`, to hand the model its plan through the forward context.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from vllm.forward_context import get_forward_context
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.deploy.serving.engine.plan import Places, StepPlan, Undecided
from drllm.deploy.serving.engine.refusals import refuse_attention
from drllm.deploy.serving.spec import KEY, ROUTE_ARGUMENT, TICKET_ARGUMENT, ServeSpec
from drllm.policies.policy import Policy

MAX_TICKETS = 65536  # decided routes kept for whoever asks, the newest


class RouteKeeper:
    """The routes of the requests that an engine knows.

    Attributes:
        stats: steps, those with a route other than the base's, those of them in compiled stretches, subsets of rows built, requests
            resumed after preemption, most rows a step.
    """

    def __init__(self, spec: ServeSpec):
        self.spec = spec
        self.policy = load_policy(spec) if spec.mode == "engine" else None
        self.base = (1,) * spec.n_layers
        self.routes: dict[str, np.ndarray] = {}  # passes (L,), for as long as the engine knows the request
        self.places = Places()
        self.tickets: OrderedDict[str, str] = OrderedDict()  # what the policy decided, or "!" and why it could not
        self.stats = {"steps": 0, "routed_steps": 0, "stretched_steps": 0, "sets": 0, "resumed": 0, "most_rows": 0}

    def plan(self, batch: Any, requests: dict[str, Any], common: Any, build: Any, metadata: Any) -> StepPlan:
        """The routes of the rows of one step, from the runner's `input_batch` and `requests`."""
        n_rows = batch.num_reqs
        actions_RL = np.ones((n_rows, self.spec.n_layers), dtype=np.int8)
        undecided: dict[str, Undecided] = {}
        for row, request in enumerate(batch.req_ids[:n_rows]):
            state = requests[request]
            route = self._route_of(request, state)
            if route is None:  # samples of one prompt are decided once
                ticket = _argument(state, TICKET_ARGUMENT) or request
                undecided.setdefault(ticket, Undecided(ticket, self.policy)).rows.append(row)
            elif route is not self.base:
                actions_RL[row] = route
            self.stats["resumed"] += bool(state.output_token_ids) and int(batch.num_computed_tokens_cpu[row]) == 0
        self.stats["steps"] += 1
        self.stats["most_rows"] = max(self.stats["most_rows"], n_rows)
        return StepPlan(actions_RL, common, build, metadata, list(undecided.values()), self.places)

    def note(self, plan: StepPlan, batch: Any) -> None:
        """Remember what a step decided."""
        for one in plan.undecided:
            for row in one.rows:
                self.routes[batch.req_ids[row]] = plan.actions_RL[row].copy()
            self.tickets[one.ticket] = f"!{one.failure}" if one.failure else str(Route(plan.actions_RL[one.rows[0]].tolist()))
            while len(self.tickets) > MAX_TICKETS:
                self.tickets.popitem(last=False)
        self.stats["routed_steps"] += not plan.is_base
        self.stats["stretched_steps"] += plan.stretched
        self.stats["sets"] += plan.n_sets

    def forget(self, requests: Any) -> None:
        """Requests that are over."""
        for request in requests:
            self.routes.pop(request, None)

    def _route_of(self, request: str, state: Any) -> Any:
        """A request's passes block by block: forced, decided earlier, or the base's; None where the policy has yet to decide."""
        if request in self.routes:
            return self.routes[request]
        asked = _argument(state, ROUTE_ARGUMENT)
        if asked is None and self.policy is None:
            return self.base
        ticket = _argument(state, TICKET_ARGUMENT)
        known = asked if asked is not None else self.tickets.get(ticket, "!")
        if known.startswith("!"):
            return None
        self.routes[request] = np.array([int(action) for action in known], dtype=np.int8)
        return self.routes[request]


def _argument(state: Any, name: str) -> Any:
    return ((state.sampling_params and state.sampling_params.extra_args) or {}).get(name)


class RoutedRunner:
    """Stands before a V1 model runner class."""

    drllm_keeper: RouteKeeper
    drllm_common: Any = None  # the step's CommonAttentionMetadata

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)  # type: ignore[misc]
        groups = [group for groups in self.attn_groups for group in groups]  # type: ignore[attr-defined]
        known = self.compilation_config.static_forward_context  # type: ignore[attr-defined]
        windows = {known[name].sliding_window for group in groups for name in group.layer_names}
        refuse_attention(groups[0].backend.get_name(), len(groups), windows)
        (self.drllm_group,) = groups
        original = self.drllm_group.build_metadata

        def build_metadata(common: Any, *args: Any, **kwargs: Any) -> Any:
            self.drllm_common = common
            return original(common, *args, **kwargs)

        self.drllm_build = lambda common: original(common, 0)
        self.drllm_group.build_metadata = build_metadata

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        context, keeper = get_forward_context(), self.drllm_keeper
        common, self.drllm_common = self.drllm_common, None
        if keeper.spec.mode == "static" or context.attn_metadata is None:  # none where vLLM profiles and warms up
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        if common is None or not isinstance(context.attn_metadata, dict):
            raise UnsupportedModelError("this step's attention metadata is not what drllm knows, so its rows cannot be routed")
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        metadata = context.attn_metadata[self.drllm_group.layer_names[0]]
        plan = keeper.plan(batch, self.requests, common, self.drllm_build, metadata)  # type: ignore[attr-defined]
        context.additional_kwargs[KEY] = plan
        out = super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        keeper.note(plan, batch)
        return out

    def _update_states(self, scheduler_output: Any) -> Any:
        self.drllm_keeper.forget(scheduler_output.finished_req_ids)
        return super()._update_states(scheduler_output)  # type: ignore[misc]


class RoutedWorker:
    """Stands before a worker class, whose runner it turns into a `RoutedRunner`."""

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        spec = ServeSpec.from_config(self.vllm_config.additional_config)  # type: ignore[attr-defined]
        if spec is None:
            raise UnsupportedModelError("this worker is started by `drllm serve`, which says what to route")
        runner: Any = self.model_runner  # type: ignore[has-type]
        runner.__class__ = type(f"Routed{type(runner).__name__}", (RoutedRunner, type(runner)), {})
        runner.drllm_keeper = RouteKeeper(spec)

    def compile_or_warm_up_model(self) -> Any:
        self.model_runner.get_model().prepare()  # type: ignore[attr-defined]
        return super().compile_or_warm_up_model()  # type: ignore[misc]

    def drllm_route(self, ticket: str) -> str | None:
        """The route decided in the engine for the request that carried this ticket, or "!" and why none could be."""
        return self.model_runner.drllm_keeper.tickets.get(ticket)  # type: ignore[attr-defined]

    def drllm_stats(self) -> dict[str, int]:
        """See `RouteKeeper.stats`."""
        return dict(self.model_runner.drllm_keeper.stats)  # type: ignore[attr-defined]


class RoutedCPUWorker(RoutedWorker, CPUWorker):
    """On a processor."""


class RoutedGPUWorker(RoutedWorker, Worker):
    """On a GPU: the same hooks, untested there."""


def load_policy(spec: ServeSpec) -> Policy:
    """The saved policy; whether it fits the weights was checked when the server was started."""
    from drllm.policies.policy import policy_class
    from drllm.policies.saved import check_files, read

    folder = Path(spec.policy)
    saved = read(folder)
    check_files(folder, saved)
    return policy_class(saved.policy).load(folder)
