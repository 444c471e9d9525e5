"""Strengths as scaled copies: what is written, what is measured, and where the two weights are not all that a block adds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import families
from byte_tokens import byte_tokenizer
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.cli.main import main
from drllm.deploy.export import export, read_export
from reference import path_model

pytestmark = pytest.mark.long

ROUTE = Route.parse("0-2,(1-2)*0.5,3")


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mistral", "smollm3", "qwen2"])
@torch.no_grad()
def test_the_copies_add_the_strength_times_what_a_block_adds(family, tmp_path):
    base = families.build(family)
    done = export(RoutedModel.wrap(families.build(family)), ROUTE, tmp_path / "out", "scaled")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = path_model(base, ROUTE.path)
    for place in (3, 4):
        block = copy.deepcopy(wanted.model.layers[place])
        for name, parameter in block.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(0.5)
        wanted.model.layers[place] = block
    ids = torch.arange(20, 40)[None]
    logits = wanted(ids, use_cache=False).logits
    assert (loaded(ids).logits - logits).abs().max() <= 1e-5 * max(1, logits.abs().max())
    assert done.difference > 0
    assert len(done.measured) == 2


@torch.no_grad()
def test_one_block_with_parallel_branches_is_exact(tmp_path):
    """Cohere's attention and feed-forward add to the same states, so that scaling both is the strength itself."""
    routed = RoutedModel.wrap(families.build("cohere"))
    done = export(routed, Route.parse("0-2,(2)*0.5,3"), tmp_path / "out", "scaled")
    assert done.difference < 1e-5


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "mixtral", "deepseek_v3", "olmo2", "gpt_neox", "granite"])
def test_other_branches_are_refused(family, tmp_path):
    if family == "granite":  # multiplies both branches by a number, which scaling commutes with
        export(RoutedModel.wrap(families.build(family)), ROUTE, tmp_path / "out", "scaled")
        return
    with pytest.raises(UnsupportedModelError, match="cannot express this route as scaled copies"):
        export(RoutedModel.wrap(families.build(family)), ROUTE, tmp_path / "out", "scaled")
    assert not (tmp_path / "out").exists()


def test_the_difference_is_printed_and_kept(tmp_path, capsys):
    folder: Path = tmp_path / "base"
    families.build("llama", vocab_size=300, max_position_embeddings=2048).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    arguments = ["export", "--model", str(folder), "--route", str(ROUTE), "--out", str(tmp_path / "out"), "--format"]
    assert main([*arguments, "scaled"]) == 0
    printed = capsys.readouterr().out
    assert "an approximation: on" in printed
    assert "tokens of text the copies differ from the route by" in printed
    assert "for comparison: the base differs from the route by" in printed
    about = read_export(tmp_path / "out")
    assert about is not None
    assert about["measured"]
    assert "**An approximation**" in (tmp_path / "out" / "README.md").read_text()
    for name in ("checkpoint", "peft", "mergekit", "gguf"):
        assert main([*arguments, name]) == 2
        error = capsys.readouterr().err
        assert "can hold no strength: serve the route with drllm, or approximate it (--format scaled)" in error
        assert error.count("\n") == 1
    with pytest.raises(InputError, match="has no strength to approximate"):
        export(RoutedModel.wrap(str(folder)), Route.parse("0-2,1-3"), tmp_path / "out", "scaled")
