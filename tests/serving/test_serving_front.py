"""The front selector of a served codebook: prompts read together are each read as if alone, and wait for nobody's fault."""

from __future__ import annotations

import asyncio
import collections
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import families
from books import plain_selector
from drllm import Route
from drllm.core.errors import ArtifactError, InputError
from drllm.deploy.serving.engine import front as fronts
from drllm.deploy.serving.engine.front import MAX_PADDING, MOST_HELD, STEP_TOKENS, Choice, FrontSelector, share_a_reading
from drllm.deploy.serving.engine.prefixes import PIECE, Prompt
from drllm.policies.codebook import Codebook, Point

L, BLOCK, VOCAB = 4, 2, 300
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


def codebook(size: int) -> Codebook:
    """A codebook of four routes whose random selector takes each of them on some prompts."""
    routes = [Route.parse(text) for text in ("1111", "1101", "1112", "1100")]
    weight = torch.randn(2 * size, 3, generator=torch.Generator().manual_seed(0))
    return Codebook(routes, plain_selector(BLOCK, 2 * size, [0.0, 0.0, 0.0], weight), [Point(0.0)])


def prompts_of(lengths: list[int]) -> list[list[int]]:
    """Random tokens, none of them 5."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(6, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def checkpoint(folder: Path, family: str) -> Any:
    """A tiny model of the family, saved as users have it."""
    model = families.build(family, vocab_size=VOCAB, max_position_embeddings=512)
    assert model.config.num_hidden_layers == L
    model.save_pretrained(folder)
    return model


@pytest.fixture
def front(tmp_path) -> FrontSelector:
    """The front of a tiny llama; one for each event loop."""
    return FrontSelector(codebook(checkpoint(tmp_path, "llama").config.hidden_size), str(tmp_path), torch.float32, "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_together_are_each_alone(family: str, tmp_path):
    """Right padding without a mask changes no prompt's states; they are those that transformers' whole model has there."""
    model = checkpoint(tmp_path, family).eval()
    one = FrontSelector(codebook(model.config.hidden_size), str(tmp_path), torch.float32, "cpu")
    prompts = prompts_of([1, 2, 7, 40, 12, 40, 33])
    found = one.features(prompts)
    for ids, mine in zip(prompts, found, strict=True):
        with torch.no_grad():
            x_TD = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[BLOCK][0]
        torch.testing.assert_close(mine, torch.cat([x_TD.mean(0), x_TD[-1]]), atol=2e-5, rtol=1e-4)
        assert one.decide([ids]) == [one.codebook.routes_for(mine[None])[0]]


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=40), st.integers(0, 3000))
def test_who_shares_a_reading(lengths: list[int], n_shared: int):
    """The oldest always; the others within a step's tokens and those held, none padded beyond its bound, the nearest in length first."""
    taken = share_a_reading(lengths, n_shared)
    chosen = [lengths[place] for place in taken]
    assert taken == sorted(set(taken))
    assert taken[0] == 0
    assert len(taken) == 1 or (max(chosen) * len(taken) <= STEP_TOKENS and max(chosen) <= MAX_PADDING * min(chosen))
    assert len(taken) == 1 or (n_shared + max(chosen)) * len(taken) <= MOST_HELD
    for length in (lengths[place] for place in range(len(lengths)) if place not in taken):
        most, least = max(*chosen, length), min(*chosen, length)
        more = len(taken) + 1
        assert most * more > STEP_TOKENS or most > MAX_PADDING * least or (n_shared + most) * more > MOST_HELD


def test_32_short_prompts_are_one_reading():
    assert share_a_reading([31] * 32) == list(range(32))
    assert share_a_reading([4000, 31, 4000]) == [0]
    assert share_a_reading([300, 12, 280, 150, 600, 310, 13]) == [0, 2, 5]


class Watched:
    """A front selector whose readings are written down, and wait for `go`."""

    def __init__(self, front: FrontSelector, monkeypatch: pytest.MonkeyPatch):
        self.readings: list[list[int]] = []  # the lengths of their prompts
        self.go = threading.Event()
        decide = front.decide

        def watched(prompts: Any) -> list[Route | InputError]:
            self.readings.append([len(ids) for ids in prompts])
            assert self.go.wait(60)
            return decide(prompts)

        monkeypatch.setattr(front, "decide", watched)

    async def has_begun(self, n_readings: int) -> None:
        """Once so many readings have begun."""
        while len(self.readings) < n_readings:
            await asyncio.sleep(0.001)


def test_waiting_prompts_share_readings(front, monkeypatch):
    """All that ask before the first is read. Each gets its own route."""
    prompts = prompts_of([9 + place % 7 for place in range(24)])
    alone = [front.decide([ids])[0] for ids in prompts]
    assert len(set(alone)) > 2
    watched = Watched(front, monkeypatch)
    watched.go.set()

    async def ask() -> list[Choice]:
        return await asyncio.gather(*map(front.choose, prompts))

    found = asyncio.run(ask())
    assert [choice.route for choice in found] == alone
    assert all(choice.seconds > 0 for choice in found)
    assert list(map(len, watched.readings)) == [24]
    assert not front._waiting


def test_who_comes_while_others_are_read_waits_for_the_next(front, monkeypatch):
    watched = Watched(front, monkeypatch)
    first, *later = prompts_of([8] * 6)

    async def ask() -> list[Choice]:
        tasks = [asyncio.create_task(front.choose(first))]
        await watched.has_begun(1)
        tasks += [asyncio.create_task(front.choose(ids)) for ids in later]
        await asyncio.sleep(0.02)
        assert len(watched.readings) == 1
        watched.go.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(ask())
    assert list(map(len, watched.readings)) == [1, 5]
    assert [choice.route for choice in found] == [front.decide([ids])[0] for ids in (first, *later)]


def test_who_is_read_waits_for_no_other(front, monkeypatch):
    """Two short prompts share a reading; they have their routes while the long one that came between them is read."""
    watched = Watched(front, monkeypatch)
    short, long, shorter = prompts_of([8, 200, 7])

    async def ask() -> list[bool]:
        tasks = [asyncio.create_task(front.choose(ids)) for ids in (short, long, shorter)]
        await watched.has_begun(1)
        watched.go.set()
        await tasks[2]
        watched.go.clear()
        await watched.has_begun(2)
        done = [task.done() for task in tasks]
        watched.go.set()
        await tasks[1]
        return done

    done = asyncio.run(ask())
    assert watched.readings == [[8, 7], [200]]
    assert (done[0], done[2]) == (True, True)


def test_a_client_that_leaves_takes_nobody_with_it(front, monkeypatch):
    """Neither the one that asked first, nor one that is read with it: nothing is read again."""
    prompts = prompts_of([8] * 8)
    alone = [front.decide([ids])[0] for ids in prompts]
    watched = Watched(front, monkeypatch)

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(front.choose(ids)) for ids in prompts]
        await watched.has_begun(1)
        tasks[0].cancel()
        tasks[3].cancel()
        watched.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [place in (0, 3) for place in range(8)]
    stayed = [place for place in range(8) if place not in (0, 3)]
    assert [found[place][0] for place in stayed] == [alone[place] for place in stayed]
    assert list(map(len, watched.readings)) == [8]
    assert not front._waiting


def test_a_reading_costs_the_same_however_many_wait(front, monkeypatch):
    """Only the oldest are looked at, which no reading could hold more of; none of the others is touched, and all are read in turn."""
    seen: list[int] = []
    readings: list[int] = []

    def shared(lengths: Any, n_shared: int) -> list[int]:
        seen.append(len(lengths))
        return share_a_reading(lengths, n_shared)

    class Counting(collections.deque[Any]):
        taken = 0

        def popleft(self) -> Any:
            self.taken += 1
            return super().popleft()

        def __iter__(self) -> Any:
            raise AssertionError("walks over all that wait")

    def decide(prompts: Any) -> list[Route]:
        readings.append(len(prompts))
        return [Route.full(L)] * len(prompts)

    monkeypatch.setattr(fronts, "share_a_reading", shared)
    monkeypatch.setattr(front, "decide", decide)
    waiting = Counting()
    monkeypatch.setattr(front, "_waiting", waiting)
    prompts = [[7] * (1 + place % 60) for place in range(5000)]

    async def ask() -> list[Choice]:
        return await asyncio.gather(*map(front.choose, prompts))

    assert len(asyncio.run(ask())) == sum(readings) == 5000
    assert max(seen) == STEP_TOKENS
    assert waiting.taken <= STEP_TOKENS * len(readings)


def test_the_oldest_are_read_in_the_order_they_came(front, monkeypatch):
    """Also those that were looked at, and left for a later reading."""
    watched = Watched(front, monkeypatch)
    watched.go.set()

    async def ask() -> None:
        await asyncio.gather(*map(front.choose, prompts_of([200, 8, 201, 9, 300, 202, 10, 1100])))

    asyncio.run(ask())
    assert watched.readings == [[200, 201, 202], [8, 9, 10], [300], [1100]]


def test_who_left_before_its_turn_is_not_read(front, monkeypatch):
    watched = Watched(front, monkeypatch)

    async def ask() -> None:
        first = asyncio.create_task(front.choose(prompts_of([8])[0]))
        await watched.has_begun(1)
        left, stays = (asyncio.create_task(front.choose(ids)) for ids in prompts_of([9, 10]))
        await asyncio.sleep(0.01)
        left.cancel()
        watched.go.set()
        await asyncio.gather(first, stays)

    asyncio.run(ask())
    assert watched.readings == [[8], [10]]


def test_what_breaks_a_reading_fails_those_in_it_and_no_later_one(front, monkeypatch):
    """Such as memory that runs out."""
    calls = []

    def decide(prompts: Any) -> list[Route]:
        calls.append(len(prompts))
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return [Route.full(L)] * len(prompts)

    monkeypatch.setattr(front, "decide", decide)

    async def ask() -> list[Any]:
        broken = await asyncio.gather(*map(front.choose, prompts_of([8, 9])), return_exceptions=True)
        return [*broken, await front.choose(prompts_of([8])[0])]

    first, second, third = asyncio.run(ask())
    assert [type(first), type(second)] == [RuntimeError, RuntimeError]
    assert third[0] == Route.full(L)


def test_a_prompt_that_cannot_be_read_fails_alone(front, monkeypatch):
    """Token 5 has no finite embedding here."""
    weight = front.decoder.embed_tokens.weight.detach().clone()
    weight[5] = float("nan")
    monkeypatch.setattr(front.decoder.embed_tokens, "weight", torch.nn.Parameter(weight))
    prompts = prompts_of([8] * 6)
    prompts[0][3] = prompts[4][2] = 5

    async def ask() -> list[Any]:
        return await asyncio.gather(*map(front.choose, prompts), return_exceptions=True)

    read = []
    features = front.features
    monkeypatch.setattr(front, "features", lambda prompts: read.append(len(prompts)) or features(prompts))
    found = asyncio.run(ask())
    assert read == [6, 1, 1], "those that fail are tried alone, once"
    assert [isinstance(one, InputError) for one in found] == [True, False, False, False, True, False]
    assert [found[place][0] for place in (1, 2, 3, 5)] == [front.decide([prompts[place]])[0] for place in (1, 2, 3, 5)]


def test_the_revision_that_the_engine_serves(tmp_path, monkeypatch):
    """Of the configuration as of the weights: another's first blocks would choose the routes."""
    size = checkpoint(tmp_path, "llama").config.hidden_size
    asked = []
    for loader in (fronts.AutoConfig, fronts.AutoModelForCausalLM):
        load = loader.from_pretrained

        def watched(*args: Any, load: Any = load, **kwargs: Any) -> Any:
            asked.append(kwargs.get("revision"))
            return load(*args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", watched)
    FrontSelector(codebook(size), str(tmp_path), torch.float32, "cpu", revision="v2")
    assert asked[:2] == ["v2", "v2"]


def test_a_book_of_another_model(tmp_path):
    model = families.build("llama", vocab_size=VOCAB, num_hidden_layers=6)
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="is for 4 blocks"):
        FrontSelector(codebook(model.config.hidden_size), str(tmp_path), torch.float32, "cpu")


@pytest.mark.slow  # a minute of compiling
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler calls what torch deprecates
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_before_the_first_request(family: str, tmp_path):
    """As the uncompiled blocks, whatever comes; nothing is compiled once the server is ready."""
    size = checkpoint(tmp_path, family).config.hidden_size
    plain, compiled = (FrontSelector(codebook(size), str(tmp_path), torch.float32, "cpu", is_compiled) for is_compiled in (False, True))
    assert all(block._compiled_call_impl is not None for block in compiled.decoder.layers)

    def ask_all() -> None:
        """In the front's own thread, where torch's settings are its own."""
        with torch._dynamo.config.patch(error_on_recompile=True):
            for lengths in ([1], [2], [40], [1, 1], [5, 5, 5, 5, 5], [3, 4, 7], [64] * 16, [9] * 9, [8, 8], [300]):
                prompts = prompts_of(lengths)
                torch.testing.assert_close(compiled.features(prompts), plain.features(prompts), atol=2e-5, rtol=1e-4)

            (start,) = prompts_of([PIECE])
            prompts = [start + ids for ids in prompts_of([3, 9])]
            asked = [Prompt(ids) for ids in prompts]
            found = compiled.features_after(asked, compiled.prefixes.keep(asked[0], PIECE))
            torch.testing.assert_close(found, plain.features(prompts), atol=2e-5, rtol=1e-4)

    compiled._thread.submit(ask_all).result()
