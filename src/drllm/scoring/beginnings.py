"""The tokens with which all prompts of a task begin: system prompt, template, instruction. They run once a path, not once a question.

What comes of it is that of the whole prompt up to rounding, which in 16 bits flips verdicts: so it is for float32.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from drllm.core.route import Route
from drllm.model.cache import new_slots
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import is_plain
from drllm.scoring.packing import sample_token
from drllm.scoring.prefixes import PrefixRunner, padded_width
from drllm.scoring.route_prediction import prompt_inputs
from drllm.tasks import Example

FEWEST = 8  # tokens, below which nothing is won
OPENINGS = ("What", "a", "17", "\\frac", "$x$", '"')  # of questions and passages that share no beginning
# Positions that depend on how long the whole sequence is: what ran before would have run otherwise.
LENGTH_ROPES = ("dynamic", "longrope")


def common_beginning(encode: Callable[[Example], tuple[int, ...]], example: Example) -> tuple[int, ...]:
    """The tokens with which prompts like this example's begin, whatever they ask; none where they are fewer than `FEWEST`."""
    others = [replace(example, question=text, context=text if example.context else "") for text in OPENINGS]
    columns = zip(*(encode(other) for other in others), strict=False)
    shared = tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if len(shared) >= FEWEST else ()


def has_hidden_window(config: Any) -> bool:
    """Whether attention has a window that no cache shows: GPT-Neo's, Doge's. An example that a family is tried on may fit in it."""
    return "local" in getattr(config, "attention_layers", ()) or bool(getattr(config, "keep_window_size", 0))


@torch.no_grad()
def can_begin_alike(routed: RoutedModel) -> bool:
    """Whether prompts may run behind a beginning that ran before: asked of the base model itself, with pads between.

    Slots of a sliding window keep no whole beginning.
    """
    if routed.model.dtype != torch.float32 or not all(map(is_plain, new_slots(routed.config, routed.n_layers))):
        return False
    ropes = {getattr(module, "rope_type", None) for module in routed.model.modules()}
    if has_hidden_window(routed.config) or ropes.intersection(LENGTH_ROPES):
        return False
    n_vocab = routed.model.get_input_embeddings().num_embeddings
    tokens = [sample_token(seed, n_vocab) for seed in range(13)]
    runner, inputs = PrefixRunner(routed, 1, 2**30, keep_keys_values=True, fills=False), partial(prompt_inputs, routed)
    try:
        stem = runner.open_stem(tokens[:8], inputs, (0,))
        roots = [*runner.open_all([tokens], inputs, (0,), padded_width), *runner.open_all([tokens[8:]], inputs, (0,), padded_width, stem)]
        for tag, root in enumerate(roots):
            runner.submit(root, Route.full(routed.n_layers), tag)
        ended: Any = dict(runner.ends(len(roots)))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # the family's forward does not take a mask of another width than its tokens
    whole, behind = (ended[tag].state[-1] for tag in range(2))
    return bool(((whole - behind).abs() <= 1e-3 * whole.std()).all())
