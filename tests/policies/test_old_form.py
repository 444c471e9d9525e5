"""Policies of other packages as `docs/add-a-method.md` of version 0.1 taught them still load and decide, with a note."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.core.moved import MOVED

SOURCE = '''
import json
import torch
from drllm.errors import ArtifactError
from drllm.files import write_json
from drllm.model.policy import Policy, register_policy


@register_policy("parity")
class Parity(Policy):
    """Skips one block where the prompt's number of tokens is even."""

    def __init__(self, n_layers, block):
        self.n_layers, self.block = n_layers, block

    def decide(self, block, x_BTD, prompt_mask_BT):
        even_B = prompt_mask_BT.sum(1) % 2 == 0
        return torch.where(even_B & (block == self.block), 0, 1)

    def save(self, folder):
        write_json(folder / "parity.json", {"n_layers": self.n_layers, "block": self.block})
        return ["parity.json"]

    @classmethod
    def load(cls, folder):
        try:
            return cls(**json.loads((folder / "parity.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(f"{folder}: {error}") from None


class _Running(Policy):
    """One prefill's, as `start` of an old policy returned it."""

    def __init__(self, block, even_B):
        self.n_layers, self.block, self.even_B = 4, block, even_B

    def decide(self, block, x_BTD, prompt_mask_BT):
        return torch.where(self.even_B & (block == self.block), 0, 1)

    def save(self, folder):
        raise NotImplementedError

    load = save


class Started(Parity):
    """The same, but counts the tokens once."""

    def start(self, prompt_mask_BT):
        return _Running(self.block, prompt_mask_BT.sum(1) % 2 == 0)


class Modest(Parity):
    """Its `start` does what the class above does."""

    def start(self, prompt_mask_BT):
        return super().start(prompt_mask_BT)


class _Decides:
    def decide(self, block, x_BTD, prompt_mask_BT):
        return Parity.decide(self, block, x_BTD, prompt_mask_BT)


class Mixed(_Decides, Policy):
    """What decides comes from a class that is no policy."""

    __init__, save, load = Parity.__init__, Parity.save, Parity.load
'''


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The module, imported through names of before."""
    (tmp_path / "parity_policy.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parity_policy", raising=False)
    with pytest.warns(FutureWarning) as told:
        module = importlib.import_module("parity_policy")
    said = [str(warning.message) for warning in told]
    assert any("drllm.model.policy is" in line for line in said)
    assert any("parity_policy.Parity decides by decide(block, x, prompt_mask)" in line for line in said)
    return module


def test_an_old_policy_decides_saves_and_loads(old, tmp_path):
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=64), byte_tokenizer())
    odd, even = Route.full(families.N_BLOCKS), Route.parse("1101")
    for made in (old.Parity, old.Started, old.Modest, old.Mixed):
        routed.policy = made(families.N_BLOCKS, 2)
        outputs = routed.generate(["abc", "abcd"], max_new_tokens=2, do_sample=False)
        assert [output.route for output in outputs] == [odd, even]
        assert outputs[1].token_ids == routed.generate("abcd", policy=even, max_new_tokens=2, do_sample=False)[0].token_ids
    routed.policy = old.Parity(families.N_BLOCKS, 2)
    again = RoutedModel.from_pretrained(routed.save_pretrained(tmp_path / "policy"), base=routed)
    assert type(again.policy) is old.Parity
    assert again.generate("abcd", max_new_tokens=1, do_sample=False)[0].route == even


@pytest.mark.long
def test_old_modules_are_attributes_of_their_packages_and_know_renamed_names():
    code = (
        "import importlib.util, warnings; warnings.simplefilter('ignore'); import drllm.config, drllm.model.policy; "
        "from drllm.config import GateConfig, SearchConfig; from drllm.core.config import GuaranteeConfig; "
        "assert GateConfig is GuaranteeConfig and drllm.config.SearchConfig is SearchConfig; "
        "assert drllm.model.policy.RoutePolicy and importlib.util.find_spec('drllm.config')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["nothing_of_this_name", "torch", "Tensor", "Any", "dataclass", "annotations", "TYPE_CHECKING"])
def test_a_name_that_no_old_module_had_raises_without_a_warning(name):
    """`pickle`, which torch's compiler uses too, asks every loaded module for the name of an object which does not say its module."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for old in MOVED:
            assert not hasattr(importlib.import_module(f"drllm.{old}"), name)
