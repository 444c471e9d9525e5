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
import timed_routes


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


@pytest.mark.parametrize("n_layers", [28, 30])
def test_the_timed_routes_of_a_model(n_layers: int):
    looped = Route.parse(timed_routes.looped(n_layers), n_layers)
    assert looped.n_passes == n_layers + 4
    assert Route.parse(timed_routes.in_place(n_layers)).actions == looped.actions
    assert Route.parse(timed_routes.common(n_layers)).n_passes == 24
    nested = [Route.parse(text) for text in timed_routes.nested(n_layers) + timed_routes.deeper(n_layers)]
    assert [n_layers - route.n_passes for route in nested] == [0, 3, 6, 9, 6, 9, 12, 15]
    assert all(len(route) == n_layers for route in nested)
    assert set(generate.EXPORTED) < set(generate.ARMS)


def test_the_looped_arm_stands_beside_another_engine():
    serve = pytest.importorskip("serve", reason="needs the server's packages")
    assert [name for name in serve.arms_of(1, 28) if name.startswith(serve.LOOPED)] == ["static looped 32 of 28, compiled"]
