"""Shared prefixes that a front selector keeps change no prompt's states, and are read as seldom as can be."""

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
from drllm.deploy.serving.engine.prefixes import PIECE, Prefixes, Prompt, n_tokens


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


def alone(front: FrontSelector, prompts: list[list[int]]) -> list[Any]:
    """Their routes with nothing kept."""
    return [front.decide([ids])[0] for ids in prompts]


def keep(front: FrontSelector, ids: list[int]) -> list[Any]:
    """Whole pieces, kept as a prefix."""
    return front.prefixes.keep(Prompt([*ids, 7]), len(ids))


def n_kept(front: FrontSelector, ids: list[int]) -> int:
    """How many of the first tokens are kept."""
    return n_tokens(front.prefixes.kept(Prompt([*ids, 7]), len(ids)))


class Readings:
    """The prompts of each reading, by their ids."""

    def __init__(self, front: FrontSelector, monkeypatch: pytest.MonkeyPatch):
        self.prompts: list[list[list[int]]] = []
        decide_group = front._decide_group

        def watched(prompts: Any, n_shared: int) -> Any:
            self.prompts.append([prompt.ids for prompt in prompts])
            return decide_group(prompts, n_shared)

        monkeypatch.setattr(front, "_decide_group", watched)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
def test_states_after_a_kept_prefix_are_those_of_whole_prompts(family: str, tmp_path):
    """Also after one that was itself read after a kept one, after a part of a longer one, and where a block sees a shorter window."""
    front = front_of(tmp_path, family)
    (start,) = prompts_of([3 * PIECE])
    for n_shared in (PIECE, 3 * PIECE, 2 * PIECE):
        prompts = [start[:n_shared] + ids for ids in prompts_of([1, 2, 7, 40, 12, PIECE + 1])]
        asked = [Prompt(ids) for ids in prompts]
        prefix = front.prefixes.keep(asked[0], n_shared)
        assert n_tokens(prefix) == n_shared
        torch.testing.assert_close(front.features_after(asked, prefix), front.features(prompts), atol=2e-5, rtol=1e-4)
        assert front.prefixes.keep(asked[0], n_shared) == prefix
        for prompt, ids in zip(asked, prompts, strict=True):
            torch.testing.assert_close(front.features_after([prompt], prefix), front.features([ids]), atol=2e-5, rtol=1e-4)


def test_a_prefix_is_kept_when_a_second_prompt_has_it(tmp_path, monkeypatch):
    """The first two prompts are read whole; of those after them, together, what is their own."""
    front = front_of(tmp_path)
    (start,), tails = prompts_of([2 * PIECE + 3]), prompts_of([10, 20, 15, 12, 11])
    prompts = [start + tail for tail in tails]
    wanted = alone(front, prompts)
    assert len(set(wanted)) > 1
    readings = Readings(front, monkeypatch)
    found = [*ask(front, prompts[0]), *ask(front, prompts[1]), *ask(front, *prompts[2:])]
    assert [choice.route for choice in found] == wanted
    assert [choice.n_read for choice in found] == [2 * PIECE + 13, 2 * PIECE + 23, 18, 15, 14]
    assert list(map(len, readings.prompts)) == [1, 1, 3]


def test_those_that_come_at_once_share_what_none_had_before(tmp_path):
    front = front_of(tmp_path)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([10, 11, 12])]
    found = ask(front, *prompts)
    assert [choice.n_read for choice in found] == [PIECE + 10, 11, 12]
    assert [choice.route for choice in found] == alone(front, prompts)


def test_a_conversation_is_read_on_from_where_it_was(tmp_path):
    """Each turn begins with the whole turn before: from the third on, only what is new and the rest of a piece is read."""
    front = front_of(tmp_path)
    (tokens,) = prompts_of([6 * PIECE])
    turns = [tokens[: place * PIECE + 5] for place in range(1, 6)]
    found = [ask(front, ids)[0] for ids in turns]
    assert [choice.n_read for choice in found] == [PIECE + 5, 2 * PIECE + 5, PIECE + 5, PIECE + 5, PIECE + 5]
    assert [choice.route for choice in found] == alone(front, turns)
    assert len(front.prefixes._kept) == 5, "a piece is kept once"


def test_prompts_of_two_prefixes_are_read_apart(tmp_path, monkeypatch):
    front = front_of(tmp_path)
    one, other, *tails = prompts_of([PIECE, PIECE, 9, 9, 9, 9, 9])
    prompts = [one + tails[0], other + tails[1], one + tails[2], tails[3], other + tails[4]]
    readings = Readings(front, monkeypatch)
    found = ask(front, *prompts)
    assert readings.prompts == [[prompts[0], prompts[2]], [prompts[1], prompts[4]], [prompts[3]]]
    assert [choice.route for choice in found] == alone(front, prompts)
    assert [choice.n_read for choice in found] == [PIECE + 9, PIECE + 9, 9, 9, 9]


def test_a_reading_holds_so_many_tokens_at_most(tmp_path, monkeypatch):
    """Each prompt's copy of the prefix counts: many short ends of one long prefix are several readings."""
    front = front_of(tmp_path)
    (start,) = prompts_of([3 * PIECE])
    readings = Readings(front, monkeypatch)
    ask(front, *([*start, token] for token in range(6, 106)))
    most = 8192 // (3 * PIECE + 1)
    assert list(map(len, readings.prompts)) == [most] * (100 // most) + [100 % most]


def test_a_cache_salt_sets_prompts_apart(tmp_path, monkeypatch):
    """So that no client learns from how long it waits what another one asked. Prompts that share nothing are read together all the same."""
    front = front_of(tmp_path)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([9, 9, 9, 9, 9])]
    readings = Readings(front, monkeypatch)
    found = ask(front, *prompts, salts=("a", "b", "a", "b", ""))
    assert [choice.n_read for choice in found] == [PIECE + 9, PIECE + 9, 9, 9, PIECE + 9]
    assert len(readings.prompts) == 3
    ask(front, *prompts_of([30, 31, 32]), salts=("a", "b", ""))
    assert len(readings.prompts) == 4


def test_one_that_shares_nothing_is_read_apart_from_those_that_do(tmp_path, monkeypatch):
    """However it comes first: they would be read whole with it."""
    front = front_of(tmp_path)
    own, start, *tails = prompts_of([PIECE + 8, PIECE, 8, 8])
    ask(front, start + tails[0])
    readings = Readings(front, monkeypatch)
    found = ask(front, own, start + tails[1], start + tails[1])
    assert list(map(len, readings.prompts)) == [1, 2]
    assert [choice.n_read for choice in found] == [PIECE + 8, PIECE + 8, 8]


def test_no_piece_is_kept_that_padding_spoiled(tmp_path, monkeypatch):
    """Token 0, which pads, has no finite embedding here, and so spoils the states of a shorter prompt in the same reading."""
    front = front_of(tmp_path)
    weight = front.decoder.embed_tokens.weight.detach().clone()
    weight[0] = float("nan")
    monkeypatch.setattr(front.decoder.embed_tokens, "weight", torch.nn.Parameter(weight))
    (start,), tails = prompts_of([PIECE]), prompts_of([PIECE + 20, PIECE + 60])
    found = ask(front, *(start + tail for tail in tails))
    turns = [start + tails[0] + [9] * PIECE, start + tails[1] + [9] * PIECE]
    assert all(bool(piece.sum_D.isfinite().all()) for piece in front.prefixes._kept.values())
    assert [choice.route for choice in found] == alone(front, [start + tail for tail in tails])
    assert [ask(front, ids)[0].route for ids in turns] == alone(front, turns)


def test_another_prefix_of_the_same_hash_is_not_taken_for_it(tmp_path, monkeypatch):
    front = front_of(tmp_path)
    monkeypatch.setattr(kept, "beginnings", lambda ids, size, apart: iter(range(len(ids) // size)))
    one, other, second, *tails = prompts_of([PIECE, PIECE, PIECE, 9, 10, PIECE + 5, PIECE + 6])
    prompts = [start + tail for start in (one, other, one + second, other + second) for tail in tails]
    wanted = alone(front, prompts)
    assert [ask(front, ids)[0].route for ids in prompts] == wanted
    assert [choice.route for choice in ask(front, *prompts)] == wanted
    assert front.prefixes.n_bytes == sum(piece.n_bytes for piece in front.prefixes._kept.values())


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    """The latest used stay, and the first pieces of a prefix go last."""
    front = front_of(tmp_path)
    starts = prompts_of([PIECE] * 4)
    (piece,) = keep(front, starts[0])
    size, config = piece.n_bytes, front.decoder.config
    assert size == front.prefixes.n_bytes
    assert size == 4 * (BLOCK * 2 * PIECE * config.num_key_value_heads * config.head_dim + config.hidden_size)
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * size)
    keep(front, starts[1])
    assert n_kept(front, starts[0]) == PIECE
    keep(front, starts[2])
    assert [n_kept(front, ids) for ids in starts] == [PIECE, 0, PIECE, 0]
    *_, long = prompts_of([1, 5 * PIECE])
    assert n_tokens(keep(front, long)) == 2 * PIECE
    assert [n_kept(front, ids) for ids in [*starts, long]] == [0, 0, 0, 0, 2 * PIECE]
    assert front.prefixes.n_bytes == 2 * size
    assert all(keys.untyped_storage().nbytes() == 4 * keys.numel() for piece in front.prefixes._kept.values() for keys, _ in piece.slots)
    prompts = [[*long, 8], [*long, 9], [*long, 10]]
    found = [ask(front, ids)[0] for ids in prompts]
    assert [choice.route for choice in found] == alone(front, prompts)
    assert [choice.n_read for choice in found] == [5 * PIECE + 1, 3 * PIECE + 1, 3 * PIECE + 1], "none is read for nothing"
    front.prefixes.see(Prompt([*starts[0], 7]))
    monkeypatch.setattr(kept, "MOST_SEEN", 3)
    for ids in [*starts, starts[1]]:
        front.prefixes.see(Prompt([*ids, 7]))
    assert list(front.prefixes._prompts) == [Prompt([*starts[place], 7]).hashes[0] for place in (2, 3, 1)]


def test_what_prompts_share_is_the_longest_prefix_that_two_had(monkeypatch):
    """By comparing every two; the last token of a prompt is never part of it."""
    monkeypatch.setattr(kept, "PIECE", 3)
    rng, asked = random.Random(0), []
    prefixes = Prefixes(torch.nn.Identity())
    for _ in range(60):
        ids = [rng.randrange(2) for _ in range(rng.randrange(1, 20))]
        prefixes.see(Prompt(ids))
        alike = [sum(itertools.accumulate((a == b for a, b in zip(ids[:-1], other, strict=False)), min)) for other in asked]
        assert prefixes.shared(Prompt(ids)) == max(alike, default=0) // 3 * 3
        asked.append(ids[:-1])


def test_nothing_is_kept_where_the_engine_keeps_nothing(tmp_path):
    front = front_of(tmp_path, keeps=False)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([10, 11, 12])]
    assert [choice.n_read for choice in ask(front, *prompts)] == [PIECE + 10, PIECE + 11, PIECE + 12]
    assert front.prefixes is None


def test_a_prompt_that_cannot_be_read_fails_alone_after_a_kept_prefix(tmp_path, monkeypatch):
    """Token 5 has no finite embedding here; a prefix that holds it fails all that have it, and no other."""
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
    assert [found[place].route for place in (0, 2, 5)] == alone(front, [prompts[place] for place in (0, 2, 5)])


def test_who_leaves_leaves_the_tokens_of_the_prefix_to_the_next(tmp_path, monkeypatch):
    """They were read, so they are counted."""
    front = front_of(tmp_path)
    (start,) = prompts_of([PIECE])
    prompts = [start + tail for tail in prompts_of([9, 9, 9])]

    async def together() -> list[Any]:
        tasks = [asyncio.create_task(front.choose(ids)) for ids in prompts]
        decide_group = front._decide_group

        def leaving(*arguments: Any) -> Any:
            tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
            return decide_group(*arguments)

        monkeypatch.setattr(front, "_decide_group", leaving)
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(together())
    assert isinstance(found[0], asyncio.CancelledError)
    assert [choice.n_read for choice in found[1:]] == [PIECE + 9, 9]
