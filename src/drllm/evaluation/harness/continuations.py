"""The log-likelihood half of `RoutedLM`: contexts decide their routes, and prompts are scored in steps that share what they can.

Shapes: N scored tokens, M places that they are predicted from, V vocabulary.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from drllm.core.route import Route
from drllm.evaluation.harness.lm_eval_private import stock_model
from drllm.evaluation.harness.log import Routed, RoutingLog
from drllm.evaluation.harness.packing import Packed, Request, pack_requests
from drllm.model.routed import RoutedModel
from drllm.policies.constant import GivenRoutes, is_identity
from drllm.policies.policy import RouteSource
from drllm.policies.timed import TimedPolicy
from drllm.scoring.loglik import SOFTMAX_ROWS, can_pack, head_at
from drllm.scoring.packing import make_batch
from drllm.scoring.route_prediction import decide_routes


class ContinuationLM(stock_model()):
    """Scores continuations under a policy (None: the base); `options` as `HFLM` takes them."""

    def __init__(self, routed: RoutedModel, policy: RouteSource | None, **options: Any):
        self.routed = routed
        self._policy = None if policy is None or is_identity(policy) else TimedPolicy(policy)
        self.routing = RoutingLog(routed.n_layers)
        self._origins: list[tuple[str, int]] = [("", -1)]  # (task, doc_id) of each request under way, or one of all of them
        super().__init__(routed.model, backend="causal", tokenizer=routed.tokenizer, **options)  # type: ignore[arg-type]
        self._packs = can_pack(routed)

    @torch.no_grad()
    def score_tokens(self, requests: Sequence[Request], disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
        """As the stock model, each context along the route that it decides."""
        answers: dict[int, tuple[float, bool]] = {}
        # A step holds prompts of one kind: trees or plain ones, and with their routes decided in the same step or before.
        kinds: defaultdict[tuple[bool, bool], list[Packed]] = defaultdict(list)
        for packed in self._decide(pack_requests(requests, self.max_length, self._packs)):
            kinds[packed.is_tree, packed.route is None].append(packed)
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests") as bar:
            for kind in kinds.values():
                for step in self._steps(kind, requests, override_bs):
                    for index, answer in self._score(step, requests):
                        answers[index] = answer
                        if requests[index][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    bar.update(len(answers) - bar.n)
        return [answers[index] for index in range(len(requests))]

    def _decide(self, packed_prompts: list[Packed]) -> list[Packed]:
        """The prompts; those of a context that stands in several, or is too long for some, with its one route."""
        parts = [packed for packed in packed_prompts if not packed.is_whole]
        waiting = list(dict.fromkeys(packed.context for packed in parts))
        if self._policy is None or not waiting:
            return packed_prompts
        prompts = [context[-self.max_length :] for context in waiting]
        tasks = [self._origin(packed.requests[0])[0] for packed in parts if packed.group]
        with self._timed(tasks), self._autocast():
            (decided,) = decide_routes(self.routed, [self._policy], prompts, max(map(len, prompts)))
        routes = dict(zip(waiting, decided, strict=True))
        return [packed if packed.is_whole else replace(packed, route=routes[packed.context]) for packed in packed_prompts]

    def _steps(self, packed_prompts: list[Packed], requests: Sequence[Request], override_bs: int | None) -> Iterator[list[Packed]]:
        """Prompts in steps of as many tokens as `batch_size` sequences of the stock model have, the longest first."""

        def n_tokens(index: int) -> int:
            return len(requests[index][1]) + len(requests[index][2])

        packed_prompts = sorted(packed_prompts, key=lambda packed: (-len(packed.sequence), packed.context))
        start, n_detected = 0, 0
        while start < len(packed_prompts):
            first = packed_prompts[start]
            size = override_bs or self.batch_size
            if size == "auto":
                # Once, or at each of N equal parts with auto:N, as the prompts get shorter.
                if n_detected <= start * self.batch_schedule / len(packed_prompts):
                    longest = max((index for packed in packed_prompts[start:] for index in packed.requests), key=n_tokens)
                    self.batch_sizes[n_detected] = self.find_batch_size(requests, longest)
                    n_detected += 1
                size = self.batch_sizes[n_detected - 1]
            budget = size * min(max(map(n_tokens, first.requests)), self.max_length)
            end = start + max(1, budget // len(first.sequence))
            yield packed_prompts[start:end]
            start = end

    def _score(self, step: list[Packed], requests: Sequence[Request]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(request, answer) of everything in one step."""
        tasks = [self._origin(index)[0] for packed in step for index in packed.requests]
        with self._timed(tasks):
            (logprobs, greedy), routes = self._forward(step)
        at = 0
        for packed, route in zip(step, routes, strict=True):
            origins = sorted({self._origin(index) for index in packed.group})
            self.routing.prompts += [Routed(task, doc_id, route, packed.sequence.n_context) for task, doc_id in origins]
            for index in packed.requests:
                n = len(requests[index][2])
                yield index, (float(logprobs[at : at + n].sum()), bool(greedy[at : at + n].all()))
                at += n

    def _origin(self, index: int) -> tuple[str, int]:
        return self._origins[index % len(self._origins)]

    def _forward(self, step: list[Packed]) -> tuple[tuple[Tensor, Tensor], list[Route]]:
        """((log-probability, whether it is the likeliest) of each scored token, both (N,)), and the route of each prompt."""
        sequences = [packed.sequence for packed in step]
        batch = make_batch(sequences, step[0].is_tree, self.routed.model.dtype, self.routed.device)
        sources, place_of = torch.unique(batch.scored, return_inverse=True)  # the first tokens of all choices have one source
        routes = [Route.full(self.routed.n_layers)] * len(step)
        with self._autocast(), head_at(self.routed.model, sources):
            if self._policy is not None:
                given = [packed.route for packed in step if packed.route is not None]
                source = GivenRoutes(given) if given else self._policy
                cache = self.routed.new_cache(source, batch.prompt_mask, input_ids=batch.inputs["input_ids"])
                logits_MV = self.routed.forward(cache, **batch.inputs).logits[0]
                routes = cache.routes
            else:
                logits_MV = self.routed.model(**batch.inputs, use_cache=False).logits[0]
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

    @contextmanager
    def _timed(self, tasks: Sequence[str]) -> Iterator[None]:
        """Put what runs inside down to these tasks."""
        started, before = time.perf_counter(), self._router_seconds
        yield
        self.routing.add_seconds(tasks, time.perf_counter() - started, self._router_seconds - before)

    @property
    def _router_seconds(self) -> float:
        return 0.0 if self._policy is None else self._policy.seconds
