"""`RoutedLM`: a routed model as a model of lm-evaluation-harness 0.4.

A stock harness passes context and continuation to the model as one sequence, so a policy would read the answer it is asked to score; it
scores every choice as a prompt of its own, so choices of one question could take different routes. Here the route comes from the
context's tokens alone, once for all its continuations, which share the context's computation where the family takes a tree-shaped mask.
Tokenisation, truncation, softmax and generation options are the stock `HFLM`'s own.

Shapes: B sequences, T tokens, N scored tokens, V vocabulary.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from torch import Tensor
from tqdm import tqdm

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.evaluation.harness import SPLITS_READ
from drllm.evaluation.harness.lm_eval_private import stock_model
from drllm.evaluation.harness.log import Routed, RoutingLog
from drllm.evaluation.harness.options import check_options, load_model, wanted_policy
from drllm.evaluation.harness.packing import Packed, Request, pack_requests
from drllm.evaluation.harness.prefixes import SIGHT, Prefixes
from drllm.model.generation import refuse_unroutable
from drllm.model.routed import RoutedModel
from drllm.policies.given import GivenRoutes, is_identity
from drllm.policies.timed import TimedPolicy
from drllm.scoring.loglik import SOFTMAX_ROWS, can_pack, head_at
from drllm.scoring.packing import make_batch
from drllm.scoring.route_prediction import decide_routes

logger = logging.getLogger("lm_eval.drllm")


class RoutedLM(stock_model()):
    """A routed model for the harness; `--model drllm` on its command line.

    Args:
        pretrained: a saved policy's folder or Hub id (its base loads with it), anything `RoutedModel.wrap` loads, or a `RoutedModel`.
        base: another place to load the same base from.
        revision: of the policy, on the Hub.
        route: one digit a block; this route for every prompt, instead of a policy.
        control: appendix C's control of routers.
        dtype, device: as in `RoutedModel.wrap`.
        batch_size: sequences of the stock model's step, or "auto"; a step here has as many tokens.
        time_base: every n-th step is run by the base as well, for its time alone; 0 never.
        **options: `drllm.evaluation.harness.options.STOCK_OPTIONS`, as in `HFLM`.

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
        time_base: int = 8,
        **options: Any,
    ):
        options = check_options(options, pretrained, batch_size)
        self.routed = load_model(pretrained, base, revision, dtype, device)
        policy = wanted_policy(self.routed, route, control)
        if self.routed.tokenizer is None:
            raise InputError("the harness needs a tokenizer: wrap the model with one")
        self._policy = None if policy is None or is_identity(policy) else TimedPolicy(policy)
        self.routing = RoutingLog(self.routed.n_layers)
        self._time_base, self._n_steps = time_base, 0
        self._origins: list[tuple[str, int]] = [("", -1)]  # (task, doc_id) of each request under way, or one of all of them
        self._sharing: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)  # tasks of the requests behind each prefix
        self._contexts: deque[str] = deque()  # of the batch being generated
        self._by_context: defaultdict[str, deque[tuple[str, int]]] = defaultdict(deque)
        self._format = "raw"  # of the prompts, until a chat template is asked for
        self._warned = False
        placed = {"tokenizer": self.routed.tokenizer, "batch_size": batch_size, "max_batch_size": max_batch_size}
        super().__init__(self.routed.model, backend="causal", **placed, **options)  # type: ignore[arg-type]
        self._packs = can_pack(self.routed)
        self._prefixes = Prefixes(self.routed, self._packs)

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
        """Generated text of each request, its route decided at prefill."""
        self._warn_of_format()

        def answer(some: list[Instance]) -> list[str]:
            self._by_context = defaultdict(deque)
            for request in some:
                self._by_context[request.args[0]].append(_origin(request))
            return super(RoutedLM, self).generate_until(some, disable_tqdm=disable_tqdm)

        # By their options, as the stock model batches them: so a prompt and its options say whose answer it is.
        return _in_groups(requests, lambda request: repr(request.args[1:]), answer)

    def _warn_of_format(self) -> None:
        """Say once that the policy was trained on prompts of another format."""
        wanted = None if self._policy is None or self._policy.route is not None else self._policy.prompt_format
        if wanted not in (None, self._format) and not self._warned:
            logger.warning("this policy was trained on %s prompts, these are %s: its routes may be arbitrary", wanted, self._format)
            self._warned = True

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the stock model."""
        self._format = "chat"
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """The stock figures, and what routing did and cost in each task; the harness asks at the end of a run."""
        summary = self.routing.summary()
        for task, figures in summary.items():
            ratio, n_timed = figures["seconds_over_base"], figures["steps_timed_against_base"]
            passes = f"mean passes {figures['mean_passes']:.2f} of {figures['n_layers']}, {figures['distinct_routes']} routes"
            seconds = f"routers {figures['router_seconds']:.2f} s of {figures['seconds']:.1f} s"
            against = "" if ratio is None else f", {ratio:.2f} x the base's time on {n_timed} steps"
            logger.info("%s: %s, identity %.0f %%, %s%s", task, passes, 100 * figures["identity_share"], seconds, against)
        about = {"base": self.routed.base_id, "revision": self.routed.revision, "fingerprint": self.routed.fingerprint}
        policy = self._policy
        about["policy"] = "base" if policy is None else policy.source.name if policy.route is None else str(policy.route)
        return super().get_model_info() | {"drllm": about | {"splits_read": dict(SPLITS_READ), "tasks": summary}}

    @torch.no_grad()
    def score_tokens(self, requests: Sequence[Request], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
        """As the stock model, each context along the route that it decides."""
        answers: dict[int, tuple[float, bool]] = {}
        # A step holds prompts of one kind: trees or plain ones, and with their routes decided in the same step or before.
        kinds: defaultdict[tuple[bool, bool], list[Packed]] = defaultdict(list)
        for packed in self._decide(pack_requests(requests, self.max_length, self._packs)):
            kinds[packed.is_tree, packed.route is None].append(packed)
        try:
            with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests") as bar:
                for kind in kinds.values():
                    for step in self._steps(self._arranged(kind, override_bs), requests, override_bs):
                        for index, answer in self._score(step, requests):
                            answers[index] = answer
                            if requests[index][0] is not None:
                                self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                        bar.update(len(answers) - bar.n)
        finally:
            self._prefixes.drop()
        return [answers[index] for index in range(len(requests))]

    def _arranged(self, asked: list[Packed], override_bs: int | None) -> list[Packed]:
        """The prompts with what they share, and on whose account each shared beginning runs."""
        size = override_bs or self.batch_size
        step_tokens = (size if isinstance(size, int) else self.max_batch_size) * max(len(packed.sequence) for packed in asked)
        arranged = self._prefixes.arrange(asked, self._policy, step_tokens)
        self._sharing = defaultdict(list)
        for packed in arranged:
            if packed.n_prefix:
                self._sharing[packed.prefix] += [self._origin(index)[0] for index in packed.requests]
        return arranged

    def _decide(self, asked: list[Packed]) -> list[Packed]:
        """The prompts; those of a context that stands in several, or is too long for some, with its one route."""
        parts = [packed for packed in asked if not packed.is_whole]
        waiting = list(dict.fromkeys(packed.context for packed in parts))
        if self._policy is None or not waiting:
            return asked
        prompts = [context[-self.max_length :] for context in waiting]
        started, before = time.perf_counter(), self._router_seconds
        with self._autocast():
            (decided,) = decide_routes(self.routed, [self._policy], prompts, max(map(len, prompts)))
        routes = dict(zip(waiting, decided, strict=True))
        tasks = [self._origin(packed.requests[0])[0] for packed in parts if packed.group]
        self.routing.add_seconds(tasks, time.perf_counter() - started, self._router_seconds - before, None)
        return [packed if packed.is_whole else replace(packed, route=routes[packed.context]) for packed in asked]

    def _steps(self, asked: list[Packed], requests: Sequence[Request], override_bs: int | None) -> Iterator[list[Packed]]:
        """Prompts in steps of as many tokens as `batch_size` sequences of the stock model have, the longest first; one prefix a step."""

        def n_tokens(index: int) -> int:
            return len(requests[index][1]) + len(requests[index][2])

        groups: defaultdict[tuple[int, ...], list[Packed]] = defaultdict(list)
        for packed in sorted(asked, key=lambda packed: (-len(packed.sequence), packed.context)):
            groups[packed.prefix].append(packed)
        asked = [packed for group in groups.values() for packed in group]
        start, n_detected = 0, 0
        while start < len(asked):
            first = asked[start]
            size = override_bs or self.batch_size
            if size == "auto":
                # Once, or at each of N equal parts with auto:N, as the prompts get shorter.
                if n_detected <= start * self.batch_schedule / len(asked):
                    longest = max((index for packed in asked[start:] for index in packed.requests), key=n_tokens)
                    self.batch_sizes[n_detected] = self.find_batch_size(requests, longest)
                    n_detected += 1
                size = self.batch_sizes[n_detected - 1]
            budget = size * min(max(map(n_tokens, first.requests)), self.max_length)
            end = start + max(1, min(budget // first.n_tokens, SIGHT * budget // len(first.sequence)))
            step = [packed for packed in asked[start:end] if packed.prefix == first.prefix]
            yield step
            start += len(step)

    def _score(self, step: list[Packed], requests: Sequence[Request]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(request, answer) of everything in one step."""
        tasks = [self._origin(index)[0] for packed in step for index in packed.requests]
        is_timed = self._is_timed()
        if step[0].n_prefix:
            self._run_prefix(step[0].prefix, is_timed)
        started, before = time.perf_counter(), self._router_seconds
        (logprobs, greedy), routes = self._forward(step, self._policy is not None)
        seconds, router_seconds = time.perf_counter() - started, self._router_seconds - before
        base_seconds = None
        if is_timed:
            started = time.perf_counter()
            self._forward(step, False)
            base_seconds = time.perf_counter() - started
        self.routing.add_seconds(tasks, seconds, router_seconds, base_seconds)
        at = 0
        for packed, route in zip(step, routes, strict=True):
            origins = sorted({self._origin(index) for index in packed.group})
            self.routing.prompts += [Routed(task, doc_id, route, packed.sequence.n_context) for task, doc_id in origins]
            for index in packed.requests:
                n = len(requests[index][2])
                yield index, (float(logprobs[at : at + n].sum()), bool(greedy[at : at + n].all()))
                at += n

    def _run_prefix(self, prefix: tuple[int, ...], is_timed: bool) -> None:
        """Run what the coming step's prompts share, at the expense of all of them; where the base is timed beside, its own is ready."""
        started = time.perf_counter()
        with self._autocast():
            self._prefixes.prepare(None if self._policy is None else self._policy.route, prefix)
        if tasks := self._sharing.pop(prefix, []):
            self.routing.add_seconds(tasks, time.perf_counter() - started, 0.0, None)
        if is_timed:
            with self._autocast():
                self._prefixes.prepare(None, prefix)

    def _origin(self, index: int) -> tuple[str, int]:
        return self._origins[index % len(self._origins)]

    def _forward(self, step: list[Packed], is_routed: bool) -> tuple[tuple[Tensor, Tensor], list[Route]]:
        """((log-probability, whether it is the likeliest) of each scored token, both (N,)), and the route of each prompt."""
        prefix = step[0].prefix
        sequences = [packed.sequence for packed in step]
        batch = make_batch(sequences, step[0].is_tree, self.routed.model.dtype, self.routed.device, n_seen=len(prefix))
        sources, place_of = torch.unique(batch.scored, return_inverse=True)  # the first tokens of all choices have one source
        routes = [Route.full(self.routed.n_layers)] * len(step)
        with self._autocast(), head_at(self.routed.model, sources):
            if is_routed and self._policy is not None:
                if prefix:
                    cache: Any = self._prefixes.caches(self._policy.route, prefix, len(step))
                else:
                    given = [packed.route for packed in step if packed.route is not None]
                    cache = self.routed.new_cache(GivenRoutes(given) if given else self._policy, batch.prompt_mask)
                logits_MV = self.routed.forward(cache, **batch.inputs).logits[0]
                routes = cache.routes * (len(step) if prefix else 1)  # one route ran before all of them
            else:
                behind = {self.routed.cache_argument: self._prefixes.caches(None, prefix, len(step))} if prefix else {}
                logits_MV = self.routed.model(**batch.inputs, **behind, use_cache=bool(prefix)).logits[0]
        return self._pick(logits_MV, place_of, batch.targets), routes

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    def _pick(self, logits_MV: Tensor, place_of_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The targets' log-probabilities, in the stock model's dtype, and whether each is its place's argmax; both (N,)."""
        logprobs = torch.empty(len(targets_N), dtype=self.softmax_dtype or logits_MV.dtype, device=logits_MV.device)
        greedy = torch.empty(len(targets_N), dtype=torch.bool, device=logits_MV.device)
        for start in range(0, len(logits_MV), SOFTMAX_ROWS):
            scores = torch.log_softmax(logits_MV[start : start + SOFTMAX_ROWS], dim=-1, dtype=self.softmax_dtype)
            mine = ((place_of_N >= start) & (place_of_N < start + SOFTMAX_ROWS)).nonzero()[:, 0]
            places, targets = place_of_N[mine] - start, targets_N[mine]
            logprobs[mine] = scores[places, targets]
            greedy[mine] = scores.argmax(-1)[places] == targets
        return logprobs.cpu(), greedy.cpu()

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the stock model; `generate_until` calls it with a batch's contexts."""
        self._contexts = deque(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)

    def generate_tokens(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """The stock generation on a routed cache."""
        started, before = time.perf_counter(), self._router_seconds
        routes = [Route.full(self.routed.n_layers)] * len(context)
        mask = options.get("attention_mask", torch.ones_like(context))
        if self._policy is None:
            sequences = self.stock_generate(context, max_length, stop, **options)
        else:
            refuse_unroutable(self.routed.model, options)
            cache = self.routed.new_cache(self._policy, mask)
            sequences = self.stock_generate(context, max_length, stop, **options, **{self.routed.cache_argument: cache})
            cache.check_complete()
            routes = cache.routes
        seconds = time.perf_counter() - started
        router_seconds = self._router_seconds - before
        base_seconds = None
        if self._is_timed():
            started = time.perf_counter()
            with torch.random.fork_rng():  # sampled answers do not depend on what is timed beside them
                self.stock_generate(context, max_length, stop, **options)
            base_seconds = time.perf_counter() - started
        tasks = []
        for sequence, n_prompt, route, text in zip(sequences, mask.sum(1).tolist(), routes, self._contexts, strict=True):
            task, doc_id = self._by_context[text].popleft()
            n_new = self._n_answer_tokens(sequence[context.shape[1] :].tolist(), stop)
            self.routing.prompts.append(Routed(task, doc_id, route, n_prompt, n_new))
            tasks.append(task)
        self.routing.add_seconds(tasks, seconds, router_seconds, base_seconds)
        return sequences

    def _n_answer_tokens(self, tokens: list[int], stop: list[str]) -> int:
        """Tokens up to the sequence's own end: the batch goes on until its last one ends."""
        ends = self.routed.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        n = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
        low, high = 1, n

        def holds(length: int) -> bool:
            return any(text in self.tok_decode(tokens[:length], skip_special_tokens=False) for text in stop)

        if not holds(n):
            return n
        while low < high:  # a prefix that holds a stop string stays one
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle + 1, high)
        return low

    @property
    def _router_seconds(self) -> float:
        return 0.0 if self._policy is None else self._policy.seconds

    def _is_timed(self) -> bool:
        """Whether the base runs this step too: every n-th from the second on, since the first warms up."""
        self._n_steps += 1
        return self._policy is not None and self._time_base > 0 and (self._n_steps - 2) % self._time_base == 0


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
    """(task, document) of a request."""
    return str(request.task_name), -1 if request.doc_id is None else request.doc_id
