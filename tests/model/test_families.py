"""What is said of families follows from the code of transformers."""

from __future__ import annotations

import pytest
import torch

import families
from drllm import RoutedModel
from drllm.model.families import RESCALING


def rescales(name: str) -> bool:
    """Whether a block changes its input where its matrices and biases are zero, whatever its vectors and scalars are.

    What attention and feed-forward network add is zero then, and a plain residual gives back what it took.
    """
    routed = RoutedModel.wrap(families.build(name))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in routed.blocks:
            for part, tensor in [*block.named_parameters(), *block.named_buffers()]:
                if tensor.ndim >= 2 or part.endswith("bias"):
                    tensor.zero_()
                elif tensor.is_floating_point():
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    changes = []
    for block in routed.blocks:
        block.register_forward_hook(lambda _, args, given, out: changes.append(change(args, given, out)), with_kwargs=True)
    with torch.no_grad():
        routed.unwrap()(input_ids=torch.randint(3, families.VOCAB, (1, 6), generator=generator))
    assert len(changes) == families.N_BLOCKS
    return max(changes) > 1e-5


def change(args, given, out) -> float:
    before = args[0] if args else given["hidden_states"]
    after = out[0] if isinstance(out, tuple) else out
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.slow
def test_families_whose_blocks_scale_what_they_are_given_are_named():
    found = {families.FAMILIES[name].model_type for name in families.FAMILIES if rescales(name)}
    assert found == {spec.model_type for spec in families.FAMILIES.values()} & RESCALING
