"""The looped arms of the benchmarks of speed, on a tiny model: what they compare does the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import generate


@pytest.mark.parametrize("text", ["0-3,2-5", "110211", "0-4,1-4,5"])
def test_an_exported_route_has_the_base_s_own_weights_and_says_the_same(tmp_path, text: str):
    families.build("llama", num_hidden_layers=6, vocab_size=300).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    routed = RoutedModel.wrap(str(tmp_path / "base"), dtype="float32")
    route = Route.parse(text, 6)
    exported = generate.exported_of(routed, route)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.allclose(exported(ids).logits, routed(ids, routes=route).logits, atol=1e-5)
    theirs, ours = exported.get_decoder().layers, routed.model.get_decoder().layers
    assert len(theirs) == route.n_passes
    for place, block in enumerate(route.path):
        assert theirs[place].mlp.up_proj.weight.data_ptr() == ours[block].mlp.up_proj.weight.data_ptr()


def test_the_looped_arms_run_as_many_passes():
    looped = Route.parse(generate.LOOPED, 30)
    assert looped.n_passes == 34
    assert generate.EXPORTED["looped_exported"] == ("looped", generate.LOOPED)
    assert set(generate.EXPORTED) < set(generate.ARMS)
    serve = pytest.importorskip("serve", reason="needs the server's packages")
    assert Route.parse(serve.IN_PLACE).actions == looped.actions
    assert set(serve.BESIDE) < set(serve.arms_of(1))
