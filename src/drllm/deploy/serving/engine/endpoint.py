"""vLLM's `vllm.endpoint_plugins` entry point: each request's route is decided, and handed to the engine.

The engine client's `generate` is the one call that every endpoint makes, so it is there that a route becomes two things the engine acts
on: `drllm_route` among the sampling parameters' extra arguments, and a cache salt, without which the prefix cache would hand one route's
keys and values to another.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.deploy.serving.engine.answers import CALL, Decisions, Taken
from drllm.deploy.serving.engine.vllm_private import replace_beam_search, validation_error
from drllm.deploy.serving.engine.worker import load_policy
from drllm.deploy.serving.spec import PROMPT_ARGUMENT, ROUTE_ARGUMENT, ServeSpec
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import RouteSource


class RoutesPlugin:
    """The `EndpointPlugin` of a routed server; attaches nothing to any other."""

    name = "drllm"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """No path of its own."""

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        if engine_client is not None and (spec := ServeSpec.from_config(engine_client.vllm_config.additional_config)) is not None:
            engine_client.generate = RequestRouter(spec, engine_client).generate
            replace_beam_search(state, _refuse_beams)


class RequestRouter:
    """Gives each request its route, before or inside the engine."""

    def __init__(self, spec: ServeSpec, engine_client: Any):
        self.spec = spec
        self.submit = engine_client.generate  # vLLM's own
        self.decisions = Decisions(engine_client)
        self.salted = engine_client.vllm_config.cache_config.enable_prefix_caching
        self.policy: RouteSource = load_policy(spec) if spec.policy else RoutePolicy(Route.full(spec.n_layers))
        self.n_tokens = engine_client.model_config.get_vocab_size()

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """As the engine client's own; what cannot be run is refused here, before an answer begins."""
        call = CALL.get()
        text, trained = (sampling_params.extra_args or {}).get(ROUTE_ARGUMENT), self.spec.prompt_format
        try:
            forced = None if text is None else self.spec.check(text)
        except InputError as error:
            raise validation_error(str(error), parameter=f"vllm_xargs.{ROUTE_ARGUMENT}") from None
        if forced is None and call is not None and trained is not None and call.prompt_format != trained:
            what = f"the policy was trained on {trained!r} prompts, this endpoint sends {call.prompt_format!r}"
            path = "/v1/completions" if trained == "raw" else "/v1/chat/completions"
            do = f"use {path}, force a route, or start the server with --any-format"
            raise validation_error(f"{what}, where its routes would be arbitrary: {do}")
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if not ids:
            raise validation_error("routes are for prompts of tokens: embeddings and encoder inputs are not served here")
        if min(ids) < 0 or max(ids) >= self.n_tokens:
            raise validation_error(f"token id {max(ids) if min(ids) >= 0 else min(ids)} is out of the vocabulary of {self.n_tokens}")
        taken = Taken() if call is None else call.take()
        if forced is not None:
            taken.set(forced, "request")
        else:
            started = time.perf_counter()
            if (routes := self.policy.routes_for([ids])) is not None:
                taken.set(routes[0], "policy" if self.policy.route is None else "server", time.perf_counter() - started)
        return self._run(prompt, sampling_params, request_id, kwargs, taken)

    async def _run(self, prompt: Any, params: Any, request_id: str, kwargs: dict[str, Any], taken: Taken) -> AsyncGenerator[Any, None]:
        """Hand a request to the engine with its route, or with the name by which the policy's decision there is asked for."""
        name, params = "", params.clone()
        ours = (PROMPT_ARGUMENT, ROUTE_ARGUMENT)
        params.extra_args = {key: value for key, value in (params.extra_args or {}).items() if key not in ours}
        if taken.route is None:
            name = params.extra_args[PROMPT_ARGUMENT] = uuid.uuid4().hex
            self.decisions.expect(name)
        elif self.spec.mode != "static":
            route = self.spec.laid(taken.route)
            if not route.is_full or self.spec.mode == "engine":  # in the engine the policy would decide
                params.extra_args[ROUTE_ARGUMENT] = str(route)
            salt = prompt.get("cache_salt")
            if self.salted and (salt or not route.is_full):  # a client's own salt must never pass for a route
                prompt = {**prompt, "cache_salt": f"{route}|{salt or ''}"}
        outputs = self.submit(prompt, params, request_id, **kwargs)
        try:
            async for output in outputs:
                if taken.route is None:
                    decision = await self.decisions.take(name)
                    if decision.failure:
                        raise validation_error(f"the policy could not decide: {decision.failure}")
                    taken.set(Route.parse(decision.route, self.spec.n_layers), "policy")
                yield output
        finally:
            self.decisions.drop(name)
            await outputs.aclose()


def _refuse_beams(*args: Any, **kwargs: Any) -> Any:
    raise validation_error("beam search asks the engine anew for every token, so no prompt would keep its route: leave use_beam_search out")
