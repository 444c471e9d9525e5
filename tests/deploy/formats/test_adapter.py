"""Adapters that reorder blocks: stock PEFT computes what the unrolled model computes, or the export is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import families
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.cli.main import main
from drllm.deploy.export import check_export, export
from drllm.deploy.formats.adapter import WEIGHTS_FILE
from reference import path_model
from standings import LAYOUT, LONGER, SOME, TYPES

peft = pytest.importorskip("peft", reason="needs peft (pip install peft)")
pytestmark = pytest.mark.long

L = families.N_BLOCKS
ROUTES = {name: Route.parse(text) for name, text in {"repeat": "1211", "skip": "1011", "both": "1201", "loop": "0-2,1-3"}.items()}


@pytest.mark.parametrize("family", families.sampled(*sorted(LONGER)[:1], "falcon"))
def test_peft_computes_what_the_unrolled_model_computes(family, tmp_path):
    base = families.build(family)
    ids = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(1))
    routed = RoutedModel.wrap(families.build(family))
    for name, route in ROUTES.items():
        refused = family in LAYOUT | TYPES or (family in LONGER and name not in SOME.get(family, {"skip", "both"}))
        if refused:
            with pytest.raises(UnsupportedModelError, match=r"PEFT|torch\.nn\.Linear") as caught:
                export(routed, route, tmp_path / name, "peft")
            assert "\n" not in str(caught.value)
            assert not (tmp_path / name).exists()
            continue
        done = export(routed, route, tmp_path / name, "peft")
        assert done.n_blocks == route.n_passes
        assert done.n_bytes < 1000
        adapted = peft.PeftModel.from_pretrained(families.build(family), tmp_path / name).eval()
        wanted = path_model(base, route.path)
        with torch.no_grad():
            logits, got = wanted(ids, use_cache=False).logits, adapted(input_ids=ids).logits
            assert (got - logits).abs().max() <= 1e-5 * max(1, logits.abs().max())
        text = adapted.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        with torch.no_grad():
            steps = wanted(text, use_cache=False).logits[0, ids.shape[1] - 1 : -1]
        assert steps.shape[0] == 6
        chosen = steps.gather(-1, text[0, ids.shape[1] :, None])[:, 0]
        allowed = [index for index in range(steps.shape[-1]) if index != families.EOS]
        assert (chosen >= steps[:, allowed].max(-1).values - 1e-4).all(), "greedy text of the unrolled model"
        assert (", rys]" in (tmp_path / name / "README.md").read_text()) == (name != "skip"), "the tag of loops"
    assert not list(tmp_path.glob(".*"))


LOAD = """
import sys, torch
from peft import AutoPeftModelForCausalLM
assert not any(name.startswith("drllm") for name in sys.modules)
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(40, 60)[None]
unique = {p.data_ptr(): p.numel() for name, p in model.named_parameters() if "lora" not in name}
generated = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
torch.save((model(input_ids=ids).logits, generated, sum(unique.values())), sys.argv[2])
"""


@torch.no_grad()
@pytest.mark.slow
def test_another_process_loads_it_by_the_folder_alone(checkpoint, tmp_path, capsys):
    """The Hub's layout: the adapter names its base. No weight is copied; the checkpoint of the same route computes the same."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert main(["export", "--model", str(checkpoint), "--route", "1202", "--format", "peft", "--out", str(out)]) == 0
    assert "5 blocks instead of 4" in capsys.readouterr().out
    assert main(["export", "--model", str(checkpoint), "--route", "1202", "--out", str(plain)]) == 0
    done = subprocess.run([sys.executable, "-c", LOAD, str(out), str(tmp_path / "got.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, generated, n_parameters = torch.load(tmp_path / "got.pt")
    from transformers import AutoModelForCausalLM

    unrolled, ids = AutoModelForCausalLM.from_pretrained(plain), torch.arange(40, 60)[None]
    assert torch.equal(unrolled(ids).logits, logits)
    assert torch.equal(unrolled.generate(ids, max_new_tokens=8, do_sample=False), generated)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    skipped = sum(p.numel() for p in base.model.layers[2].parameters())
    assert n_parameters == sum(p.numel() for p in base.parameters()) - skipped
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["layer_replication"] == [[0, 2], [1, 2], [3, 4], [3, 4]]
    assert config["base_model_name_or_path"] == str(checkpoint)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS_FILE, "drllm_export.json"]
    card = (out / "README.md").read_text()
    assert "library_name: peft\ntags: [drllm, adaptive-depth, rys]" in card
    assert not any(weights.any() for name, weights in load_file(out / WEIGHTS_FILE).items() if "lora_B" in name)
    check_export(out)
    assert main(["info", str(out)]) == 0


def test_what_an_adapter_refuses(tmp_path, monkeypatch):
    routed = RoutedModel.wrap(families.build("llama"))
    with pytest.raises(InputError, match=r"runs \(1-2\)\*0.5, and a PEFT adapter can hold no strength"):
        export(routed, Route.parse("0-2,(1-2)*0.5,3"), tmp_path / "out", "peft")
    with pytest.raises(InputError, match="unknown export format 'lora'"):
        export(routed, ROUTES["skip"], tmp_path / "out", "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        export(routed, ROUTES["skip"], tmp_path / "out", "peft")
    assert not list(tmp_path.iterdir())


def test_a_base_in_half_precision(tmp_path):
    half = RoutedModel.wrap(families.build("llama").to(torch.bfloat16))
    before, config = {name: p.data_ptr() for name, p in half.model.named_parameters()}, half.config.to_dict()
    assert export(half, ROUTES["loop"], tmp_path / "half", "peft").difference < 2e-2
    assert {name: p.data_ptr() for name, p in half.model.named_parameters()} == before, "the base is as it was"
    assert (half.config.to_dict(), len(half.model.model.layers)) == (config, L)
