"""Recipes for mergekit: mergekit itself makes the checkpoint that `drllm export` makes, tensor for tensor; or the export is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import families
import mergekit_runs
from byte_tokens import byte_tokenizer
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.cli.main import main
from drllm.deploy.export import check_export, export
from drllm.deploy.formats.recipe import RECIPE_FILE
from standings import MERGED, NOT_MERGED

pytestmark = pytest.mark.long

needs_mergekit = pytest.mark.skipif(not mergekit_runs.IS_THERE, reason="needs mergekit: run `make mergekit-env`")
ROUTES = [Route.parse(text, 4) for text in ("1202", "0-2,1-3", "1011", "2,0,3,1")]


def saved(family: str, folder: Path, **options) -> RoutedModel:
    families.build(family, vocab_size=300, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return RoutedModel.wrap(str(folder))


@needs_mergekit
@pytest.mark.slow
@pytest.mark.parametrize("family", MERGED)
@torch.no_grad()
def test_mergekit_makes_the_checkpoint(family, tmp_path):
    routed = saved(family, tmp_path / "base")
    for number, route in enumerate(ROUTES):
        export(routed, route, tmp_path / f"recipe{number}", "mergekit")
        export(routed, route, tmp_path / f"plain{number}")
        merged = tmp_path / f"merged{number}"
        mergekit_runs.merge(tmp_path / f"recipe{number}" / RECIPE_FILE, merged)
        files = [path for path in sorted(merged.glob("*.safetensors"))]
        got = {name: tensor for path in files for name, tensor in load_file(path).items()}
        wanted = load_file(tmp_path / f"plain{number}" / "model.safetensors")
        assert set(got) == set(wanted)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
        loaded, ids = AutoModelForCausalLM.from_pretrained(merged), torch.arange(40, 60)[None]
        assert loaded.config.num_hidden_layers == route.n_passes
        logits = routed(ids, routes=route).logits
        assert (loaded(ids).logits - logits).abs().max() <= 1e-5 * max(1, logits.abs().max())


def test_the_recipe_names_the_slices_of_the_path(tmp_path, capsys):
    saved("llama", tmp_path / "base")
    arguments = ["--model", str(tmp_path / "base"), "--route", "0-2,1-3", "--format", "mergekit"]
    assert main(["export", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "6 blocks instead of 4" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "out" / RECIPE_FILE).read_text()) == {
        "slices": [{"sources": [{"model": str(tmp_path / "base"), "layer_range": ends}]} for ends in ([0, 3], [1, 4])],
        "merge_method": "passthrough",
        "dtype": "float32",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "drllm_export.json", RECIPE_FILE]
    assert "tags: [drllm, adaptive-depth, rys]" in (tmp_path / "out" / "README.md").read_text()
    check_export(tmp_path / "out")


def test_a_revision_is_named(tmp_path, monkeypatch):
    routed = saved("llama", tmp_path / "base")
    monkeypatch.setattr(routed, "base_id", "smollm2-135m")
    monkeypatch.setattr(routed, "revision", "abc123")
    export(routed, ROUTES[0], tmp_path / "out", "mergekit")
    recipe = yaml.safe_load((tmp_path / "out" / RECIPE_FILE).read_text())
    assert recipe["slices"][0]["sources"][0]["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct@abc123"
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("family", [*NOT_MERGED, "mistral-sliding"])
def test_what_mergekit_cannot_express_is_refused(family, tmp_path):
    routed = saved(family, tmp_path / "base")
    if family == "mistral-sliding":  # one window for all blocks
        export(routed, Route.parse("1011"), tmp_path / "out", "mergekit")
        return
    with pytest.raises(UnsupportedModelError, match=r"mergekit changes the number of blocks alone|its logits are off") as caught:
        export(routed, Route.parse("0111"), tmp_path / "out", "mergekit")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_refuses(tmp_path):
    routed = RoutedModel.wrap(families.build("llama"))
    with pytest.raises(InputError, match="mergekit cannot load the base 'a model in memory'"):
        export(routed, ROUTES[0], tmp_path / "out", "mergekit")
    routed.base_id = "tiny.gguf"
    with pytest.raises(InputError, match=r"mergekit cannot load the base 'tiny\.gguf'"):
        export(routed, ROUTES[0], tmp_path / "out", "mergekit")
    routed.base_id = "someone/m@main"
    with pytest.raises(InputError, match="for a revision"):
        export(routed, ROUTES[0], tmp_path / "out", "mergekit")
    routed.base_id = "someone/m"
    with pytest.raises(InputError, match=r"runs \(1-2\)\*0.5, and a mergekit recipe can hold no strength"):
        export(routed, Route.parse("0-2,(1-2)*0.5,3"), tmp_path / "out", "mergekit")
    assert not list(tmp_path.iterdir())
