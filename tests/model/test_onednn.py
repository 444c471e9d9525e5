"""Weights laid out for oneDNN: the same bits, with routes, adapters, at any number of rows; and nothing of them is left."""

from __future__ import annotations

import pytest
import torch

import runs
from drllm import Route, RoutedModel
from drllm.model import onednn
from drllm.model.copies import twin_in
from drllm.model.onednn import LaidOutLinear, laid_out, lay_out
from healed import random_adapter

IS_THERE = onednn._is_there()  # with this processor


def half() -> RoutedModel:
    routed = runs.model()
    routed.model.to(torch.bfloat16)
    return routed


def n_laid_out(model) -> int:
    stands = [vars(module).get("forward") for module in model.modules()]
    return sum(isinstance(one, LaidOutLinear) or isinstance(getattr(one, "original", None), LaidOutLinear) for one in stands)


@torch.no_grad()
def test_the_bits_are_the_same_and_all_is_given_back():
    routed = half()
    routed.adopt(adapter := random_adapter(routed, Route.parse("1101"), seed=1))
    routes = (Route.full(4), Route.parse("1201"), adapter.healed)
    asked = [(torch.randint(3, 90, (1, n)), route) for n in (1, 5, 33, 130) for route in routes]
    plain, before = [routed(ids, routes=route).logits for ids, route in asked], {*vars(routed.blocks[0].mlp.up_proj)}
    with laid_out(routed.model):
        assert n_laid_out(routed.model) == (4 * 7 + 1) * IS_THERE
        assert all(torch.equal(routed(ids, routes=route).logits, logits) for (ids, route), logits in zip(asked, plain, strict=True))
        assert not n_laid_out(twin_in(routed, torch.float32).model)
    assert not n_laid_out(routed.model)
    assert {*vars(routed.blocks[0].mlp.up_proj)} == before


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 24, 257])
@pytest.mark.parametrize("bias", [True, False])
def test_of_one_map_whose_sums_cancel_so_that_only_their_rounding_is_left(rows, bias):
    module, x = torch.nn.Linear(8960, 64, bias).bfloat16(), torch.randn(2, rows, 2 * 8960).bfloat16()
    x[..., 4480:8960] = -x[..., :4480]
    module.weight[:, 4480:] = module.weight[:, :4480]
    asked = [x[..., :8960].contiguous(), x[..., ::2], x[:, -1:, :8960], x[0, :, :8960], x[0, 0, :8960], x.view(2, rows, 2, 8960)]
    plain = [module(one) for one in asked]
    with laid_out(module):
        assert ("forward" in vars(module)) == IS_THERE
        assert all(torch.equal(module(one), wanted) for one, wanted in zip(asked, plain, strict=True))
        with torch.enable_grad():
            assert module(x[..., :8960]).requires_grad


@pytest.mark.skipif(not IS_THERE, reason="this processor has no 16-bit products")
def test_what_ends_within_leaves_the_plain_weights(monkeypatch):
    """An interrupt while they are laid out, at the fifth; and an adapter that comes meanwhile."""
    routed, left = half(), iter(range(4))
    monkeypatch.setattr(onednn, "LaidOutLinear", lambda *of: LaidOutLinear(*of) if next(left) >= 0 else None)
    with pytest.raises(StopIteration):
        lay_out(routed.model)
    monkeypatch.undo()
    assert not n_laid_out(routed.model)
    with laid_out(routed.model):
        routed.adopt(random_adapter(routed, Route.parse("1101"), seed=1))
    routed.unwrap()
    assert not any("forward" in vars(module) for module in routed.model.modules())


@pytest.mark.parametrize(("part", "says"), [("_free_bytes", 1000), ("_is_same", False), ("_is_there", False), ("dtype", 0)])
def test_where_it_cannot_be_the_plain_weights_stay(part, says, monkeypatch):
    routed = runs.model() if part == "dtype" else half()
    monkeypatch.setattr(onednn, part, lambda *_: says, raising=False)
    assert lay_out(routed.model) == []
