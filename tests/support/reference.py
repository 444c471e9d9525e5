"""The ground truth of routing: the base model's own uncached forward over a block list replaced by the path.

Nothing here imports drllm. A route is a path, the sequence of block indices that run; the reference is a model whose block list *is*
that sequence, so whatever the family does around its blocks it does as shipped.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_TWINS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], nn.Module]] = weakref.WeakKeyDictionary()


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its dotted name; `LookupError` when there is none or several (lists inside blocks do not count)."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = {name: blocks for name, blocks in lists.items() if len(blocks) == model.config.num_hidden_layers}
    outer = {name: blocks for name, blocks in found.items() if not any(name.startswith(f"{other}.") for other in found if other != name)}
    if len(outer) != 1:
        raise LookupError(f"{type(model).__name__}: expected one list of {model.config.num_hidden_layers} blocks, found {sorted(outer)}")
    return next(iter(outer.items()))


def _follow_path(config: Any, path: Sequence[int], n_blocks: int) -> None:
    """Make the configuration describe the blocks of the path: their number, and every list with one entry a block."""
    fields = vars(config)
    for name, value in list(fields.items()):
        if isinstance(value, list | tuple) and len(value) == n_blocks and name not in {"architectures", "rope_parameters"}:
            # Past the class: strict configurations compare lists with num_hidden_layers on the way.
            fields[name] = type(value)(value[block] for block in path)
    fields[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(path)


Part = int | tuple[int, int, float]
"""Of a path: a block, or the first and the last block of a span and its strength s, h + s (F(h) - h)."""


def blocks_of(path: Sequence[Part]) -> list[int]:
    """Indices of the blocks of a path in the order they run."""
    return [block for part in path for block in ([part] if isinstance(part, int) else range(part[0], part[1] + 1))]


def path_model(model: nn.Module, parts: Sequence[Part]) -> nn.Module:
    """A model that runs the blocks of a path in that order; it shares the weights of `model` and leaves it as it was.

    The blocks are those of `model`; at both ends of a damped span stand copies that keep and mix the states. The modules outside them are
    copies that see a configuration which follows the path, since many families look a block's mask or rotary table up by its place in the
    loop; the blocks look things up by their own index.
    """
    name, blocks = find_blocks(model)
    n_blocks, path = model.config.num_hidden_layers, blocks_of(parts)
    shared = [*model.parameters(), *model.buffers(), *blocks]
    twin = copy.deepcopy(model, {id(part): part for part in shared})
    walked = nn.ModuleList(_run_parts([blocks[block] for block in path], parts))
    inside = {id(module) for block in [*blocks, *walked] for module in block.modules()}
    twin.set_submodule(name, walked)
    configs = {id(config): config for module in twin.modules() if id(module) not in inside and (config := getattr(module, "config", None))}
    for config in configs.values():
        _follow_path(config, path, n_blocks)
    return twin.eval()


def _run_parts(blocks: list[nn.Module], parts: Sequence[Part]) -> list[nn.Module]:
    """The blocks of a path, those at the ends of a damped span as copies with the interpolation written out."""
    at = 0
    for part in parts:
        n, strength = (1, 1.0) if isinstance(part, int) else (part[1] - part[0] + 1, part[2])
        if strength != 1:
            _damp(blocks, at, at + n - 1, strength)
        at += n
    return blocks


def _damp(blocks: list[nn.Module], first: int, last: int, strength: float) -> None:
    """Put copies where the span begins, which keeps the states, and where it ends, which mixes them with what the span made of them."""
    kept: list[torch.Tensor] = []

    def keeping(forward: Any) -> Any:
        def keep(*args: Any, **kwargs: Any) -> Any:
            kept.append(args[0] if args else kwargs["hidden_states"])
            return forward(*args, **kwargs)

        return keep

    def mixing(forward: Any) -> Any:
        def mix(*args: Any, **kwargs: Any) -> Any:
            out: Any = forward(*args, **kwargs)
            before, after = kept.pop(), out[0] if isinstance(out, tuple) else out
            mixed = before + strength * (after - before)
            return (mixed, *out[1:]) if isinstance(out, tuple) else mixed

        return mix

    for place, change in ((first, keeping), (last, mixing)):
        block = copy.copy(blocks[place])
        block.forward = change(blocks[place].forward)
        blocks[place] = block


def twin_of(model: nn.Module, path: Sequence[Part]) -> nn.Module:
    """`path_model`, made once for a model and a path: for models whose modules stay as they are."""
    twins = _TWINS.setdefault(model, {})
    if (path := tuple(path)) not in twins:
        twins[path] = path_model(model, path)
    return twins[path]


@torch.no_grad()
def reference_logits(
    model: nn.Module, path: Sequence[Part], input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
) -> torch.Tensor:
    """Logits (B, T, vocabulary) of this path, uncached. input_ids and attention_mask: (B, T)."""
    return twin_of(model, path)(input_ids, attention_mask=attention_mask, use_cache=False, **inputs).logits


@torch.no_grad()
def reference_generate(model: nn.Module, path: Sequence[Part], input_ids: torch.Tensor, n: int) -> tuple[list[int], torch.Tensor]:
    """Greedy continuation of one prompt, recomputed from scratch at every step; no end token stops it.

    input_ids: (1, T). Returns the n new tokens and the logits (n, vocabulary) each was chosen from.
    """
    twin = twin_of(model, path)
    tokens, steps = input_ids, []
    for _ in range(n):
        logits = twin(tokens, use_cache=False).logits[:, -1]
        steps.append(logits[0])
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    new = tokens[0, input_ids.shape[1] :].tolist()
    return new, torch.stack(steps) if steps else torch.empty(0, 0)


@torch.no_grad()
def is_greedy(model: nn.Module, path: Sequence[Part], input_ids: torch.Tensor, tokens: Sequence[int]) -> bool:
    """Whether `tokens` is the greedy continuation of one prompt, input_ids (1, T), without running a forward a token.

    Each token must be the most likely one behind the prompt and the tokens before it, which one forward over all of them tells.
    """
    row = torch.cat([input_ids[0], torch.tensor(list(tokens), device=input_ids.device)])
    chosen = twin_of(model, path)(row[None], use_cache=False).logits[0, input_ids.shape[1] - 1 : -1].argmax(-1)
    return chosen.tolist() == list(tokens)


@torch.no_grad()
def plain_greedy(model: nn.Module, ids: Sequence[int], n_new: int, end: int | None, **options: Any) -> list[int]:
    """Uncached greedy decoding of one prompt by a plain model, up to and including the end token; `options` go to its forward."""
    tokens = list(ids)
    for _ in range(n_new):
        tokens.append(int(model(torch.tensor([tokens], device=model.device), use_cache=False, **options).logits[0, -1].argmax()))
        if tokens[-1] == end:
            break
    return tokens[len(ids) :]


@torch.no_grad()
def plain_logliks(model: nn.Module, tokenizer: Any, context: str, continuations: Sequence[str]) -> list[float]:
    """lm-evaluation-harness on one question, written out: one uncached row a choice, by a plain model."""
    totals = []
    for continuation in continuations:
        head, whole = tokenizer(context.rstrip())["input_ids"], tokenizer(context + continuation)["input_ids"]
        tail = whole[len(head) :]
        log_p = model(torch.tensor([(head + tail)[:-1]], device=model.device), use_cache=False).logits[0].double().log_softmax(-1)
        totals.append(sum(log_p[len(head) - 1 + place, token].item() for place, token in enumerate(tail)))
    return totals
