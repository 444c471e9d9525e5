"""A decode step reads nothing back from the device but what stock transformers reads: a GPU's host need not wait for it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import families
from drllm import Route, RoutedModel
from drllm.policies.constant import GivenRoutes
from drllm.policies.routers import RouterConfig, Routers
from host_syncs import HostSyncs

L = families.N_BLOCKS
MIXED = [Route.parse("1111"), Route.parse("0121"), Route.parse("0-2,(1-2)*0.5,3", L)]
PROMPTS = torch.tensor([[0, 0, 5, 6, 7], [0, 8, 9, 4, 3], [11, 12, 13, 14, 15]], device=families.DEVICE)

pytestmark = pytest.mark.gpu


def counted(model, n: int, **options) -> Counter[str]:
    """Of a greedy generation of n tokens; an end token is looked for, and never comes."""
    mask = (PROMPTS != 0).long()
    ends = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
    with HostSyncs() as found:
        if isinstance(model, RoutedModel):
            model.generate(input_ids=PROMPTS, attention_mask=mask, **ends, **options)
        else:
            model.generate(PROMPTS, attention_mask=mask, **ends)
    return found


def of_a_step(model, **options) -> Counter[str]:
    """By name, of one decode step: what eight more tokens add, which is a multiple of eight."""
    short, long = (counted(model, n, **options) for n in (3, 11))
    more = {name: long[name] - short[name] for name in long if long[name] != short[name]}
    assert all(n % 8 == 0 for n in more.values()), more
    return Counter({name: n // 8 for name, n in more.items()})


FAMILIES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gemma3_text", "mistral-sliding", "mixtral"))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["none", "one route", "mixed routes", "routers"])
def test_a_decode_step_waits_no_more_often_than_stocks(family, source):
    stock = of_a_step(families.build(family))
    routed = RoutedModel.wrap(families.build(family))
    routers = Routers(RouterConfig(L, routed.hidden_size), seed=0).to(families.DEVICE)
    policies = {"none": None, "one route": Route.parse("1021"), "mixed routes": MIXED, "routers": routers}
    assert of_a_step(routed, policy=policies[source]) == stock
    assert stock.total() >= 1, "stock asks in each step whether all sequences have ended"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mistral-sliding"])
@torch.no_grad()
def test_prefill_and_decode_mix_no_devices_and_read_nothing(family):
    """On torch's meta device, as on another device: a tensor of the CPU among its own is an error, and so is any value that is read."""
    routed = RoutedModel.wrap(families.build(family))
    routed.model.to("meta")

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(*shape, dtype=torch.long, device="meta")

    cache = routed.new_cache(GivenRoutes(MIXED), ones(3, 5))
    routed.forward(cache, input_ids=ones(3, 5), attention_mask=ones(3, 5))
    step = routed.forward(cache, input_ids=ones(3, 1), attention_mask=ones(3, 6)).logits
    assert (step.device.type, tuple(step.shape)) == ("meta", (3, 1, families.VOCAB))


def test_the_counter_sees_each_way_of_waiting():
    x = torch.tensor([1.0, 2.0])
    for wait in (
        *(lambda: x.sum().item(), x.tolist, x.cpu, lambda: bool(x.sum() > 0), lambda: float(x.sum()), x.numpy, x.nonzero),
        *(lambda: x[x > 1], lambda: x.index_put_((x > 1,), torch.tensor(5.0)), lambda: torch.equal(x, x)),
    ):
        with HostSyncs() as found:
            wait()
        assert found.total() >= 1, found
    with HostSyncs() as found:
        torch.where(x > 1, x, 0.0).index_select(0, torch.tensor([0]))[torch.tensor([0])].argmax(-1)
    assert not found
