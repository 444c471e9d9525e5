"""`RoutedLM`: a routed model as a model of lm-evaluation-harness 0.4.

A stock harness passes context and continuation to the model as one sequence, so a policy would read the answer it is asked to score; it
scores every choice as a prompt of its own, so choices of one question could take different routes. Here the route comes from the
context's tokens alone, once for all its continuations, which share the context's computation where the family takes a tree-shaped mask.
Tokenisation, truncation, softmax and generation options are the stock `HFLM`'s own.
"""

import logging
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.evaluation.harness import SPLITS_READ
from drllm.evaluation.harness.continuations import ContinuationLM
from drllm.evaluation.harness.log import Routed
from drllm.evaluation.harness.options import check_options, load_model, wanted_policy
from drllm.model.generation import refuse_unroutable
from drllm.model.routed import RoutedModel

logger = logging.getLogger("lm_eval.drllm")


class RoutedLM(ContinuationLM):
    """A routed model for the harness; `--model drllm` on its command line.

    Args:
        pretrained: a saved policy's folder or Hub id (its base loads with it), anything `RoutedModel.wrap` loads, or a `RoutedModel`.
        base: another place to load the same base from.
        revision: of the policy, on the Hub.
        route: this route for every prompt, instead of a policy: digits, or a path with + for its commas.
        control: appendix C's control of routers.
        dtype, device: as in `RoutedModel.wrap`.
        batch_size: sequences of the stock model's step, or "auto"; a step here has as many tokens.
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
        **options: Any,
    ):
        options = check_options(options, pretrained, batch_size)
        routed = load_model(pretrained, base, revision, dtype, device)
        policy = wanted_policy(routed, route, control)
        if routed.tokenizer is None:
            raise InputError("the harness needs a tokenizer: wrap the model with one")
        self._contexts: deque[str] = deque()  # of the batch being generated
        self._by_context: defaultdict[str, deque[tuple[str, int]]] = defaultdict(deque)
        self._format = "raw"  # of the prompts, until a chat template is asked for
        self._warned = False
        super().__init__(routed, policy, batch_size=batch_size, max_batch_size=max_batch_size, **options)

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
            passes = f"mean passes {figures['mean_passes']:.2f} of {figures['n_layers']}, {figures['distinct_routes']} routes"
            seconds = f"routers {figures['router_seconds']:.2f} s of {figures['seconds']:.1f} s"
            logger.info("%s: %s, identity %.0f %%, %s", task, passes, 100 * figures["identity_share"], seconds)
        about = {"base": self.routed.base_id, "revision": self.routed.revision, "fingerprint": self.routed.fingerprint}
        policy = self._policy
        about["policy"] = "base" if policy is None else policy.source.name if policy.route is None else str(policy.route)
        return super().get_model_info() | {"drllm": about | {"splits_read": dict(SPLITS_READ), "tasks": summary}}

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the stock model; `generate_until` calls it with a batch's contexts."""
        self._contexts = deque(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)

    def generate_tokens(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """The stock generation on a routed cache."""
        routes = [Route.full(self.routed.n_layers)] * len(context)
        mask = options.get("attention_mask", torch.ones_like(context))
        origins = [self._by_context[text].popleft() for text in self._contexts]

        with self._timed([task for task, _ in origins]):
            if self._policy is None:
                sequences = self.stock_generate(context, max_length, stop, **options)
            else:
                refuse_unroutable(self.routed.model, options)
                cache = self.routed.new_cache(self._policy, mask, input_ids=context)
                sequences = self.stock_generate(context, max_length, stop, **options, **{self.routed.cache_argument: cache})
                cache.check_complete()
                routes = cache.routes
        for sequence, n_prompt, route, (task, doc_id) in zip(sequences, mask.sum(1).tolist(), routes, origins, strict=True):
            n_new = self._n_answer_tokens(sequence[context.shape[1] :].tolist(), stop)
            self.routing.prompts.append(Routed(task, doc_id, route, n_prompt, n_new))
        return sequences

    def _n_answer_tokens(self, tokens: list[int], stop: list[str]) -> int:
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
    """(task, document) of a request."""
    return str(request.task_name), -1 if request.doc_id is None else request.doc_id
