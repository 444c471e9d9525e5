"""Log-likelihood of each choice under a route. Shapes: B sequences, T tokens, D hidden size, V vocabulary, N scored tokens."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drllm.core.errors import InputError
from drllm.core.route import Route
from drllm.model.cache import new_slots
from drllm.model.families import has_hidden_window
from drllm.model.prompts import check_context
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import is_window
from drllm.runs.store import Verdict
from drllm.scoring.base import ModelScorer, Question
from drllm.scoring.packing import Batch, PackedPrompt, encode_choice, make_batch, pack_choices, sample_token, separate_choices
from drllm.scoring.prefixes import Node
from drllm.tasks import Example, Task

HEAD_TOKENS = 128  # scored tokens that go through the output head together
MIN_PENDING = 64  # evaluations under way at once, however small the memory
SOFTMAX_ROWS = 8  # logits in float32 at a time: more would leave the processor's cache


@dataclass
class _Pending:
    handle: int
    route: Route
    question: Question
    n_missing: int
    logprobs: dict[tuple[int, int], float] = field(default_factory=dict)  # of each scored token, by (sequence, index)


class LoglikScorer(ModelScorer):
    """Scores by the log-likelihood of each choice. Whether choices are `packed` is settled once, by comparing both ways on an example.

    A question is one packed sequence (or one a choice) that runs through `PrefixRunner`; only scored tokens reach the output head, in steps
    of a fixed number of tokens, so that a verdict depends on the question and the route alone.
    """

    reward = "loglik"
    prompt_format = "raw"
    _filler = PackedPrompt((0,), (0,), (0,), 1, (), (), ())
    shares_across_groups = True  # no verdict depends on what else is evaluated

    def __init__(
        self,
        routed: RoutedModel,
        max_step_tokens: int = 512,
        metric: str = "acc_norm",
        packed: bool | None = None,
        cache_bytes: int = 2**30,
    ):
        super().__init__(routed, max_step_tokens, cache_bytes)
        self.metric = metric
        # As in lm-evaluation-harness: no specials, but for Gemma, which is lost without its first token.
        self.add_bos = "gemma" in routed.config.model_type
        self.packed = can_pack(routed) if packed is None else packed
        self._bytes_a_state = 1  # of the widest sequence opened
        self._pending: dict[int, _Pending] = {}
        self._n_submitted = 0
        self._head: list[tuple[int, int, int, Tensor]] = []  # (evaluation, sequence, source, its final state (D,))
        self._finished: list[tuple[int, Route, Verdict]] = []

    @property
    def at_once(self) -> int:  # type: ignore[override]
        """Evaluations to have under way at most: their states cannot be evicted."""
        return max(MIN_PENDING, self.runner.cache_bytes // (4 * self._bytes_a_state))

    def right_answer(self, question: Question) -> list[int]:
        scored = [pair for sequence in question.sequences for pair in zip(sequence.targets, sequence.choices, strict=True)]
        return [target for target, choice in scored if choice == question.example.answer]

    def question(self, task: Task, example: Example) -> Question:
        """Tokenise an example; `InputError` when it cannot be scored or does not fit the context."""
        context, continuations = task.loglik_prompt(example)
        what = f"question {example.id!r} of {task.name}"
        if (n_choices := len(continuations)) < 2:
            count = f"{n_choices} choice{'' if n_choices == 1 else 's'}"
            raise InputError(f"{what} has {count}, log-likelihoods need at least two: drop it from the data")
        try:
            pairs = [encode_choice(self.routed.tokenizer, context, text, self.add_bos) for text in continuations]
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair: no UTF-8 has it
            raise InputError(f"{what} cannot be tokenised: check its text for broken characters") from None
        if any(not head or not tail for head, tail in pairs):
            raise InputError(f"{what} has an empty prompt or choice: drop it from the data")
        sequences = (pack_choices(pairs),) if self.packed else tuple(separate_choices(pairs))
        check_context(max(len(head) + len(tail) for head, tail in pairs), 0, self.routed.config)
        return Question(task, example, sequences, tuple(pairs[0][0]), tuple(len(text) - 1 for text in continuations))

    def _width(self, sequence: PackedPrompt) -> int:
        # Not past the last position where the model counts them itself.
        width, limit = super()._width(sequence), getattr(self.routed.config, "max_position_embeddings", None)
        return width if self.packed or limit is None else max(len(sequence), min(width, limit))

    def _inputs(self, sequences: list[PackedPrompt], width: int) -> dict[str, Tensor]:
        dtype = self.routed.model.dtype
        self._bytes_a_state = max(self._bytes_a_state, width * self.routed.hidden_size * dtype.itemsize)
        return make_batch(sequences, self.packed, dtype, self.routed.device, width).inputs

    def submit(self, handle: int, route: Route) -> None:
        question, tries = self.opened[handle]
        evaluation = self._n_submitted
        self._n_submitted += 1
        self._pending[evaluation] = _Pending(handle, route, question, sum(len(sequence.targets) for sequence in question.sequences))
        for place, trie in enumerate(tries):
            self.runner.submit(trie, route, (evaluation, place))

    @torch.no_grad()
    def collect(self) -> list[tuple[int, Route, Verdict]]:
        """Work until something submitted is finished: (handle, route, verdict) of all that is; empty when nothing is under way."""
        while self._pending and not self._finished:
            waiting, n_applied = self.runner.n_waiting, self.runner.n_applied
            self._take(self.runner.sweep())
            if self.runner.n_applied == n_applied and not self._finished:
                # Nothing could fill a step: run what there is.
                self._take(self.runner.sweep(force=True)) if waiting else self._run_head(len(self._head))
        finished, self._finished = self._finished, []
        return finished

    def _take(self, ended: Iterable[tuple[Any, Node]]) -> None:
        """Send the scored tokens of finished sequences to the output head, full steps at once."""
        for (evaluation, place), node in ended:
            sequence = self._pending[evaluation].question.sequences[place]
            assert node.state is not None
            self._head += [(evaluation, place, source, node.state[source]) for source in dict.fromkeys(sequence.sources)]
            while len(self._head) >= HEAD_TOKENS:
                self._run_head(HEAD_TOKENS)
            self.runner.release(node)

    def _run_head(self, n_tokens: int) -> None:
        step, self._head = self._head[:n_tokens], self._head[n_tokens:]
        states = [state for *_, state in step]
        logits_NV = self.runner.finish(torch.stack(states + [states[-1]] * (HEAD_TOKENS - len(step))))
        wanted: list[tuple[int, int, int]] = []  # (place in the step, target, index in the sequence's scored tokens)
        for at, (evaluation, place, source, _) in enumerate(step):
            sequence = self._pending[evaluation].question.sequences[place]
            wanted += [(at, target, index) for index, target in enumerate(sequence.targets) if sequence.sources[index] == source]
        totals = log_normalizers(logits_NV)
        at_N, target_N = torch.tensor([entry[:2] for entry in wanted], device=logits_NV.device).T
        logprobs = (logits_NV[at_N, target_N].float() - totals[at_N]).double().tolist()
        for (at, _, index), logprob in zip(wanted, logprobs, strict=True):
            evaluation, place, *_ = step[at]
            pending = self._pending[evaluation]
            pending.logprobs[place, index] = logprob
            if len(pending.logprobs) == pending.n_missing:
                self._finish(self._pending.pop(evaluation))

    def _finish(self, pending: _Pending) -> None:
        question, sums = pending.question, [0.0] * len(pending.question.n_chars)
        for (place, index), logprob in sorted(pending.logprobs.items()):  # float64, in a fixed order
            sums[question.sequences[place].choices[index]] += logprob
        self._finished.append((pending.handle, pending.route, loglik_verdict(sums, question, self.metric)))


def loglik_verdict(logliks: Sequence[float], question: Any, metric: str) -> Verdict:
    """The verdicts of lm-evaluation-harness: argmax of the log-likelihoods (`acc`) and of those a character (`acc_norm`).

    Of equal choices the first one wins there. Here they lie at different places of a sequence and may round apart, so they share one value.
    """
    if not all(math.isfinite(total) for total in logliks):
        return Verdict(False, acc=False, acc_norm=False, broken=True)
    gold, choices = question.example.answer, question.example.choices
    logliks = [logliks[choices.index(choice)] for choice in choices]
    per_char = [total / max(n_chars, 1) for total, n_chars in zip(logliks, question.n_chars, strict=True)]
    margins, verdicts = {}, {}
    for name, scores in (("acc", logliks), ("acc_norm", per_char)):
        verdicts[name] = scores.index(max(scores)) == gold
        margins[name] = scores[gold] - max(score for choice, score in enumerate(scores) if choice != gold)
    margins = {name: float(np.float32(margin)) for name, margin in margins.items()}  # what is looked up later is what was computed
    metric = "acc" if question.task.only_acc else metric
    return Verdict(verdicts[metric], margins[metric], verdicts["acc"], verdicts["acc_norm"], None, margins["acc"], margins["acc_norm"])


def can_pack(routed: RoutedModel) -> bool:
    """Whether this family gives packed choices the log-likelihoods that separate sequences have: asked of the base model itself.

    Families differ in whether they take explicit positions and a ready 4-D mask. A wrong mask is off by whole nats, bf16 by tenths.
    """
    windows = has_hidden_window(routed.config) or any(map(is_window, new_slots(routed.config, routed.n_layers)))
    if windows or not routed.takes_position_ids:
        return False
    n_vocab = routed.model.get_input_embeddings().num_embeddings
    context = [sample_token(seed, n_vocab) for seed in range(12)]
    pairs = [(context, [sample_token(100 * choice + at, n_vocab) for at in range(6)]) for choice in range(1, 4)]
    try:
        together = base_logliks(routed, [pack_choices(pairs)], packed=True)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # the family's forward does not take the 4-D mask
    apart = base_logliks(routed, separate_choices(pairs), packed=False)
    return all(abs(a - b) <= 0.3 + 0.02 * abs(b) for a, b in zip(together, apart, strict=True))


@torch.no_grad()
def scored_logprobs(routed: RoutedModel, batch: Batch) -> list[float]:
    """Log-probability of each scored token, in one plain forward; logits only where they are scored."""
    with head_at(routed.model, batch.scored):
        logits_NV = routed.model(**batch.inputs, use_cache=False).logits[0]
    chosen_N = logits_NV.gather(1, batch.targets.to(logits_NV.device)[:, None])[:, 0].float() - log_normalizers(logits_NV)
    return chosen_N.double().tolist()


def base_logliks(routed: RoutedModel, sequences: Sequence[PackedPrompt], packed: bool) -> list[float]:
    """Log-likelihood of each choice of one question by the base model, in one plain forward."""
    batch = make_batch(sequences, packed, routed.model.dtype, routed.device)
    choices = [choice for sequence in sequences for choice in sequence.choices]
    sums = [0.0] * (1 + max(choices))
    for logprob, choice in zip(scored_logprobs(routed, batch), choices, strict=True):
        sums[choice] += logprob
    return sums


@contextmanager
def head_at(model: Any, flat_indices: Tensor) -> Iterator[None]:
    """While active, the head, a fifth of a small model's cost, sees the given tokens of the flattened batch alone: logits (1, N, V)."""

    def gather(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BTD = args[0]
        return (x_BTD.reshape(1, -1, x_BTD.shape[-1])[:, flat_indices.to(x_BTD.device)], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def log_normalizers(logits_NV: Tensor) -> Tensor:
    """log of the sum of exponentials of each row (N,), in float32, a few rows at a time in one buffer: 7 times as fast as at once."""
    totals = torch.empty(len(logits_NV), device=logits_NV.device)
    buffer = torch.empty((SOFTMAX_ROWS, logits_NV.shape[1]), device=logits_NV.device)
    for start in range(0, len(logits_NV), SOFTMAX_ROWS):
        rows = logits_NV[start : start + SOFTMAX_ROWS]
        part = buffer[: len(rows)].copy_(rows)
        highest = part.amax(1, keepdim=True)
        totals[start : start + len(rows)] = part.sub_(highest).exp_().sum(1).log_() + highest[:, 0]
    return totals
