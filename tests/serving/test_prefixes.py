"""What prompts begin with alike is read once by a front selector, and changes no prompt's states."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
import torch
from test_serving_front import BLOCK, FAMILIES, checkpoint, codebook, prompts_of

from drllm.core.errors import InputError
from drllm.deploy.serving.engine import prefixes as kept
from drllm.deploy.serving.engine.front import Choice, FrontSelector
from drllm.deploy.serving.engine.prefixes import PIECE, Prefixes


def front_of(folder: Any, family: str = "llama", keeps: bool = True) -> FrontSelector:
    """Of a tiny model."""
    size = checkpoint(folder, family).config.hidden_size
    return FrontSelector(codebook(size), str(folder), torch.float32, "cpu", keeps=keeps)


def ask(front: FrontSelector, *prompts: list[int], salts: tuple[str, ...] = ()) -> list[Choice]:
    """All at once."""

    async def together() -> list[Choice]:
        asked = itertools.zip_longest(prompts, salts, fillvalue="")
        return await asyncio.gather(*(front.choose(ids, salt) for ids, salt in asked))

    return asyncio.run(together())


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
def test_states_after_what_is_kept_are_those_of_whole_prompts(family: str, tmp_path):
    """Also where what is kept was itself read after something kept, and where a block sees a window shorter than the beginning."""
    front = front_of(tmp_path, family)
    (start,) = prompts_of([3 * PIECE])
    for n_kept in (PIECE, 3 * PIECE):
        prompts = [start[:n_kept] + ids for ids in prompts_of([1, 2, 7, 40, 12])]
        prefix = front.prefixes.keep(start[:n_kept], "")
        torch.testing.assert_close(front.features(prompts, prefix), front.features(prompts), atol=2e-5, rtol=1e-4)
        assert front.decide(prompts, prefix) == front.decide(prompts)
        assert front.prefixes.keep(start[:n_kept], "") is prefix
        assert prefix.cache.get_seq_length() == n_kept, "following it changed what is kept"


def test_a_beginning_is_read_once_for_all_that_have_it(tmp_path, monkeypatch):
    """The first prompt reads all, the second all once more, in two parts; those after it their own tokens alone."""
    front = front_of(tmp_path)
    (start,), tails = prompts_of([2 * PIECE + 3]), prompts_of([10, 20, 15, 12, 11])
    prompts = [start + tail for tail in tails]
    alone = [front.decide([ids])[0] for ids in prompts]
    assert len(set(alone)) > 1
    readings = []
    decide = front.decide
    monkeypatch.setattr(front, "decide", lambda prompts, prefix: readings.append(len(prompts)) or decide(prompts, prefix))
    found = [*ask(front, prompts[0]), *ask(front, prompts[1]), *ask(front, *prompts[2:])]
    assert [choice.route for choice in found] == alone
    assert [choice.n_read for choice in found] == [141, 151, 3 + 15, 3 + 12, 3 + 11]
    assert readings == [1, 1, 3]


def test_those_that_come_at_once_share_what_none_had_before(tmp_path):
    front = front_of(tmp_path)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([10, 11, 12])]
    found = ask(front, *prompts)
    assert [choice.n_read for choice in found] == [PIECE + 10, 11, 12]
    assert [choice.route for choice in found] == [front.decide([ids])[0] for ids in prompts]


def test_a_conversation_is_read_on_from_where_it_was(tmp_path):
    """Each turn begins with the whole turn before."""
    front = front_of(tmp_path)
    (tokens,) = prompts_of([6 * PIECE])
    turns = [tokens[: place * PIECE + 5] for place in range(1, 6)]
    found = [ask(front, ids)[0] for ids in turns]
    assert [choice.n_read for choice in found] == [PIECE + 5, 2 * PIECE + 5] + [2 * PIECE + 5] * 3
    assert [choice.route for choice in found] == [front.decide([ids])[0] for ids in turns]


def test_prompts_of_two_beginnings_are_read_apart(tmp_path, monkeypatch):
    front = front_of(tmp_path)
    one, other, *tails = prompts_of([PIECE, PIECE, 9, 9, 9, 9, 9])
    prompts = [one + tails[0], other + tails[1], one + tails[2], tails[3], other + tails[4]]
    readings = []
    decide = front.decide
    monkeypatch.setattr(front, "decide", lambda prompts, prefix: readings.append(prompts) or decide(prompts, prefix))
    found = ask(front, *prompts)
    assert readings == [[prompts[0], prompts[2]], [prompts[1], prompts[4]], [prompts[3]]]
    assert [choice.route for choice in found] == [decide([ids])[0] for ids in prompts]
    assert [choice.n_read for choice in found] == [PIECE + 9, PIECE + 9, 9, 9, 9]


def test_a_cache_salt_sets_beginnings_apart(tmp_path):
    """So that no client learns from how long it waits what another one asked."""
    front = front_of(tmp_path)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([9, 9, 9, 9])]
    found = ask(front, *prompts, salts=("a", "b", "a", ""))
    assert [choice.n_read for choice in found] == [PIECE + 9, PIECE + 9, 9, PIECE + 9]


def test_another_beginning_of_the_same_hash_is_not_taken_for_it(tmp_path, monkeypatch):
    front = front_of(tmp_path)
    monkeypatch.setattr(kept, "beginnings", lambda ids, size, apart: iter([7] * (len(ids) // size)))
    one, other, *tails = prompts_of([PIECE, PIECE, 9, 10, 11, 12])
    prompts = [one + tails[0], one + tails[1], other + tails[2], other + tails[3]]
    alone = [front.decide([ids])[0] for ids in prompts]
    assert [ask(front, ids)[0].route for ids in prompts] == alone
    assert [choice.route for choice in ask(front, *prompts)] == alone


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    """The latest used stay; the last one even where it alone is too much."""
    front = front_of(tmp_path)
    starts = prompts_of([PIECE] * 4)
    size = front.prefixes.keep(starts[0], "").n_bytes
    config = front.decoder.config
    assert size == BLOCK * 2 * PIECE * config.num_key_value_heads * config.head_dim * 4
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * size)
    front.prefixes.keep(starts[1], "")
    assert front.prefixes.longest(starts[0] + [7], "") is not None
    front.prefixes.keep(starts[2], "")
    assert [front.prefixes.longest(ids, "") is not None for ids in starts] == [True, False, True, False]
    monkeypatch.setattr(kept, "MOST_BYTES", 1)
    front.prefixes.keep(starts[3], "")
    assert [front.prefixes.longest(ids, "") is not None for ids in starts] == [False, False, False, True]
    monkeypatch.setattr(kept, "MOST_SEEN", 3)
    for ids in starts:
        front.prefixes.see(ids, "")
    assert len(front.prefixes._prompts) == 3


def test_what_prompts_share_is_the_longest_beginning_that_two_had(monkeypatch):
    """By comparing every two, the prompt itself among them; the last token is never part of it."""
    monkeypatch.setattr(kept, "PIECE", 3)
    rng, prefixes, asked = random.Random(0), Prefixes(torch.nn.Identity()), []
    for _ in range(60):
        ids = [rng.randrange(2) for _ in range(rng.randrange(1, 20))]
        prefixes.see(ids, "")
        asked.append(ids)
        alike = [sum(itertools.accumulate((a == b for a, b in zip(ids[:-1], other, strict=False)), min)) for other in asked[:-1]]
        assert prefixes.shared(ids, "") == max(alike, default=0) // 3 * 3


def test_nothing_is_kept_where_the_engine_keeps_nothing(tmp_path):
    front = front_of(tmp_path, keeps=False)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([10, 11, 12])]
    assert [choice.n_read for choice in ask(front, *prompts)] == [PIECE + 10, PIECE + 11, PIECE + 12]
    assert front.prefixes is None


def test_a_prompt_that_cannot_be_read_fails_alone_after_what_is_kept(tmp_path, monkeypatch):
    """Token 5 has no finite embedding here; a beginning that holds it fails all that have it, and no other."""
    front = front_of(tmp_path)
    weight = front.decoder.embed_tokens.weight.detach().clone()
    weight[5] = float("nan")
    monkeypatch.setattr(front.decoder.embed_tokens, "weight", torch.nn.Parameter(weight))
    good, bad = prompts_of([PIECE, PIECE])
    bad[3] = 5
    tails = prompts_of([8] * 6)
    tails[1][2] = 5
    prompts = [start + tail for start, tail in zip([good, good, good, bad, bad, good], tails, strict=True)]

    async def together() -> list[Any]:
        return await asyncio.gather(*map(front.choose, prompts), return_exceptions=True)

    found = asyncio.run(together())
    assert [isinstance(one, InputError) for one in found] == [False, True, False, True, True, False]
    assert [found[place].route for place in (0, 2, 5)] == [front.decide([prompts[place]])[0] for place in (0, 2, 5)]
