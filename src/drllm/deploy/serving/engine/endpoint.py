"""vLLM's `vllm.endpoint_plugins` entry point: each request's route is decided, handed to the engine, and counted.

The engine client's `generate` is the one call that every endpoint makes, so it is there that a route becomes two things the engine acts
on: `drllm_route` among the sampling parameters' extra arguments, and a cache salt, without which the prefix cache would hand one route's
keys and values to another.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from prometheus_client import Counter, Gauge

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.deploy.serving.engine.answers import CALL, Taken
from drllm.deploy.serving.engine.decisions import Decisions
from drllm.deploy.serving.engine.vllm_private import replace_beam_search, validation_error
from drllm.deploy.serving.engine.worker import load_policy
from drllm.deploy.serving.spec import PROMPT_ARGUMENT, ROUTE_ARGUMENT, ServeSpec
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import RouteSource

MAX_LABELS = 64  # distinct routes counted by name; what comes later counts as "other"
logger = logging.getLogger("vllm.drllm")


class RoutesPlugin:
    """The `EndpointPlugin` of a routed server; attaches nothing to any other."""

    name = "drllm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """The playground, and what it needs to know."""
        app.add_api_route("/drllm", _page, methods=["GET"], response_class=HTMLResponse, include_in_schema=False)
        app.add_api_route("/drllm/info", lambda: app.state.drllm, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Stand before the engine client's `generate`."""
        state.drllm = None
        if engine_client is None or (spec := ServeSpec.from_config(engine_client.vllm_config.additional_config)) is None:
            return
        router = RequestRouter(spec, engine_client)
        engine_client.generate = router.generate
        replace_beam_search(state, _refuse_beams)
        names = args.served_model_name or [args.model]
        served = {name: getattr(spec, name) for name in ("mode", "n_layers", "route", "repeatable", "prompt_format")}
        chat, usual = engine_client.get_tokenizer().chat_template is not None, router.policy.route
        state.drllm = served | {"model": names[0], "routes": router.routes, "chat": chat, "usual": None if usual is None else str(usual)}
        logger.info("drllm: mode %s; playground: http://%s:%s/drllm", spec.mode, args.host, args.port)


class RequestRouter:
    """Gives each request its route, before or inside the engine."""

    def __init__(self, spec: ServeSpec, engine_client: Any):
        self.spec = spec
        self.submit = engine_client.generate  # vLLM's own
        self.decisions = Decisions(engine_client)
        self.salted = engine_client.vllm_config.cache_config.enable_prefix_caching
        self.policy: RouteSource = load_policy(spec) if spec.policy else RoutePolicy(Route.full(spec.n_layers))
        self.routes: list[str] = list(spec.routes) if spec.route is None else [spec.route]
        self.n_tokens = engine_client.model_config.get_vocab_size()
        self.counts = Counts(spec.n_layers, ["1" * spec.n_layers, *self.routes])

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
        return self._run(prompt, len(ids), sampling_params, request_id, kwargs, taken)

    async def _run(
        self, prompt: Any, n_prompt: int, params: Any, request_id: str, kwargs: dict[str, Any], taken: Taken
    ) -> AsyncGenerator[Any, None]:
        """Hand a request to the engine with its route, or with the name by which the policy's decision there is asked for."""
        name, params = "", params.clone()
        ours = (PROMPT_ARGUMENT, ROUTE_ARGUMENT)
        params.extra_args = {key: value for key, value in (params.extra_args or {}).items() if key not in ours}
        if taken.route is None:
            name = params.extra_args[PROMPT_ARGUMENT] = uuid.uuid4().hex
            self.decisions.expect(name)
        elif self.spec.mode != "static":
            if not taken.route.is_full or self.spec.mode == "engine":  # in the engine the policy would decide
                params.extra_args[ROUTE_ARGUMENT] = str(taken.route)
            salt = prompt.get("cache_salt")
            if self.salted and (salt or not taken.route.is_full):  # a client's own salt must never pass for a route
                prompt = {**prompt, "cache_salt": f"{taken.route}|{salt or ''}"}
        outputs = self.submit(prompt, params, request_id, **kwargs)
        made: dict[int, int] = {}  # tokens of each sample: of a stream an output holds those since the last, else all so far
        n_cached, left = 0, False
        try:
            async for output in outputs:
                if taken.route is None:
                    decision = await self.decisions.take(name)
                    if decision.failure:
                        raise validation_error(f"the policy could not decide: {decision.failure}")
                    taken.set(Route.parse(decision.route, self.spec.n_layers), "policy")
                n_cached = output.num_cached_tokens or n_cached
                made |= {sample.index: made.get(sample.index, 0) + len(sample.token_ids) for sample in output.outputs}
                yield output
        except (GeneratorExit, asyncio.CancelledError):
            left = True
            raise
        finally:
            self.decisions.drop(name)
            await outputs.aclose()
            if taken.route is not None and (made or left):  # else the engine refused it
                # The prompt, less what the prefix cache held, and every token made but each sample's last, which nothing follows.
                self.counts.add(taken, max(0, n_prompt - n_cached) + sum(max(0, n - 1) for n in made.values()) if made else 0)


class Counts:
    """What Prometheus scrapes at /metrics, beside vLLM's own."""

    def __init__(self, n_layers: int, routes: Sequence[str]):
        self.n_layers = n_layers
        self.named = set(routes[:MAX_LABELS])  # a client's forced routes must not crowd out the policy's
        self.requests = Counter("drllm_requests", "Requests that took a route, by route and by who decided it", ["route", "decided"])
        self.run = Counter("drllm_block_passes", "Block passes run, one a token and block")
        self.base = Counter("drllm_block_passes_base", "Block passes that the base would have run for the same tokens")
        self.saved = Gauge("drllm_block_passes_saved", "The difference; below 0 where more is repeated than skipped")

    def add(self, taken: Taken, n_tokens: int) -> None:
        """Count one request of so many tokens."""
        assert taken.route is not None
        if taken.decided == "policy" and len(self.named) < MAX_LABELS:
            self.named.add(str(taken.route))
        self.requests.labels(str(taken.route) if str(taken.route) in self.named else "other", taken.decided).inc()
        run, base = taken.route.n_passes * n_tokens, self.n_layers * n_tokens
        self.run.inc(run)
        self.base.inc(base)
        self.saved.inc(base - run)


def _refuse_beams(*args: Any, **kwargs: Any) -> Any:
    raise validation_error("beam search asks the engine anew for every token, so no prompt would keep its route: leave use_beam_search out")


def _page() -> HTMLResponse:
    page = Path(str(resources.files("drllm.deploy.serving") / "static" / "playground.html")).read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})
