"""vLLM's `vllm.endpoint_plugins` entry point: each request's route is decided, handed to the engine, and counted.

The engine client's `generate` is the one call that every endpoint makes, so it is there that a route becomes two things the engine acts
on: `drllm_route` among the sampling parameters' extra arguments, and a cache salt, without which the prefix cache would hand one route's
keys and values to another.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from prometheus_client import Counter, Gauge, Histogram

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.deploy.serving.engine.answers import CALL, Taken
from drllm.deploy.serving.engine.front import FrontSelector
from drllm.deploy.serving.engine.tickets import Tickets
from drllm.deploy.serving.engine.vllm_private import replace_beam_search, validation_error
from drllm.deploy.serving.engine.worker import load_policy
from drllm.deploy.serving.spec import ROUTE_ARGUMENT, TICKET_ARGUMENT, ServeSpec
from drllm.deploy.serving.traffic import ENOUGH, Counted, faster_place, traffic_file

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
        served = {name: getattr(spec, name) for name in ("mode", "n_layers", "route", "usual", "repeatable", "prompt_format")}
        chat, n_bytes = engine_client.get_tokenizer().chat_template is not None, router.front.n_bytes if router.front else 0
        state.drllm = served | {"model": names[0], "routes": router.routes, "chat": chat, "front_bytes": n_bytes}
        logger.info("drllm: mode %s, front selector of %d bytes; playground: http://%s:%s/drllm", spec.mode, n_bytes, args.host, args.port)


class RequestRouter:
    """Gives each request its route, before or inside the engine."""

    def __init__(self, spec: ServeSpec, engine_client: Any):
        self.spec = spec
        self.submit = engine_client.generate  # vLLM's own
        self.tickets = Tickets(engine_client)
        self.salted = engine_client.vllm_config.cache_config.enable_prefix_caching
        self.front: FrontSelector | None = None
        self.routes: list[str] = list(spec.routes) if spec.route is None else [spec.route]
        if spec.mode == "book":
            codebook: Any = load_policy(spec)
            config, device = engine_client.model_config, engine_client.vllm_config.device_config.device_type
            if device == "cpu":
                torch.set_num_threads(1)  # the engine needs the cores
            is_compiled = device == "cpu" and not config.enforce_eager
            self.front = FrontSelector(codebook, config.model, config.dtype, device, is_compiled, config.revision, self.salted)
        self.traffic: Counted | None = None  # where there is a choice of where to decide
        self.read = spec.decided or (self.front.codebook.block if self.front is not None else 0)
        if self.read:
            self.traffic = Counted(traffic_file(spec.policy), engine_client.vllm_config.cache_config.block_size)
        self.n_tokens = engine_client.model_config.get_vocab_size()
        self.advised = False
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
        if min(ids) < 0 or max(ids) >= self.n_tokens:  # the front selector sees a prompt before vLLM's own check
            raise validation_error(f"token id {max(ids) if min(ids) >= 0 else min(ids)} is out of the vocabulary of {self.n_tokens}")
        taken = Taken() if call is None else call.take()
        return self._run(prompt, list(ids), sampling_params, request_id, kwargs, forced, taken)

    async def _run(
        self, prompt: Any, ids: list[int], params: Any, request_id: str, kwargs: dict[str, Any], forced: Route | None, taken: Taken
    ) -> AsyncGenerator[Any, None]:
        ticket, params, n_read = "", params.clone(), 0
        ours = (TICKET_ARGUMENT, ROUTE_ARGUMENT)
        params.extra_args = {name: value for name, value in (params.extra_args or {}).items() if name not in ours}
        if forced is not None:
            taken.set(forced, "request")
        elif self.front is not None:
            try:
                route, seconds, n_read = await self.front.choose(ids, prompt.get("cache_salt") or "")
            except InputError as error:
                raise validation_error(" ".join(str(error).split())) from None
            self.counts.front.observe(seconds)
            taken.set(route, "policy", seconds)
        elif self.spec.mode == "engine":
            ticket = params.extra_args[TICKET_ARGUMENT] = uuid.uuid4().hex
        else:
            taken.set(self.spec.default, "server")
        if taken.route is not None and self.spec.mode != "static":
            if not taken.route.is_full or self.spec.mode == "engine":  # in the engine the policy would decide
                params.extra_args[ROUTE_ARGUMENT] = str(taken.route)
            salt = prompt.get("cache_salt")
            if self.salted and (salt or not taken.route.is_full):  # a client's own salt must never pass for a route
                prompt = {**prompt, "cache_salt": f"{taken.route}|{salt or ''}"}
        outputs = self.submit(prompt, params, request_id, **kwargs)
        made: dict[int, int] = {}  # tokens of each sample: of a stream an output holds those since the last, else all so far
        n_cached, left = 0, False
        if ticket:
            self.tickets.expect(ticket)
        try:
            async for output in outputs:
                if taken.route is None:
                    found = await self.tickets.take(ticket)
                    if found is None or found.startswith("!"):
                        raise validation_error(f"the policy could not decide: {(found or '!its route is not known').removeprefix('!')}")
                    taken.set(Route.parse(found, self.spec.n_layers), "policy")
                n_cached = output.num_cached_tokens or n_cached
                made |= {sample.index: made.get(sample.index, 0) + len(sample.token_ids) for sample in output.outputs}
                yield output
        except (GeneratorExit, asyncio.CancelledError):
            left = True
            raise
        finally:
            self.tickets.drop(ticket)
            await outputs.aclose()
            if taken.route is not None and (made or left):  # else the engine refused it
                read = self.front.codebook.block * n_read if self.front is not None else 0
                # The prompt, less what the prefix cache held, and every token made but each sample's last, which nothing follows.
                n_run = max(0, len(ids) - n_cached) + sum(max(0, n - 1) for n in made.values()) if made else 0
                self.counts.add(taken, n_run, read)
                if self.traffic is not None and taken.decided == "policy":
                    self._count(self.traffic, ids, str(taken.route))

    def _count(self, traffic: Counted, ids: list[int], route: str) -> None:
        """Count one prompt; say once, when there are enough, where the policy had better decide."""
        found = traffic.add(ids, route)
        if found.prompts < ENOUGH or self.advised:
            return
        self.advised = True
        place, why = faster_place(found, self.read, self.spec.n_layers, keeps=self.front is None or self.salted)
        if place != ("engine" if self.spec.mode == "engine" else "front"):
            logger.info("drllm: %s; --decide auto takes --decide %s at the next start", why, place)


class Counts:
    """What Prometheus scrapes at /metrics, beside vLLM's own."""

    def __init__(self, n_layers: int, routes: Sequence[str]):
        self.n_layers = n_layers
        self.named = set(routes[:MAX_LABELS])  # a client's forced routes must not crowd out the policy's
        self.requests = Counter("drllm_requests", "Requests that took a route, by route and by who decided it", ["route", "decided"])
        self.run = Counter("drllm_block_passes", "Block passes run, one a token and block, those of the front selector included")
        self.base = Counter("drllm_block_passes_base", "Block passes that the base would have run for the same tokens")
        self.saved = Gauge("drllm_block_passes_saved", "The difference; below 0 where more is repeated or read twice than skipped")
        self.front = Histogram("drllm_front_seconds", "Seconds from asking the front selector to its route, waiting included")

    def add(self, taken: Taken, n_tokens: int, n_read: int) -> None:
        """Count one request of so many tokens; `n_read` passes were run to decide."""
        assert taken.route is not None
        if taken.decided == "policy" and len(self.named) < MAX_LABELS:
            self.named.add(str(taken.route))
        self.requests.labels(str(taken.route) if str(taken.route) in self.named else "other", taken.decided).inc()
        run, base = taken.route.n_passes * n_tokens + n_read, self.n_layers * n_tokens
        self.run.inc(run)
        self.base.inc(base)
        self.saved.inc(base - run)


def _refuse_beams(*args: Any, **kwargs: Any) -> Any:
    raise validation_error("beam search asks the engine anew for every token, so no prompt would keep its route: leave use_beam_search out")


def _page() -> HTMLResponse:
    page = Path(str(resources.files("drllm.deploy.serving") / "static" / "playground.html")).read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})
