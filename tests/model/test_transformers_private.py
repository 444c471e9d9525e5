"""What `drllm.model.transformers_private` relies on, one line each: the name of the test says what a release has changed."""

from __future__ import annotations

import copy
import inspect

import accelerate.hooks
import pytest
import torch
import transformers
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

import families
from drllm.model import transformers_private as private

VERSION = f"transformers {transformers.__version__}"
KEYS, VALUES = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)


def test_the_familys_cache_makes_one_slot_a_block():
    model = families.build("llama", vocab_size=300, max_position_embeddings=64)
    slots = private.family_slots(model.config, families.N_BLOCKS)
    assert [type(slot) for slot in slots] == [DynamicLayer] * families.N_BLOCKS, f"{VERSION}: DynamicCache(config=...).layers changed"


def test_a_cache_is_made_of_given_slots():
    assert "layers" in inspect.signature(Cache.__init__).parameters, f"{VERSION}: Cache takes no `layers` any more"
    assert len(Cache(layers=[DynamicLayer()]).layers) == 1, f"{VERSION}: Cache keeps its slots elsewhere than in `layers`"


@pytest.mark.parametrize("name", ["get_seq_length", "get_mask_sizes", "reorder_cache"])
def test_the_model_asks_the_cache_for(name):
    assert callable(getattr(Cache, name, None)), f"{VERSION}: Cache.{name} is gone"


def test_a_plain_slot_is_filled_and_grows():
    slot = DynamicLayer()
    assert slot.is_initialized is False, f"{VERSION}: a fresh slot is not marked by is_initialized"
    private.fill(slot, KEYS, VALUES, 3)
    keys, _ = slot.update(KEYS, VALUES)
    assert torch.equal(keys, torch.cat([KEYS, KEYS], dim=-2)), f"{VERSION}: DynamicLayer.update does not append along dimension -2"
    slot.batch_select_indices(torch.tensor([1]))
    assert len(slot.keys) == 1, f"{VERSION}: DynamicLayer.batch_select_indices does not select sequences"


def test_a_window_slot_counts_the_tokens_it_has_seen():
    slot = DynamicSlidingWindowLayer(sliding_window=4)
    assert slot.is_sliding, f"{VERSION}: is_sliding does not mark windows"
    assert private.kept_tokens(slot, 9) == 3, f"{VERSION}: a window of 4 keeps other than 3 tokens"
    used = copy.copy(slot)
    for _ in range(3):
        used.update(KEYS, VALUES)
    assert used.cumulative_length == 9, f"{VERSION}: cumulative_length does not count tokens"
    assert used.keys.shape[-2] == private.kept_tokens(slot, 9), f"{VERSION}: a window keeps another number of tokens"
    assert private.mask_sizes(slot, 9, 1) == used.get_mask_sizes(1), f"{VERSION}: get_mask_sizes reads more than cumulative_length"


def test_room_holds_what_a_plain_slot_holds():
    plain, roomy = DynamicLayer(), private.RoomySlot()
    for slot in (plain, roomy):
        private.fill(slot, KEYS, VALUES, 3)
    for _ in range(20):
        plain.update(KEYS[..., :1, :], VALUES[..., :1, :])
        roomy.update(KEYS[..., :1, :], VALUES[..., :1, :])
    assert torch.equal(plain.keys, roomy.keys), f"{VERSION}: a slot's keys are kept otherwise"


def test_accelerates_hooks_keep_the_forward_under_a_known_name():
    module = nn.Linear(2, 2)
    accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    kept = set(private.FORWARD_NAMES) & vars(module).keys()
    assert kept == set(private.FORWARD_NAMES), f"accelerate {accelerate.__version__}: a hooked module keeps its forward elsewhere"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_module_holds_the_model():
    module = nn.Linear(2, 2)
    assert private.causal_lm(torch.compile(module)) is module, f"torch {torch.__version__}: a compiled module keeps it not in _orig_mod"


def test_a_configuration_says_attention_and_commit():
    model = families.build("llama", vocab_size=300, max_position_embeddings=64)
    assert private.attention_of(model.config) in ("sdpa", "eager"), f"{VERSION}: config._attn_implementation is gone"
    model.config._commit_hash = "abc"
    assert private.commit_of(model.config) == "abc", f"{VERSION}: config._commit_hash cannot be read"


def test_the_cache_is_passed_under_a_known_name():
    model = families.build("llama", vocab_size=300, max_position_embeddings=64)
    name, cache = private.cache_argument(model.forward), DynamicCache(config=model.config)
    model(torch.tensor([[3, 4, 5]]), **{name: cache}, use_cache=True)
    assert cache.get_seq_length() == 3, f"{VERSION}: the forward takes its cache under another name than {name}"


def test_wrapped_tensors_say_what_they_hold():
    """Of plain tensors each is itself; a wrapper of quantised weights lists its parts by `__tensor_flatten__`."""
    plain = torch.ones(2)
    assert [name for name, _ in private.plain_tensors("w", plain)] == ["w"]
    wrapped = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    found = dict(private.plain_tensors("w", wrapped))
    assert found, f"torch {torch.__version__}: a traceable wrapper is not known as one, or lists no parts"
    assert all(name.startswith("w.") for name in found), f"torch {torch.__version__}: __tensor_flatten__ names parts otherwise"
