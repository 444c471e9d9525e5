"""Gates that run parts of a block, and the parts that a block of the Llama, Qwen, Mistral and Gemma families has.

They do not fit a route, which runs a block whole or not at all: they are no policies, and can only be evaluated. What they leave
out is really left out: prompts that skip attention never enter it, tokens that skip a block never meet its weights for queries, output and
feed-forward.

Shapes: B sequences, T tokens, D hidden size, L blocks, A tokens of a sequence that run a block, at most.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from drllm.core.errors import InputError
from drllm.core.progress import Progress
from drllm.core.route import Route
from drllm.policies.files import PolicyFiles, check_shapes
from drllm.runs.store import Verdict
from drllm.scoring.generated import Answer, GeneratedScorer
from drllm.scoring.loglik import LoglikScorer, Question, loglik_verdict, scored_logprobs
from drllm.scoring.packing import make_batch, split_steps
from drllm.scoring.route_prediction import prompt_inputs

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel

_FILES = PolicyFiles("gates", "train them again", "gates.json", "gates.safetensors", checked=False)
_SHAPE = ("n_layers", "hidden_size", "first_block")
THRESHOLDS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # operating points, from running nearly all to running little


@dataclass(frozen=True, slots=True)
class GatedDepth:
    """Stands where a route would for a policy that runs parts of blocks: passes of whole blocks that its multiplications come to."""

    n_passes: float
    is_full = False  # never the base's route

    def __str__(self) -> str:
        return ""


@dataclass
class Step:
    """What one forward knows about its tokens, and counts."""

    weights_BT: Tensor  # 1 / n on the n tokens of a sequence's prompt that a gate may read, else 0
    real_BT: Tensor  # false on padding
    hard: bool  # false while gates are trained, when all is run and gates only scale
    used_B: Tensor  # multiplications spent so far, in passes of a whole block, averaged over a sequence's tokens
    gates: list[Tensor]  # every gate's value, for the loss; (B,) or (B, T) each

    @classmethod
    def of(cls, prompt_mask_BT: Tensor, real_BT: Tensor, hard: bool = True) -> Step:
        prompt = prompt_mask_BT.float()
        return cls(prompt / prompt.sum(1, keepdim=True), real_BT.bool(), hard, torch.zeros(len(prompt), device=prompt.device), [])


class Gates(ABC):
    """Gates that settle, from `first_block` on and block by block, which part of it runs: a gate above the threshold is open.

    Their parameters are float32 tensors by name, (gated blocks, ...) each.
    """

    name: ClassVar[str]
    prompt_format: str | None = None

    def __init__(self, n_layers: int, hidden_size: int, first_block: int, tensors: dict[str, Tensor], threshold: float = 0.5):
        self.n_layers, self.hidden_size, self.first_block = n_layers, hidden_size, first_block
        self.tensors, self.threshold = tensors, threshold
        if not 0 <= first_block < n_layers or any(len(tensor) != n_layers - first_block for tensor in tensors.values()):
            raise InputError(f"gates from block {first_block} on do not fit {n_layers} blocks")

    @abstractmethod
    def run(self, block: Any, index: int, x_BTD: Tensor, arguments: dict[str, Any], step: Step) -> Tensor:
        """One block's part under its gate; adds what was spent to `step`."""

    @staticmethod
    @abstractmethod
    def spent(gates: Sequence[Tensor], real_BT: Tensor) -> Any:
        """What training asks a price for, a number: from the gates of all blocks, (B,) or (B, T) each, and the mask of real tokens."""

    def at_threshold(self, threshold: float) -> Gates:
        view = type(self)(self.n_layers, self.hidden_size, self.first_block, self.tensors, threshold)
        view.prompt_format = self.prompt_format
        return view

    def operating_points(self) -> list[Any]:
        """Under each threshold, the one that runs most first."""
        return [self.at_threshold(threshold) for threshold in THRESHOLDS]

    def evaluate(self, scorer: Any, questions: Any) -> tuple[list[Any], list[GatedDepth]]:
        if isinstance(scorer, LoglikScorer):
            return score_gated(scorer, self, questions)
        return generate_gated(scorer, self, questions)

    @contextlib.contextmanager
    def installed(self, routed: RoutedModel, step: Step) -> Iterator[None]:
        """While active, the model's blocks run as the gates say. Not for several threads at once."""
        before = [block.forward for block in routed.blocks]
        for index, (block, routed_block) in enumerate(zip(routed.blocks, routed.routed_blocks, strict=True)):
            block.forward = partial(self._forward, block, routed_block, index, step)
        try:
            yield
        finally:
            for block, forward in zip(routed.blocks, before, strict=True):
                block.forward = forward

    def _forward(self, block: nn.Module, routed_block: Any, index: int, step: Step, /, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(routed_block.parameters, args, strict=False)) | kwargs
        x_BTD = named.pop(routed_block.parameters[0])
        if index < self.first_block:
            step.used_B += 1
            states = routed_block.run(x_BTD, named)[0]
        else:
            states = self.run(block, index, x_BTD, named, step)
        return (states,) if routed_block.returns_tuple else states

    def save(self, folder: Path) -> list[str]:
        """`gates.json` and `gates.safetensors`, each atomically; the artefact holds their digests."""
        return _FILES.save(folder, {name: getattr(self, name) for name in (*_SHAPE, "threshold")}, self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Gates:
        about, tensors = _FILES.load(folder)
        with _FILES.reading(folder):
            n_layers, hidden_size, first_block = (int(about[name]) for name in _SHAPE)
            policy = cls(n_layers, hidden_size, first_block, tensors, float(about["threshold"]))
            check_shapes(tensors, policy.shapes)
            return policy

    def of_block(self, name: str, index: int, device: torch.device) -> Tensor:
        return self.tensors[name][index - self.first_block].to(device)

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def attention(block: Any, x_BTD: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What a block's attention adds to the states."""
    out = block.self_attn(hidden_states=block.input_layernorm(x_BTD), **arguments)
    out = out[0] if isinstance(out, tuple) else out
    return block.post_attention_layernorm(out) if hasattr(block, "pre_feedforward_layernorm") else out


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """What a block's feed-forward adds to the states."""
    if hasattr(block, "pre_feedforward_layernorm"):
        return block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(x)))
    return block.mlp(block.post_attention_layernorm(x))


def attention_of(block: Any, x_BTD: Tensor, arguments: dict[str, Any], open_BT: Tensor) -> Tensor:
    """What attention adds to the open tokens (N, D), sequence by sequence: queries and output of these, keys and values of all tokens."""
    module, (n_sequences, n_tokens) = block.self_attn, open_BT.shape
    h_BTD = block.input_layernorm(x_BTD)
    # (B, A): open tokens first, in order; then, on sequences with fewer of them, places that are dropped again.
    order = torch.argsort((~open_BT).long(), dim=1, stable=True)[:, : int(open_BT.sum(1).max())]
    places = torch.arange(order.shape[1], device=order.device)[None] < open_BT.sum(1)[:, None]
    cos, sin = (part.expand(n_sequences, -1, -1) for part in arguments["position_embeddings"])
    open_cos, open_sin = (part.gather(1, order[..., None].expand(-1, -1, part.shape[-1])) for part in (cos, sin))
    open_queries = module.q_proj(h_BTD[open_BT])
    padded = open_queries.new_zeros((n_sequences, order.shape[1], open_queries.shape[-1])).masked_scatter(places[..., None], open_queries)
    query, key, value = (
        states.view(n_sequences, states.shape[1], -1, module.head_dim).transpose(1, 2)
        for states in (padded, module.k_proj(h_BTD), module.v_proj(h_BTD))
    )
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key = _rotate(query, open_cos, open_sin), _rotate(key, cos, sin)
    mask = arguments.get("attention_mask")
    if mask is None:
        mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=x_BTD.device).tril().expand(n_sequences, 1, -1, -1)
    mask = mask.expand(n_sequences, 1, n_tokens, n_tokens).gather(2, order[:, None, :, None].expand(-1, -1, -1, n_tokens))
    n_groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(n_groups, 1), value.repeat_interleave(n_groups, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=module.scaling)
    out = module.o_proj(out.transpose(1, 2).reshape(n_sequences, order.shape[1], -1)[places])
    return block.post_attention_layernorm(out) if hasattr(block, "pre_feedforward_layernorm") else out


def _rotate(states_BHTS: Tensor, cos_BTS: Tensor, sin_BTS: Tensor) -> Tensor:
    """Rotary positions, as Llama's."""
    first, second = states_BHTS.chunk(2, dim=-1)
    return states_BHTS * cos_BTS[:, None] + torch.cat([-second, first], dim=-1) * sin_BTS[:, None]


@torch.no_grad()
def score_gated(scorer: LoglikScorer, policy: Gates, questions: Sequence[Question]) -> tuple[list[Verdict], list[GatedDepth]]:
    """Verdicts, and the passes that a question's tokens came to on average.

    Gates on a prompt read its context alone; gates on tokens read each token, a choice's among them, as published.
    """
    routed = scorer.routed
    verdicts: list[Verdict] = []
    depths: list[GatedDepth] = []
    widest = [len(question.sequences) * max(map(len, question.sequences)) for question in questions]
    for places in split_steps(widest, scorer.max_step_tokens):
        group = [questions[place] for place in places]
        sequences = [sequence for question in group for sequence in question.sequences]
        owner = [place for place, question in enumerate(group) for _ in question.sequences]
        batch = make_batch(sequences, scorer.packed, routed.model.dtype, routed.device)
        lengths = torch.tensor([*map(len, sequences)], device=routed.device)
        real = torch.arange(batch.prompt_mask.shape[1], device=routed.device)[None] < lengths[:, None]
        step = Step.of(batch.prompt_mask, real)
        with policy.installed(routed, step):
            logprobs = scored_logprobs(routed, batch)
        sums = [[0.0] * len(question.n_chars) for question in group]
        scored = [(place, choice) for place, sequence in zip(owner, sequences, strict=True) for choice in sequence.choices]
        for value, (place, choice) in zip(logprobs, scored, strict=True):
            sums[place][choice] += value
        used, n_tokens = [0.0] * len(group), [0] * len(group)
        for passes, sequence, place in zip(step.used_B.tolist(), sequences, owner, strict=True):
            used[place] += passes * len(sequence)
            n_tokens[place] += len(sequence)
        verdicts += [loglik_verdict(totals, question, scorer.metric) for totals, question in zip(sums, group, strict=True)]
        depths += [GatedDepth(passes / n) for passes, n in zip(used, n_tokens, strict=True)]
    return verdicts, depths


@torch.no_grad()
def generate_gated(scorer: GeneratedScorer, policy: Gates, questions: Sequence[Question]) -> tuple[list[Verdict], list[GatedDepth]]:
    """Verdicts of generated answers, and the passes that a question's tokens came to on average, generated ones among them.

    Without a cache: every token takes a forward of all tokens before it, since gates on tokens leave holes that no cache here knows.
    """
    routed = scorer.routed
    full = Route.full(routed.n_layers)
    answers = [Answer(handle, full, question) for handle, question in enumerate(questions)]
    depths = [GatedDepth(float(routed.n_layers))] * len(questions)
    with Progress("answers under gates", len(questions)) as progress:
        for places in split_steps([question.n_tokens + scorer.max_new_tokens for question in questions], scorer.max_step_tokens):
            running = [answers[place] for place in places]
            while running:
                inputs = prompt_inputs(routed, [(*answer.question.context_ids, *answer.tokens) for answer in running])
                real = inputs["attention_mask"].bool()
                n_new = torch.tensor([len(answer.tokens) for answer in running], device=real.device)[:, None]
                is_prompt = real & (torch.arange(real.shape[1], device=real.device)[None] < real.shape[1] - n_new)
                step = Step.of(is_prompt, real)
                with policy.installed(routed, step):
                    logits_BV = routed.model(**inputs, use_cache=False).logits[:, -1]
                scorer.extend(running, logits_BV)
                for answer, passes in zip(running, step.used_B.tolist(), strict=True):
                    depths[answer.handle] = GatedDepth(passes)
                running = [answer for answer in running if not answer.done]
            progress.advance(len(places))
    return [scorer.verdict(answer) for answer in answers], depths
