"""vLLM's worker, its model runner told which route each request takes: `--worker-cls drllm.serving.engine.worker.RoutedCPUWorker`.

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

from drllm.errors import UnsupportedModelError
from drllm.model.policy import Policy
from drllm.routes import Route
from drllm.serving.engine.plan import StepPlan, Undecided
from drllm.serving.spec import KEY, ROUTE_ARGUMENT, ServeSpec

TICKET_ARGUMENT = "drllm_ticket"  # under which a decided route can be asked for
MAX_TICKETS = 65536  # decided routes kept for whoever asks, the newest


class RoutedRunner:
    """Stands before a V1 model runner class."""

    spec: ServeSpec
    policy: Policy | None
    common: Any  # the step's CommonAttentionMetadata

    def prepare(self, spec: ServeSpec) -> None:
        """Set up, before any step."""
        self.spec = spec
        self.policy = load_policy(spec) if spec.mode == "engine" else None
        self.common = None
        self.base = (1,) * spec.n_layers
        self.decided: dict[str, list[int]] = {}  # by request, for as long as the runner knows it
        self.tickets: OrderedDict[str, str] = OrderedDict()
        self.stats = {"steps": 0, "routed_steps": 0, "sets": 0, "resumed": 0, "most_rows": 0}

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)  # type: ignore[misc]
        groups = [group for groups in self.attn_groups for group in groups]  # type: ignore[attr-defined]
        if len(groups) != 1:
            raise UnsupportedModelError(f"routes need one attention group in the cache, this model has {len(groups)}")
        (self.group,) = groups
        original = self.group.build_metadata

        def build_metadata(common: Any, *args: Any, **kwargs: Any) -> Any:
            self.common = common
            return original(common, *args, **kwargs)

        self.build = lambda common: original(common, 0)
        self.group.build_metadata = build_metadata

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        context = get_forward_context()
        common, self.common = self.common, None
        if self.spec.mode != "static" and common is not None and isinstance(context.attn_metadata, dict):
            context.additional_kwargs[KEY] = plan = self.plan(common, context.attn_metadata[self.group.layer_names[0]])
            out = super()._model_forward(*args, **kwargs)  # type: ignore[misc]
            for one in plan.undecided:
                self.note(one)
            self.stats["routed_steps"] += not plan.is_base
            self.stats["sets"] += plan.n_sets
            return out
        return super()._model_forward(*args, **kwargs)  # type: ignore[misc]

    def plan(self, common: Any, metadata: Any) -> StepPlan:
        """The routes of the rows of this step."""
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        n_rows = batch.num_reqs
        actions_RL = np.ones((n_rows, self.spec.n_layers), dtype=np.int8)
        undecided = []
        for row, request in enumerate(batch.req_ids[:n_rows]):
            state = self.requests[request]  # type: ignore[attr-defined]
            route = self.route_of(request, state)
            fresh = int(batch.num_computed_tokens_cpu[row]) == 0
            if fresh and state.output_token_ids:
                self.stats["resumed"] += 1
            if route is None:
                if not fresh or int(common.query_start_loc_cpu[row + 1] - common.query_start_loc_cpu[row]) < state.num_prompt_tokens:
                    raise UnsupportedModelError("a policy in the engine needs whole prompts: no chunked prefill, no prefix cache")
                assert self.policy is not None
                undecided.append(Undecided(row, self.policy, []))
            elif route is not self.base:
                actions_RL[row] = route
        self.stats["steps"] += 1
        self.stats["most_rows"] = max(self.stats["most_rows"], n_rows)
        return StepPlan(actions_RL, common, self.build, metadata, undecided)

    def route_of(self, request: str, state: Any) -> Any:
        """A request's passes block by block: forced, decided earlier, or the base's; None where the policy has yet to decide."""
        if request in self.decided:
            return self.decided[request]
        asked = ((state.sampling_params and state.sampling_params.extra_args) or {}).get(ROUTE_ARGUMENT)
        if asked is not None:
            route = self.decided[request] = [int(action) for action in self.spec.check(asked)]
            return route
        return None if self.policy is not None else self.base

    def note(self, one: Undecided) -> None:
        """Remember what was decided."""
        request = self.input_batch.req_ids[one.row]  # type: ignore[attr-defined]
        self.decided[request] = one.actions
        extra = self.requests[request].sampling_params.extra_args or {}  # type: ignore[attr-defined]
        if ticket := extra.get(TICKET_ARGUMENT):
            self.tickets[ticket] = str(Route(one.actions))
            while len(self.tickets) > MAX_TICKETS:
                self.tickets.popitem(last=False)

    def _update_states(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.finished_req_ids:
            self.decided.pop(request, None)
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
        runner.prepare(spec)

    def drllm_route(self, ticket: str) -> str | None:
        """The route decided in the engine for the request that carried this ticket, told once."""
        return self.model_runner.tickets.pop(ticket, None)  # type: ignore[attr-defined]

    def drllm_stats(self) -> dict[str, int]:
        """Steps, steps with a route other than the base's, subsets of rows built, requests resumed after preemption, most rows a step."""
        return dict(self.model_runner.stats)  # type: ignore[attr-defined]


class RoutedCPUWorker(RoutedWorker, CPUWorker):
    """On a processor."""


class RoutedGPUWorker(RoutedWorker, Worker):
    """On a GPU: the same hooks, untested there."""


def load_policy(spec: ServeSpec) -> Policy:
    """The saved policy that decides in the engine; whether it fits the weights was checked when the server was started."""
    from drllm.model.artifact import check_files, read
    from drllm.model.policy import policy_class

    folder = Path(spec.policy)
    saved = read(folder)
    check_files(folder, saved)
    return policy_class(saved.policy).load(folder)
