"""A question as packed prompts: the context once, then every choice as a branch that sees the context and itself. B sequences, T tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedPrompt:
    """One sequence of tokens. Branch 0 is the shared context; branch k > 0 sees it and itself, and its positions go on from there."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    n_context: int  # tokens that belong to the prompt: what a policy may read
    sources: tuple[int, ...]  # of each scored token, the index of the token it is predicted from
    targets: tuple[int, ...]  # of each scored token, its id
    choices: tuple[int, ...]  # of each scored token, its choice

    def __len__(self) -> int:
        return len(self.tokens)


def encode_choice(tokenizer: Any, context: str, continuation: str, add_bos: bool) -> tuple[list[int], list[int]]:
    """(context ids, continuation ids) as lm-evaluation-harness makes them: the second is what the whole pair has beyond the first.

    The context is tokenised alone, so it is the same for every choice and the continuation cannot reach a policy through it.
    """
    whole = tokenizer(context + continuation, add_special_tokens=add_bos)["input_ids"]
    head = tokenizer(context.rstrip(), add_special_tokens=add_bos)["input_ids"]
    return head, whole[len(head) :]


def pack_choices(pairs: Sequence[tuple[list[int], list[int]]]) -> PackedPrompt:
    """All choices of a question in one sequence, after the context they share."""
    context = pairs[0][0]
    n_shared = len(context)
    tokens, positions, branches = list(context), list(range(n_shared)), [0] * n_shared
    sources, targets, choices = [], [], []
    for choice, (_, tail) in enumerate(pairs):
        start = len(tokens)
        # The last token of a choice predicts nothing that is scored, so it need not be in the sequence.
        kept = tail[:-1]
        sources += [n_shared - 1, *range(start, start + len(kept))]
        targets += tail
        choices += [choice] * len(tail)
        tokens += kept
        positions += range(n_shared, n_shared + len(kept))
        branches += [choice + 1] * len(kept)
    return PackedPrompt(tuple(tokens), tuple(positions), tuple(branches), n_shared, tuple(sources), tuple(targets), tuple(choices))


def separate_choices(pairs: Sequence[tuple[list[int], list[int]]]) -> list[PackedPrompt]:
    """One plain causal sequence a choice, for families that take no tree-shaped mask."""
    sequences = []
    for choice, (head, tail) in enumerate(pairs):
        tokens = tuple(head + tail)[:-1]
        positions, branches, n_head = tuple(range(len(tokens))), (0,) * len(tokens), len(head)
        sequences.append(PackedPrompt(tokens, positions, branches, n_head, positions[n_head - 1 :], tuple(tail), (choice,) * len(tail)))
    return sequences


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right, ready for one model step."""

    inputs: dict[str, Tensor]  # input_ids (B, T), attention_mask (B, T) or, packed, (B, 1, T, T) additive, and then position_ids (B, T)
    prompt_mask: Tensor  # (B, T)
    scored: Tensor  # (N,) indices into the flattened (B * T) tokens
    targets: Tensor  # (N,)


def make_batch(sequences: Sequence[PackedPrompt], packed: bool, dtype: torch.dtype, device: torch.device, width: int = 0) -> Batch:
    """Pad sequences to `width`, or to the longest one; a pad is seen by itself alone, so that no softmax is empty."""
    width = max(width, *map(len, sequences))

    def padded(rows: list[tuple[int, ...]], pad: int) -> Tensor:
        return torch.tensor([row + (pad,) * (width - len(row)) for row in rows])

    branches = padded([sequence.branches for sequence in sequences], -1)
    inputs = {"input_ids": padded([sequence.tokens for sequence in sequences], 0)}
    prompt = padded([(1,) * sequence.n_context for sequence in sequences], 0)
    scored = [index * width + source for index, sequence in enumerate(sequences) for source in sequence.sources]
    targets = [target for sequence in sequences for target in sequence.targets]
    mask: Tensor = (branches >= 0).long()
    if packed:
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        sees = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
        real = (branches >= 0)[:, None, :] & causal & sees
        real |= torch.eye(width, dtype=torch.bool)
        mask = torch.zeros(real.shape, dtype=dtype).masked_fill(~real, torch.finfo(dtype).min)[:, None]
        inputs["position_ids"] = padded([sequence.positions for sequence in sequences], 0)
    inputs = {name: value.to(device) for name, value in (inputs | {"attention_mask": mask}).items()}
    return Batch(inputs, prompt.to(device), torch.tensor(scored, device=device), torch.tensor(targets, device=device))


def sample_token(seed: int, n_vocab: int) -> int:
    """A token of the vocabulary, past the few specials at its start: for examples that a family is tried on."""
    return 3 + (seed * 7919) % (n_vocab - 3)


def split_steps(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Consecutive sequences in steps of at most `max_tokens` padded tokens (one sequence at least): indices into `lengths`."""
    steps: list[list[int]] = []
    width = 0
    for index, length in enumerate(lengths):
        width = max(width, length) if steps else length
        if not steps or (len(steps[-1]) + 1) * width > max_tokens:
            steps.append([])
            width = length
        steps[-1].append(index)
    return steps
