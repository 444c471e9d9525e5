"""A healed route on disk: PEFT's files, read back to the same bytes, refused where anything does not belong."""

import json

import pytest
import torch
from safetensors.torch import load_file

import families
from drllm import ArtifactError, Route, RoutedModel
from drllm.policies.files import PolicyFiles
from drllm.policies.healed import HealedPolicy
from healed import random_adapter, random_policy
from runs import folder_bytes

ROUTE = Route.parse("1021")
IDS = torch.tensor([[5, 9, 33, 7, 21]])
FILES = PolicyFiles("", "", "healed.json", "adapter_model.safetensors")


@pytest.fixture
def routed() -> RoutedModel:
    return RoutedModel.wrap(families.build("llama"))


def test_saved_and_loaded_it_is_the_same(routed, tmp_path):
    routed.policy = policy = random_policy(routed, ROUTE)
    wanted = routed(IDS).logits
    routed.save_pretrained(tmp_path / "a")
    again = RoutedModel.from_pretrained(tmp_path / "a", base=families.build("llama"))
    assert again.policy.route == policy.route
    assert torch.equal(again(IDS).logits, wanted)
    again.save_pretrained(tmp_path / "b")
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    assert f"route `{policy.route}`" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


def test_its_files_are_peft_s_blocks_named_by_their_place(routed, tmp_path):
    policy = random_policy(routed, ROUTE)
    policy.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    places = {key.split(".")[4] for key in tensors}
    assert places == {"0", "1", "2", "3"}  # blocks 0, 2, 2 and 3 of the base
    again = "base_model.model.model.layers.{}.mlp.up_proj.lora_A.weight"
    assert torch.equal(tensors[again.format(1)], tensors[again.format(2)])
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (
        3,
        6.0,
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"route": "1201"}, "is not the adapter of route 1201 that healed.json names"),
        ({"route": "1001"}, "more than the 2 blocks of route 1001"),
        ({"rank": 8}, "adapter_config.json has rank 3, healed.json 8"),
        ({"blocks": "transformer.h"}, "not a low-rank pair below transformer.h"),
    ],
)
def test_another_route_or_rank_is_refused_in_one_line(routed, tmp_path, change, said):
    adapter = random_adapter(routed, ROUTE)
    HealedPolicy(adapter).save(tmp_path)
    about = json.loads((tmp_path / "healed.json").read_text())
    del about["weights_sha256"]
    FILES.save(tmp_path, about | change, adapter.tensors())
    with pytest.raises(ArtifactError) as refused:
        HealedPolicy.load(tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
