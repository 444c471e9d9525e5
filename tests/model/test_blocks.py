"""Finding a model's blocks, what stands before each one's forward, and what cannot be routed: on models of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache

import families
from drllm import RoutedModel
from drllm.core.errors import UnsupportedModelError
from drllm.core.route import Route
from drllm.model.blocks import RoutedBlock, find_blocks, find_cache, holds_tensor, is_routed, pick_sequences, probe_blocks
from drllm.model.cache import RoutedCache
from drllm.policies.constant import GivenRoutes
from reference import path_model

D = 4
COUNTED = torch.arange(6.0).reshape(3, 1, 2)


def config_of(n_blocks: int = 3) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=n_blocks, hidden_size=D, num_attention_heads=1, intermediate_size=D, vocab_size=9)


class Block(nn.Module):
    """Adds 1 to the states, and keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def forward(self, hidden: Tensor, cache: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        self.calls.append({"hidden": hidden, "cache": cache, "attention_mask": attention_mask, **others})
        return hidden + 1


class TupleBlock(Block):
    """As the families whose blocks return a tuple."""

    def forward(self, hidden: Tensor, cache: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        return super().forward(hidden, cache, attention_mask, **others), "rest", len(hidden)


def plainly(block: nn.Module, x: Tensor, cache: Any, index: int, model: nn.Module) -> Any:
    """How a model runs one of its blocks, which the tests below break."""
    return block(x, cache, attention_mask=torch.ones(1, 1, 2, 2))


class Model(nn.Module):
    """A stack of three blocks."""

    def __init__(self, step: Callable[..., Any] = plainly, block: type[Block] = Block) -> None:
        super().__init__()
        self.config, self.step = config_of(), step
        self.embed = nn.Embedding(9, D)
        self.layers = nn.ModuleList(block() for _ in range(3))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Tensor:
        assert use_cache
        assert not self.training
        assert not torch.is_grad_enabled()
        assert attention_mask.shape == input_ids.shape
        x, cache = self.embed(input_ids), DynamicCache(config=self.config)
        for index, block in enumerate(self.layers):
            out = self.step(block, x, cache, index, self)
            x = out[0] if isinstance(out, tuple) else out
        return x


def nested(**lists: int) -> nn.Module:
    """A model of three layers with module lists of these names and lengths; a dot in a name (as __) puts one into another's first entry."""
    model = nn.Module()
    model.config = config_of()  # type: ignore[assignment]
    for name, n in lists.items():
        outer, _, inner = name.partition("__")
        parent = model if not inner else model.get_submodule(f"{outer}.0")
        parent.add_module(inner or outer, nn.ModuleList(nn.Module() for _ in range(n)))
    return model


def test_the_blocks_are_the_outermost_list_as_long_as_the_model_is_deep():
    model = nested(heads=2, layers=3, layers__experts=3)
    assert find_blocks(model) is model.layers
    model = nested(heads=2, heads__inner=3)
    assert find_blocks(model) is model.heads[0].inner, "inside a list of another length it is not nested in blocks"


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        ({"layer": 3, "layers": 3}, r"found 2 lists of 3 blocks \(layer, layers\), expected exactly one"),
        ({"layers": 4}, r"found 0 lists of 3 blocks \(none\), expected exactly one"),
    ],
)
def test_no_list_or_two_are_refused_by_name(lists, found):
    with pytest.raises(UnsupportedModelError, match=rf"^model_type 'llama': {found}; drllm routes decoder-only models"):
        find_blocks(nested(**lists))


def test_a_configuration_without_a_depth_has_no_blocks():
    class Bare:
        model_type = "bare"

        def get_text_config(self, decoder: bool) -> Bare:
            assert decoder
            return self

    model = nested(layers=3)
    model.config = Bare()  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match="model_type 'bare': found 0 lists of None blocks"):
        find_blocks(model)


def ready(route: str, n_tokens: int = 1, others: tuple[str, ...] = ()) -> RoutedCache:
    """A cache whose one block takes the first action of each route; further blocks are skipped."""
    routes = [Route.parse(text) for text in (route, *others)]
    return RoutedCache(config_of(len(routes[0])), len(routes[0]), GivenRoutes(routes), torch.ones(len(routes), n_tokens))


def test_without_a_routing_cache_the_block_is_called_as_it_was():
    block = Block()
    routed = RoutedBlock(block, 0, returns_tuple=False)
    assert torch.equal(routed(COUNTED, None, attention_mask="mask", more=1), COUNTED + 1)
    assert block.calls == [{"hidden": COUNTED, "cache": None, "attention_mask": "mask", "more": 1}]


def test_the_cache_is_handed_on_however_it_came_and_the_observer_sees_the_arguments():
    seen = []
    cache = RoutedCache(config_of(), 3, GivenRoutes([Route.parse("100")]), torch.ones(1, 1), lambda *what: seen.append(what))
    block, mask = Block(), torch.zeros(1)
    RoutedBlock(block, 0, returns_tuple=False)(COUNTED[:1], cache, attention_mask=mask)
    assert block.calls[0]["cache"] is cache
    ((index, x, arguments),) = seen
    assert index == 0
    assert x is block.calls[0]["hidden"]
    assert arguments == {"cache": cache, "attention_mask": mask}


class Moving(Block):
    """As under a device map: what it returns lies elsewhere. The device without data stands for a GPU."""

    def forward(self, hidden: Tensor, *args: Any, **others: Any) -> Any:
        return super().forward(hidden, *args, **others).to("meta")


def test_the_sequences_that_skip_follow_the_others_to_another_device():
    out = RoutedBlock(Moving(), 0, returns_tuple=False)(COUNTED, ready("0", others=("1", "0")))
    assert (out.device.type, out.shape) == ("meta", COUNTED.shape)


@pytest.mark.parametrize("as_names", [True, False])
def test_each_sequence_makes_its_own_passes_with_its_own_arguments(as_names):
    """Three sequences skip, execute and repeat."""
    block = Block()
    routed = RoutedBlock(block, 0, returns_tuple=False)
    cache = ready("0", others=("1", "2"))
    mask, shared = torch.arange(3.0)[:, None, None, None], torch.arange(3.0)
    if as_names:
        out = routed(COUNTED, cache=cache, attention_mask=mask, position_ids=shared[:1], cache_position=shared, use_cache=True)
    else:
        out = routed(COUNTED, cache, mask, position_ids=shared[:1], cache_position=shared, use_cache=True)
    assert torch.equal(out, COUNTED + torch.tensor([0.0, 1.0, 2.0])[:, None, None])
    first, second = block.calls
    assert torch.equal(first["hidden"], COUNTED[1:])
    assert torch.equal(second["hidden"], COUNTED[2:] + 1)
    assert first["cache"] is cache
    assert second["cache"] is cache.slots(1)
    assert torch.equal(first["attention_mask"], mask[1:])
    assert torch.equal(second["attention_mask"], mask[2:])
    for call in block.calls:
        assert call["position_ids"] is not None
        assert torch.equal(call["position_ids"], shared[:1]), "one for all"
        assert call["cache_position"] is shared, "not one a sequence, though it has as many entries"
        assert call["use_cache"] is True
    assert cache.n_seen == 1, "the clock is told"


def test_blocks_with_equal_actions_are_handed_the_same_split_arguments():
    blocks = [Block(), Block()]
    cache = ready("11", others=("00",))
    mask = torch.zeros(2, 1, 1, 1)
    x = torch.zeros(2, 1, D)
    for index, block in enumerate(blocks):
        x = RoutedBlock(block, index, returns_tuple=False)(x, cache, mask)
    assert blocks[0].calls[0]["attention_mask"] is blocks[1].calls[0]["attention_mask"]


@pytest.mark.parametrize(("route", "added"), [("0", 0.0), ("1", 1.0), ("2", 2.0)])
def test_one_action_for_all_selects_nothing(route, added):
    block = Block()
    mask = torch.zeros(2, 1, 1, 1)
    x = torch.zeros(2, 5, D)
    cache = ready(route, 5, (route,))
    out = RoutedBlock(block, 0, returns_tuple=False)(x, cache, mask)
    assert torch.equal(out, x + added)
    assert [call["attention_mask"] is mask for call in block.calls] == [True] * int(added)
    assert cache.n_seen == 5


@pytest.mark.parametrize(
    ("routes", "rest"), [(("1", "1"), ("rest", 2)), (("2", "2"), ("rest", 2)), (("2", "0"), ("rest", 1)), (("0", "0"), (None,))]
)
def test_blocks_of_tuples_go_on_returning_tuples(routes, rest):
    block = TupleBlock()
    out = RoutedBlock(block, 0, returns_tuple=True)(torch.zeros(2, 1, D), ready(routes[0], others=routes[1:]), None)
    passes = torch.tensor([float(route) for route in routes])
    assert torch.equal(out[0], passes[:, None, None].expand(2, 1, D))
    assert out[1:] == rest
    assert [call["attention_mask"] for call in block.calls] == [None] * int(routes[0])


def test_a_block_gets_its_forward_back():
    block = Block()
    routed = RoutedBlock(block, 0, returns_tuple=False)
    block.forward = routed
    assert is_routed(block)
    routed.remove()
    assert "forward" not in vars(block)
    assert not is_routed(block)
    own = block.forward
    block.forward = own  # as accelerate's hooks do
    routed = RoutedBlock(block, 0, returns_tuple=False)
    block.forward = routed
    routed.remove()
    assert vars(block)["forward"] is own
    block.forward = routed
    add_hook_to_module(block, ModelHook())
    assert vars(block)["forward"] is not routed
    assert is_routed(block), "under a hook added later"


def test_the_cache_is_found_by_type_wherever_it_stands():
    cache = ready("1")
    plain = DynamicCache(config=config_of())
    assert find_cache((COUNTED, cache), {"mask": None}) is cache
    assert find_cache((COUNTED,), {"mask": None, "layer_past": cache}) is cache
    assert find_cache((COUNTED, plain), {"cache": plain}) is None


def test_what_an_argument_holds_for_some_sequences():
    picked, by_sequence = torch.tensor([2, 0]), torch.arange(3)
    assert pick_sequences(by_sequence, picked, 3).tolist() == [2, 0]
    assert pick_sequences(by_sequence[:2], torch.tensor([1]), 2).tolist() == [1]
    first, (second, shared) = pick_sequences((by_sequence, (by_sequence * 2, by_sequence[:1])), picked, 3)
    assert (first.tolist(), second.tolist(), shared.tolist()) == ([2, 0], [4, 0], [0])
    assert pick_sequences({"a": by_sequence, "b": None}, picked, 3)["a"].tolist() == [2, 0]
    assert pick_sequences(torch.tensor(3), picked, 3).item() == 3, "no dimension to split"
    assert pick_sequences(by_sequence, torch.tensor([0]), 4) is by_sequence, "other than one entry a sequence: shared by all"
    assert pick_sequences(by_sequence[:1], torch.tensor([0, 0]), 1).tolist() == [0], "one sequence: nothing to split"
    for plain in (None, True, 2, 0.5):
        assert pick_sequences(plain, picked, 3) is plain
    with pytest.raises(UnsupportedModelError, match=r"^cannot split a list by sequence for a mixed batch: load the model with attn_impl"):
        pick_sequences([by_sequence], picked, 3)


@pytest.mark.parametrize(("block", "tuples"), [(Block, False), (TupleBlock, True)])
def test_a_probe_tells_what_blocks_return_and_leaves_no_trace(block, tuples):
    model = Model(block=block)
    model.train()
    model.layers[1].eval()
    assert probe_blocks(model, model.layers) is tuples
    assert [model.training, *(each.training for each in model.layers)] == [True, True, False, True]
    assert [call["hidden"].shape for call in model.layers[0].calls] == [(1, 2, D)], "two tokens, once"


class ListBlock(Block):
    def forward(self, hidden: Tensor, *args: Any, **others: Any) -> Any:
        return [super().forward(hidden, *args, **others)]


def handed(name: str, value: Any) -> Callable[..., Any]:
    """Blocks are handed one more argument."""
    return lambda block, x, cache, *_: block(x, cache, **{name: value})


def failing(*_: Any) -> Any:
    raise KeyError("no such part\nand more")


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (
            lambda block, x, cache, index, model: plainly(model.layers[-1 - index], x, cache, index, model),
            "its blocks do not run once each, in order",
        ),
        (lambda *of: plainly(*of) * (2 if of[3] == 1 else 1), "the states change between blocks 1 and 2"),
        (lambda *of: plainly(*of).repeat(2 if of[3] == 0 else 1, 1, 1), "the states change between blocks 0 and 1"),
        (lambda block, x, cache, index, _: block(x, None if index == 2 else cache), "block 2 takes no key-value cache"),
        (lambda *of: plainly(*of)[0], "block 0 returns a list"),
        (failing, r"its forward fails on two plain tokens \(.*no such part"),
        (handed("memory", torch.zeros(1)), r"its blocks exchange 'memory' \(Tensor\) beside the hidden states"),
        (handed("memory", {"a": 1}), r"its blocks exchange 'memory' \(dict\) beside the hidden states"),
        (handed("memory", (1, [2])), r"its blocks exchange 'memory' \(tuple\) beside the hidden states"),
    ],
)
def test_a_probe_says_why_a_model_cannot_be_routed(step, why):
    model = Model(step, ListBlock if "list" in why else Block)
    model.layers[1].train()
    model.layers[2].eval()
    with pytest.raises(UnsupportedModelError, match=rf"^model_type 'llama' cannot be routed exactly: {why}") as caught:
        probe_blocks(model, model.layers)
    assert str(caught.value).endswith("; see `drllm models` for what can")
    assert "\n" not in str(caught.value)
    assert (model.layers[1].training, model.layers[2].training) == (True, False)
    assert not any(block._forward_hooks for block in model.layers)


UNDERSTOOD = {
    **{"attention_mask": torch.ones(1), "position_embeddings": (torch.ones(1), torch.ones(1)), "cache_position": torch.arange(2)},
    **{"flag": True, "number": 2, "scale": 0.5, "kind": "full", "nothing": None, "plain": (1, "a")},
}


@pytest.mark.parametrize(("name", "value"), UNDERSTOOD.items(), ids=UNDERSTOOD)
def test_arguments_that_are_understood_or_hold_nothing_are_no_obstacle(name, value):
    model = Model(handed(name, value))
    assert probe_blocks(model, model.layers) is False


def test_a_probe_asks_where_the_embedding_lies_and_takes_copied_states_for_the_same():
    class Elsewhere(Model):
        def get_input_embeddings(self) -> nn.Embedding:
            return nn.Embedding(9, D, device="meta")

        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Tensor:
            assert input_ids.device.type == attention_mask.device.type == "meta"
            return super().forward(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2), use_cache)

    for model in (Elsewhere(), Model(lambda *of: plainly(*of).clone())):
        assert probe_blocks(model, model.layers) is False


def test_what_may_hold_tensors():
    assert [holds_tensor(value) for value in (COUNTED, (1, (2, COUNTED)), {}, set(), [])] == [True] * 5
    assert [holds_tensor(value) for value in ((), (1, "a"), 1, None, "a")] == [False] * 5


@torch.no_grad()
def test_a_loop_at_full_strength_is_the_unrolled_model_bit_for_bit():
    """Nothing is interpolated: h + 1 (F(h) - h) would round otherwise than F(h)."""
    base = families.build("llama")
    twin, ids = path_model(base, (0, 1, 2, 1, 2, 3)), torch.arange(3, 40)[None]
    wanted = twin(ids, use_cache=False).logits
    assert torch.equal(RoutedModel.wrap(base)(ids, routes=Route.parse("0-2,1-3")).logits, wanted)
