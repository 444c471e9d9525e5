"""`RoutedLM`: a routed model as a model of lm-evaluation-harness 0.4, its model arguments, and what its routes did and cost.

A stock harness passes context and continuation to the model as one sequence, so a policy would read the answer it is asked to score; it
scores every choice as a prompt of its own, so choices of one question could take different routes. Here the route comes from the
context's tokens alone, once for all its continuations; the stock `HFLM` then scores those of each route. Without a route it is `HFLM`.
"""

import logging
import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from torch import Tensor
from tqdm import tqdm

from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Route
from drllm.evaluation.harness import SPLITS_READ
from drllm.evaluation.harness.lm_eval_private import stock_model
from drllm.model.generation import refuse_unroutable
from drllm.model.load import dtype_of
from drllm.model.routed import RoutedModel
from drllm.policies.constant import is_identity
from drllm.policies.policy import RouteSource
from drllm.policies.routers import controlled
from drllm.policies.saved import is_policy
from drllm.policies.timed import TimedPolicy
from drllm.scoring.route_prediction import decide_routes

logger = logging.getLogger("lm_eval.drllm")
_STOCK = """
max_length truncation softmax_dtype mixed_precision_dtype add_bos_token prefix_token_id logits_cache think_end_token enable_thinking
chat_template_args
"""
STOCK_OPTIONS = tuple(_STOCK.split())  # of the stock model, which mean the same here; what loads or places weights is drllm's own
OWN_OPTIONS = ("pretrained", "base", "revision", "route", "control", "dtype", "device", "batch_size", "max_batch_size")


@dataclass(frozen=True)
class Routed:
    """A prompt and its route."""

    task: str
    doc_id: int  # -1 where the harness does not say
    route: Route
    n_prompt_tokens: int  # that the policy read
    n_new_tokens: int = 0  # generated up to the sequence's own end; 0 where continuations were scored


class RoutingLog:
    """Collects routes and seconds; `summary` is what results carry."""

    def __init__(self, n_layers: int):
        self.n_layers = n_layers
        self.prompts: list[Routed] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._router_seconds: defaultdict[str, float] = defaultdict(float)

    def add_seconds(self, weights: Mapping[str, int], seconds: float, router_seconds: float) -> None:
        """Share some seconds among tasks by what each had in them."""
        for task, weight in weights.items():
            share = weight / sum(weights.values())
            self._seconds[task] += seconds * share
            self._router_seconds[task] += router_seconds * share

    def summary(self) -> dict[str, dict[str, Any]]:
        """Figures of each task; see `docs/harness.md` for what each one is."""
        by_task: defaultdict[str, list[Routed]] = defaultdict(list)
        for prompt in self.prompts:
            by_task[prompt.task].append(prompt)
        return {task: self._summarize(task, prompts) for task, prompts in by_task.items()}

    def _summarize(self, task: str, prompts: list[Routed]) -> dict[str, Any]:
        passes = np.array([prompt.route.n_passes for prompt in prompts])
        steps = np.array([max(1, prompt.n_new_tokens) for prompt in prompts])  # one, and one more for each new token but the last
        counts = Counter(str(prompt.route) for prompt in prompts)
        found: dict[str, Any] = {"prompts": len(prompts), "mean_passes": float(passes.mean()), "n_layers": self.n_layers}
        found["passes"] = {str(value): int(n) for value, n in sorted(Counter(passes.tolist()).items())}
        layers, base_layers = float(np.mean(passes * steps)), float(np.mean(self.n_layers * steps))
        found |= {"layers_per_prompt": layers, "base_layers_per_prompt": base_layers}
        found["new_tokens"] = sum(prompt.n_new_tokens for prompt in prompts)
        found |= {"identity_share": counts[str(Route.full(self.n_layers))] / len(prompts), "distinct_routes": len(counts)}
        found["consensus"] = consensus([prompt.route for prompt in prompts])
        return found | {"seconds": self._seconds[task], "router_seconds": self._router_seconds[task]}


def consensus(routes: Sequence[Route]) -> float | None:
    """Mean share of blocks at which two different prompts' routes agree (Dr.LLM, table 8), over all pairs; None for a single prompt."""
    n = len(routes)
    if n < 2:
        return None
    columns = list(zip(*(route.visits for route in routes), strict=True))
    agreeing = sum(count * (count - 1) for column in columns for count in Counter(column).values())
    return float(agreeing / (n * (n - 1) * len(columns)))


class RoutedLM(stock_model()):
    """A routed model for the harness; `--model drllm` on its command line.

    Args:
        pretrained: a saved policy's folder or Hub id (its base loads with it), anything `RoutedModel.wrap` loads, or a `RoutedModel`.
        route: this route for every prompt, instead of a policy: digits, or a path with + for its commas.
        base, revision, control, dtype, device: as docs/harness.md has them.
        **options: `STOCK_OPTIONS`, as in `HFLM`.

    Raises:
        InputError, ArtifactError: nothing can be loaded by that name, or an option is not supported.
    """

    def __init__(
        self,
        pretrained: str | RoutedModel = "",
        base: str | None = None,
        revision: str | None = None,
        route: str | int | None = None,
        control: float | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        **options: Any,
    ):
        options = check_options(options, pretrained, batch_size)
        routed = load_model(pretrained, base, revision, dtype, device)
        policy = wanted_policy(routed, route, control)
        if routed.tokenizer is None:
            raise InputError("the harness needs a tokenizer: wrap the model with one")
        self.routed = routed
        self.routing = RoutingLog(routed.n_layers)
        self._policy = None if policy is None or is_identity(policy) else TimedPolicy(policy)
        self._route = Route.full(routed.n_layers)  # of the sequences being scored
        self._origins: list[tuple[str, int]] = [("", -1)]  # (task, doc_id) of each request under way, or one of all of them
        self._contexts: deque[str] = deque()  # of the batch being generated
        self._by_context: defaultdict[str, deque[tuple[str, int]]] = defaultdict(deque)
        self._format = "raw"  # of the prompts, until a chat template is asked for
        self._warned = False
        sizes: dict[str, Any] = {"batch_size": batch_size, "max_batch_size": max_batch_size}
        super().__init__(routed.model, backend="causal", tokenizer=routed.tokenizer, **sizes, **options)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request's continuation, under the route that its context decides."""
        self._warn_of_format()
        self._origins = [_origin(request) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts. A window's route comes from what stands before it: the prefix token alone for the first."""

        def answer(some: list[Instance]) -> list[float]:
            self._origins = [(_origin(some[0])[0], -1)]
            return super(RoutedLM, self).loglikelihood_rolling(some, disable_tqdm=disable_tqdm)

        return _in_groups(requests, lambda request: _origin(request)[0], answer)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._warn_of_format()

        def answer(some: list[Instance]) -> list[str]:
            self._by_context = defaultdict(deque)
            for request in some:
                self._by_context[request.args[0]].append(_origin(request))
            return super(RoutedLM, self).generate_until(some, disable_tqdm=disable_tqdm)

        # By their options, as the stock model batches them: so a prompt and its options say whose answer it is.
        return _in_groups(requests, lambda request: repr(request.args[1:]), answer)

    def score_tokens(self, requests: Sequence[Any], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
        """As the stock model, each context along the route that it decides; `InputError` for a request that cannot be scored."""
        weights: Counter[str] = Counter()
        origins = [self._origins[index % len(self._origins)] for index in range(len(requests))]
        for (task, _), (_, context, tail) in zip(origins, requests, strict=True):
            weights[task] += len(context) + len(tail)
            if not context or not tail or len(tail) > self.max_length:
                found = f"a request has {len(context)} context and {len(tail)} continuation tokens"
                raise InputError(f"{found}, expected at least one each and at most {self.max_length}: raise max_length or drop it")
        contexts = [tuple(context[-self.max_length :]) for _, context, _ in requests]
        with self._timed(weights):
            routes = self._decide(list(dict.fromkeys(contexts)))
            answers = self._score_along([routes[context] for context in contexts], requests, disable_tqdm, override_bs)
        # Windows of texts begin alike, with the prefix token, and are a prompt each.
        prompts = zip(origins, contexts, [index if text is None else -1 for index, (text, *_) in enumerate(requests)], strict=True)
        for (task, doc_id), context, _ in dict.fromkeys(prompts):
            self.routing.prompts.append(Routed(task, doc_id, routes[context], len(context)))
        return answers

    @torch.no_grad()
    def _decide(self, contexts: list[tuple[int, ...]]) -> dict[tuple[int, ...], Route]:
        with self._autocast():
            (routes,) = decide_routes(self.routed, [self._policy], contexts, max(map(len, contexts), default=1))
        return dict(zip(contexts, routes, strict=True))

    def _score_along(
        self, routes: Sequence[Route], requests: Sequence[Any], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        """The stock model's answers, route by route: it knows no contexts of a step's sequences, so all of a step take one route."""
        along: dict[Route, list[int]] = {}
        for index, route in enumerate(routes):
            along.setdefault(route, []).append(index)
        several = len(along) > 1
        if requests and self.batch_size == "auto" and not override_bs:
            few = len({tuple(request[1]) for request in requests}) < self.batch_schedule  # by the parts of `auto:N` stock divides
            if several or few:
                longest = max(range(len(requests)), key=lambda index: len(requests[index][1]) + len(requests[index][2]))
                override_bs = self.find_batch_size(requests, longest)  # once, not for each route
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or not several, desc="Running loglikelihood requests") as bar:
            for self._route, members in along.items():
                some = [requests[index] for index in members]
                answers |= zip(members, self.stock_score_tokens(some, disable_tqdm or several, override_bs), strict=True)
                bar.update(len(members))
        return [answers[index] for index in range(len(requests))]

    def logits_of(self, ids_BT: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.routed(ids_BT, routes=self._route).logits

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def _timed(self, weights: Mapping[str, int]) -> Iterator[None]:
        """Put what runs inside down to these tasks."""
        started, before = time.perf_counter(), 0.0 if self._policy is None else self._policy.seconds
        yield
        decided = 0.0 if self._policy is None else self._policy.seconds - before
        self.routing.add_seconds(weights, time.perf_counter() - started, decided)

    def _warn_of_format(self) -> None:
        """Say once that the policy was trained on prompts of another format."""
        wanted = None if self._policy is None or self._policy.route is not None else self._policy.prompt_format
        if wanted not in (None, self._format) and not self._warned:
            logger.warning("this policy was trained on %s prompts, these are %s: its routes may be arbitrary", wanted, self._format)
            self._warned = True

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self._format = "chat"
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """The stock figures, and what routing did and cost in each task; the harness asks at the end of a run."""
        about = {"base": self.routed.base_id, "revision": self.routed.revision, "fingerprint": self.routed.fingerprint}
        policy = self._policy
        about["policy"] = "base" if policy is None else policy.source.name if policy.route is None else str(policy.route)
        return super().get_model_info() | {"drllm": about | {"splits_read": dict(SPLITS_READ), "tasks": self.routing.summary()}}

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._contexts = deque(strings)  # `generate_until` calls it with a batch's
        return super().tok_batch_encode(strings, *args, **kwargs)

    def generate_tokens(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        routes = [Route.full(self.routed.n_layers)] * len(context)
        mask = options.get("attention_mask", torch.ones_like(context))
        origins = [self._by_context[text].popleft() for text in self._contexts]

        with self._timed(Counter(task for task, _ in origins)):
            if self._policy is None:
                sequences = self.stock_generate_tokens(context, max_length, stop, **options)
            else:
                refuse_unroutable(self.routed.model, options)
                cache = self.routed.new_cache(self._policy, mask, input_ids=context)
                sequences = self.stock_generate_tokens(context, max_length, stop, **options, **{self.routed.cache_argument: cache})
                cache.check_complete()
                routes = cache.routes
        for sequence, n_prompt, route, (task, doc_id) in zip(sequences, mask.sum(1).tolist(), routes, origins, strict=True):
            n_new = self.n_answer_tokens(sequence[context.shape[1] :].tolist(), stop)
            self.routing.prompts.append(Routed(task, doc_id, route, n_prompt, n_new))
        return sequences

    def n_answer_tokens(self, tokens: list[int], stop: list[str]) -> int:
        """Tokens up to the sequence's own end: the batch goes on until its last one ends."""
        ends = self.routed.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        n = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))

        def holds(length: int) -> bool:
            return any(text in self.tok_decode(tokens[:length], skip_special_tokens=False) for text in stop)

        # A prefix that holds a stop string stays one.
        return 1 + bisect_left(range(1, n), True, key=holds) if holds(n) else n


register_model("drllm")(RoutedLM)


def _in_groups(requests: list[Instance], key: Callable[[Instance], str], answer: Callable[[list[Instance]], list[Any]]) -> list[Any]:
    """What `answer` says of each group of requests with one key, in the order of the requests."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[key(request)].append(index)
    answers: dict[int, Any] = {}
    for indices in groups.values():
        answers |= dict(zip(indices, answer([requests[index] for index in indices]), strict=True))
    return [answers[index] for index in range(len(requests))]


def _origin(request: Instance) -> tuple[str, int]:
    return str(request.task_name), -1 if request.doc_id is None else request.doc_id


def check_options(options: Mapping[str, Any], pretrained: Any, batch_size: int | str) -> dict[str, Any]:
    """The stock model's options as it takes them; `InputError` for one that is not supported, or for a missing model."""
    found = {name: value for name, value in options.items() if name != "trust_remote_code" or value}
    for name in found:
        if name not in STOCK_OPTIONS:
            known = (*STOCK_OPTIONS, *OWN_OPTIONS)
            raise InputError(f"model argument {name!r} is not supported{did_you_mean(name, known)}; drllm takes {', '.join(known)}")
    if not pretrained:
        raise InputError("no model: give pretrained=FOLDER_OR_ID among the model arguments")
    if not str(batch_size).isdecimal() and str(batch_size).split(":")[0] != "auto":
        raise InputError(f"batch_size is {batch_size!r}, expected a whole number, auto or auto:N")
    return found | {name: dtype_of(found.get(name)) for name in ("softmax_dtype", "mixed_precision_dtype")}


def load_model(pretrained: str | RoutedModel, base: str | None, revision: str | None, dtype: str | None, device: str | None) -> RoutedModel:
    """The model in memory, a saved policy on its base, or a plain model."""
    if isinstance(pretrained, RoutedModel):
        return pretrained
    dtype = None if dtype == "auto" else dtype
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"  # the harness says cuda wherever it runs
    if is_policy(pretrained, revision):
        return RoutedModel.from_pretrained(pretrained, base, dtype=dtype, device=device, revision=revision)
    if base is not None or revision is not None:
        raise InputError(f"{pretrained!r} holds no saved policy, so base and revision have no use: give a policy, or the model alone")
    return RoutedModel.wrap(pretrained, dtype=dtype, device=device)


def wanted_policy(routed: RoutedModel, route: str | int | None, control: float | None) -> RouteSource | None:
    """The model's policy, or the route that was given instead, under the control that was given."""
    policy = routed.policy
    if route is not None:
        digits = str(route).strip("'\"")
        if isinstance(route, int) and len(digits) != routed.n_layers:
            why = "the harness reads digits as a number, which drops leading zeros"
            found = f"route {route} has {len(digits)} digits, the model has {routed.n_layers} blocks"
            raise InputError(f"{found}; {why}: write route='0...' with its quotes")
        policy = routed.as_source(Route.parse(digits, routed.n_layers))
    if control is not None:
        if policy is None:
            raise InputError("control is for trained routers: give a saved policy as pretrained")
        policy = controlled(policy, control)
    return policy
