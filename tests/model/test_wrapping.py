"""Wrapping beside the tools that also change models: device maps, adapters, copies; and loading by name."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from accelerate import dispatch_model
from transformers import T5Config, T5ForConditionalGeneration

import families
from drllm import ArtifactError, InputError, Route, RoutedModel, UnsupportedModelError
from drllm.model.load import fingerprint, load_base
from drllm.policies.constant import RoutePolicy
from reference import reference_logits

ROUTE = Route.parse("1021")
PLACES = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", *(f"model.layers.{i}" for i in range(4))], "cpu")
IDS = torch.tensor([[5, 6, 7, 8]], device=families.DEVICE)


def logits(model, route=ROUTE):
    with torch.no_grad():
        return model(IDS, routes=route).logits


def test_a_dispatched_model_routes_and_unwraps():
    base = families.build("llama")
    expected = reference_logits(base, ROUTE.path, IDS)
    dispatched = dispatch_model(base, PLACES, main_device="cpu", force_hooks=True)
    hooked = dispatched.model.layers[0].forward
    routed = RoutedModel.wrap(dispatched)
    assert torch.allclose(logits(routed), expected, atol=1e-5)
    routed.unwrap()
    assert dispatched.model.layers[0].forward == hooked


def test_an_adapted_model_routes_and_its_fingerprint_differs():
    base = families.build("llama")
    plain = fingerprint(base)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    expected = reference_logits(base, ROUTE.path, IDS)
    for model in (base, adapted):  # from inside, and from outside
        routed = RoutedModel.wrap(model)
        with torch.no_grad():
            assert torch.allclose(routed(IDS, position_ids=torch.arange(4)[None], routes=ROUTE).logits, expected, atol=1e-5)
        assert routed.fingerprint != plain
        routed.unwrap()


def test_an_adapter_may_be_added_after_wrapping():
    base = families.build("llama")
    routed = RoutedModel.wrap(base)
    before = logits(routed)
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    after = logits(routed)
    assert (before - after).abs().max() > 1e-3


def test_a_copy_of_a_routed_model_is_independent():
    routed = RoutedModel.wrap(families.build("llama"))
    twin = copy.deepcopy(routed)
    expected = logits(routed)
    with torch.no_grad():
        for parameter in routed.model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits(twin), expected)
    assert not torch.allclose(logits(routed), expected, atol=1e-3)


@pytest.mark.gpu
def test_hooks_added_after_wrapping_keep_routing_and_block_unwrapping():
    base = families.build("llama")
    expected = reference_logits(base, ROUTE.path, IDS)
    routed = RoutedModel.wrap(base)
    dispatch_model(base, PLACES, main_device="cpu", force_hooks=True)
    assert torch.allclose(logits(routed), expected, atol=1e-5)
    with pytest.raises(InputError, match="hooked after wrapping"):
        routed.unwrap()
    with pytest.raises(InputError, match="wrapped already"):
        RoutedModel.wrap(base)


@pytest.mark.gpu
def test_a_spent_wrapper_leaves_its_successor_alone():
    base = families.build("llama")
    expected = reference_logits(base, ROUTE.path, IDS)
    first = RoutedModel.wrap(base)
    first.unwrap()
    second = RoutedModel.wrap(base)
    first.unwrap()
    assert torch.allclose(logits(second), expected, atol=1e-5)


def test_a_route_that_nothing_follows_is_an_error():
    routed = RoutedModel.wrap(families.build("llama"))
    del routed.blocks[2].forward
    with pytest.raises(InputError, match="did not follow the route"):
        logits(routed)
    with pytest.raises(InputError, match="did not follow the route"):
        routed.generate(input_ids=IDS, policy=ROUTE, max_new_tokens=2)


def test_refused_models_keep_their_dtype_and_modes():
    base = families.build("bloom")
    with pytest.raises(UnsupportedModelError):
        RoutedModel.wrap(base, dtype=torch.bfloat16)
    assert base.dtype == torch.float32
    mixed = families.build("llama")
    mixed.model.layers[1].train()
    RoutedModel.wrap(mixed)
    assert (mixed.model.layers[1].training, mixed.training) == (True, False)


def test_encoders_cross_attention_headless_and_offloaded_models_are_refused():
    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=50))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        RoutedModel.wrap(model)
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        RoutedModel.wrap(families.build("gpt2", add_cross_attention=True))
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        RoutedModel.wrap(families.build("llama").model)
    with pytest.raises(InputError, match="cannot wrap a Linear"):
        RoutedModel.wrap(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        offloaded = families.build("llama")
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        RoutedModel.wrap(offloaded)


def test_fingerprint_passes_no_column_over():
    weight = torch.nn.Linear(2048, 96, bias=False)
    before = fingerprint(weight)
    with torch.no_grad():
        weight.weight[:, 1::2] *= 3
    changed = fingerprint(weight)
    assert changed != before
    with torch.no_grad():
        weight.weight[-3:] *= 2
    assert fingerprint(weight) != changed


def test_the_artefact_names_the_weights_as_they_are_when_saved(tmp_path):
    routed = RoutedModel.wrap(families.build("llama"))
    with torch.no_grad():
        routed.model.lm_head.weight.mul_(1.5)
    routed.policy = ROUTE
    routed.save_pretrained(tmp_path)
    assert RoutedModel.from_pretrained(tmp_path, base=routed).policy.route == ROUTE
    stranger = families.build("llama")
    with pytest.raises(ArtifactError, match=r"was made for .* \(weights"):
        RoutedModel.from_pretrained(tmp_path, base=stranger)
    assert "forward" not in vars(stranger.model.layers[0]), "left as it was"


def test_a_base_that_lacks_weights_is_refused(tmp_path, tokenizer):
    model = families.build("llama", vocab_size=300)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".layers.2." not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="lack 9 parameters"):
        load_base(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="cannot load model"):
        load_base(str(tmp_path))


def test_gradients_flow_through_a_mixed_batch():
    base = families.build("llama")
    routed = RoutedModel.wrap(base)
    out = routed(IDS.repeat(2, 1), routes=[ROUTE, Route.parse("0111")]).logits
    out.sum().backward()
    assert base.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.gpu
def test_fingerprint_survives_dtype_and_notices_weights():
    base = families.build("llama")
    name = fingerprint(base)
    assert fingerprint(copy.deepcopy(base).to(torch.bfloat16)) == name
    assert fingerprint(families.build("llama")) == name
    assert fingerprint(families.build("llama", seed=1)) != name
    other = copy.deepcopy(base)
    other.model.norm.weight.data[3] *= 1.1
    assert fingerprint(other) != name


def test_a_local_folder_is_a_base_and_an_artefact_finds_it_again(tmp_path, tokenizer):
    families.build("llama", vocab_size=300).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    routed = RoutedModel.wrap(str(tmp_path / "base"))
    routed.policy = ROUTE
    routed.save_pretrained(tmp_path / "policy")
    again = RoutedModel.from_pretrained(tmp_path / "policy")
    assert again.policy.route == ROUTE
    assert again.fingerprint == routed.fingerprint
    assert torch.equal(logits(again, None), logits(routed, None))
    assert not list((tmp_path / "policy").glob("*.safetensors")), "never base weights"
    routed.save_pretrained(tmp_path / "base")
    assert RoutedModel.wrap(tmp_path / "base").fingerprint == routed.fingerprint, "into its base's folder, which stays whole"


def test_unknown_and_half_overwritten_policies_are_refused(tmp_path):
    routed = RoutedModel.wrap(families.build("llama"))
    routed.policy = ROUTE
    routed.save_pretrained(tmp_path)
    path = tmp_path / "drllm_config.json"
    original = path.read_text()
    path.write_text(original.replace('"static"', '"statik"'))
    with pytest.raises(ArtifactError, match="unknown policy 'statik'; did you mean 'static'"):
        RoutedModel.from_pretrained(tmp_path, base=routed)
    path.write_text(original)
    RoutePolicy(Route.parse("0111")).save(tmp_path)  # a crash came before the configuration was written
    with pytest.raises(ArtifactError, match="not the file that was saved"):
        RoutedModel.from_pretrained(tmp_path, base=routed)
    for content, message in (
        ("{", "not readable JSON"),
        ("{}", "not the configuration of a drllm policy"),
        ("[]", "not the configuration"),
    ):
        path.write_text(content)
        with pytest.raises(ArtifactError, match=message):
            RoutedModel.from_pretrained(tmp_path)


def test_names_that_load_nothing(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "bad.gguf").write_text("x")
    for name, message in (
        ("smollm2-135m-q5", "did you mean 'smollm2-135m-q4'"),
        (str(tmp_path / "none.gguf"), "no file"),
        (str(tmp_path / "bad.gguf"), "cannot load model"),
        (str(tmp_path / "file.txt"), "is a file, expected a folder"),
        (str(tmp_path), "cannot load model"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_base(name)
        assert "\n" not in str(caught.value)
