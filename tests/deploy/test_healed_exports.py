"""A healed route for other tools: merged into a plain checkpoint, as PEFT's adapter on either base, or refused in one line."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import families
from drllm import InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.deploy.export import check_export, export
from drllm.deploy.serving.launch import make_spec
from drllm.deploy.serving.spec import ServeSpec
from drllm.model.packages import PACKAGED
from drllm.policies.adapter import Adapter
from drllm.policies.codebook import Codebook, Point, TextSelector
from healed import random_adapter, random_policy
from standings import HEALED

pytestmark = pytest.mark.long

ROUTES = ["1011", "1120", "0-2,1-3"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2-135m-27-of-30"
IDS = torch.tensor([[5, 9, 33, 7, 21, 60], [8, 8, 41, 3, 12, 90]])


def healed(family: str, route: str, folder=None) -> RoutedModel:
    routed = RoutedModel.wrap(families.build(family) if folder is None else str(folder))
    routed.policy = random_policy(routed, Route.parse(route))
    return routed


@pytest.mark.parametrize("family", HEALED)
@pytest.mark.parametrize("route", ROUTES)
def test_merged_it_is_a_plain_checkpoint_that_computes_the_same(family, route, tmp_path):
    routed = healed(family, route)
    done = export(routed, routed.policy.route, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.config.num_hidden_layers == done.n_blocks == routed.policy.route.n_passes
    bare = routed(IDS, routes=routed.policy.route.bare).logits
    assert torch.allclose(loaded(IDS).logits, routed(IDS).logits, atol=1e-4)
    assert (loaded(IDS).logits - bare).abs().max() > 1e-2
    assert "were trained to say what the base says" in (tmp_path / "merged" / "README.md").read_text()
    check_export(tmp_path / "merged")


@pytest.mark.skipif(PACKAGED["smollm2-135m-q4"].installed is None, reason="needs the data package of smollm2-135m-q4 (drllm models)")
def test_in_16_bits_both_are_compared_in_float32(tmp_path, capsys, monkeypatch):
    """The example of the README; merged weights round, and in bfloat16 the base's logits are 1.4 from its own in float32."""
    command = ["export", "--policy", str(EXAMPLE), "--dtype", "bfloat16", "--out", str(tmp_path / "short")]
    assert main(command) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "short").dtype == torch.bfloat16
    monkeypatch.setattr(Adapter, "merged", lambda adapter, linear, weight: weight)
    assert main(command) == 2
    assert "cannot express this route as a plain checkpoint: its logits are off by" in capsys.readouterr().err


@pytest.mark.parametrize("route", ROUTES)
def test_the_policy_s_own_files_are_an_adapter_of_the_shortened_checkpoint(route, tmp_path):
    from peft import PeftModel

    routed = healed("llama", route)
    routed.save_pretrained(tmp_path / "healed")
    export(routed, routed.policy.route.bare, tmp_path / "shorter")
    shorter = AutoModelForCausalLM.from_pretrained(tmp_path / "shorter")
    adapted = PeftModel.from_pretrained(shorter, tmp_path / "healed").eval()
    assert torch.allclose(adapted(IDS).logits, routed(IDS).logits, atol=1e-4)
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged(IDS).logits, routed(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("route", ROUTES)
def test_as_peft_s_adapter_it_goes_onto_the_whole_base(route, tmp_path, checkpoint):
    from peft import AutoPeftModelForCausalLM

    routed = healed("llama", route, checkpoint)
    done = export(routed, routed.policy.route, tmp_path / "adapter", "peft")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(checkpoint)
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(adapted(IDS).logits, routed(IDS).logits, atol=1e-4)
    assert done.difference < 1e-4


def test_a_format_of_the_base_s_own_tensors_is_refused(tmp_path):
    routed = healed("llama", "1011")
    with pytest.raises(InputError, match=r"this route is healed: .*then convert it"):
        export(routed, routed.policy.route, tmp_path / "out", "gguf")


def test_the_command_line_merges_a_policy(tmp_path, checkpoint, capsys):
    routed = healed("llama", "1011", checkpoint)
    routed.save_pretrained(tmp_path / "healed")
    assert main(["export", "--policy", str(tmp_path / "healed"), "--out", str(tmp_path / "merged")]) == 0
    out = capsys.readouterr().out
    assert f"route {routed.policy.route}: 3 blocks instead of 4" in out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(loaded(IDS).logits, routed(IDS).logits, atol=1e-4)
    assert main(["generate", "hello", "--policy", str(tmp_path / "healed"), "--max-new-tokens", "3"]) == 0
    assert f"[route {routed.policy.route}, 3 passes of 4" in capsys.readouterr().out
    assert main(["inspect", "hello", "--policy", str(tmp_path / "healed"), "--max-new-tokens", "3"]) == 0
    assert "3 block passes, the base 4" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:this command cannot run as it is:UserWarning")
def test_served_it_is_a_plain_model_of_fewer_blocks(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    routed = healed("llama", "1011", checkpoint)
    routed.save_pretrained(tmp_path / "healed")
    assert main(["serve", str(tmp_path / "healed"), "--print", "--port", "18731"]) == 0
    first, command = capsys.readouterr().out.strip().split("\n")
    assert first == "serving model: one route, 111"
    words = shlex.split(command)
    merged = words[words.index("--model") + 1]
    assert merged.startswith(str(tmp_path / "cache"))
    assert merged.endswith(routed.policy.route.adapter)
    spec = ServeSpec.from_config(json.loads(words[words.index("--additional-config") + 1]))
    assert spec == ServeSpec("static", 3, "", "111")
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert torch.allclose(loaded(IDS).logits, routed(IDS).logits, atol=1e-4)


def test_no_server_runs_a_healed_route_without_its_adapter():
    routed = healed("llama", "1011")
    with pytest.raises(InputError, match="is healed, and the server holds no adapter"):
        make_spec(routed.policy, "", routed)
    with pytest.raises(InputError, match="is healed, and the server holds no adapter"):
        ServeSpec("routes", 4).check(str(routed.policy.route))


@pytest.mark.filterwarnings("ignore:this command cannot run as it is:UserWarning")
def test_several_healed_routes_are_served_from_one_checkpoint(tmp_path, checkpoint, capsys, monkeypatch):
    """Each on merged blocks of its own behind the base's; a request names any of them, or a route of the base's own blocks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    routed = RoutedModel.wrap(str(checkpoint), dtype="float32")
    adapters = [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("1011", "1201"))]
    names = [str(adapter.healed) for adapter in adapters]
    selector = TextSelector([(7,)], torch.ones(1, 2), torch.zeros(2), math.inf)
    routed.policy = Codebook([Route.full(4), *(adapter.healed for adapter in adapters)], selector, [Point(0.0)], 0, adapters)
    routed.save_pretrained(tmp_path / "nest")
    assert main(["serve", str(tmp_path / "nest"), "--print", "--port", "18731"]) == 0
    first, command = capsys.readouterr().out.strip().split("\n")
    assert first == "serving model: the policy chooses each prompt's route from its text"
    words = shlex.split(command)
    spec = ServeSpec.from_config(json.loads(words[words.index("--additional-config") + 1]))
    assert spec == ServeSpec("routes", 11, str(tmp_path / "nest"), routes=("1111", *names), healed=tuple(names))
    stack = RoutedModel.wrap(words[words.index("--model") + 1], dtype="float32")
    laid = {"1111": "1" * 4 + "0" * 7, "1101": "1101" + "0" * 7, names[0]: "00001110000", names[1]: "0" * 7 + "1111"}
    for text, blocks in laid.items():
        assert str(spec.laid(spec.check(text))) == blocks
        wanted = routed(IDS, routes=Route.parse(text, 4)).logits
        assert torch.allclose(stack(IDS, routes=Route.parse(blocks)).logits, wanted, atol=1e-4)
    assert spec.laid_routes == [laid[text] for text in ("1111", *names)]
    with pytest.raises(InputError, match=r"1011@0{16} is healed, and of healed routes it holds 1011@.*, 1201@"):
        spec.check("1011@" + "0" * 16)
    with pytest.raises(InputError, match="runs block 1 2 times, the server keeps caches for 1"):
        spec.check("1211")
    assert main(["serve", str(tmp_path / "nest"), "--print", "--port", "18731", "--repeatable", "5"]) == 2
    assert "repeatable blocks [5] are not all among the model's 4" in capsys.readouterr().err
