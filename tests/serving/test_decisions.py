"""Routes decided in the engine reach the answering process with the step that decided them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from drllm.deploy.serving.engine.decisions import Decision, Decisions


class SteppingEngine:
    """Answers calls between steps alone, as vLLM's engine does; `decides` gives the step that decides a prompt."""

    def __init__(self, decides: dict[str, int]):
        self.decides, self.n_steps, self.n_calls = decides, 0, 0
        self.calls: list[tuple[list[str], asyncio.Future[list[dict[str, list[str]]]]]] = []
        self.stepped = asyncio.Condition()

    async def collective_rpc(self, method: str, args: tuple[Sequence[str]]) -> list[dict[str, list[str]]]:
        assert method == "drllm_decisions"
        self.n_calls += 1
        self.calls.append((list(args[0]), asyncio.get_running_loop().create_future()))
        return await self.calls[-1][1]

    async def run(self) -> None:
        while True:
            for decisions, answer in self.calls:
                answer.set_result([{name: [f"route of {name}", ""] for name in decisions if self.decides[name] <= self.n_steps}])
            self.calls.clear()
            await asyncio.sleep(0.05)
            async with self.stepped:
                self.n_steps += 1
                self.stepped.notify_all()

    async def answered(self, prompt: str) -> None:
        """The prompt's first token is there."""
        async with self.stepped:
            await self.stepped.wait_for(lambda: self.n_steps >= self.decides[prompt])


async def taken_at(engine: SteppingEngine, decisions: Decisions, name: str) -> tuple[Decision, int]:
    """A prompt's decision, and the steps that were done when it was there."""
    decisions.expect(name)
    await engine.answered(name)
    return await decisions.take(name), engine.n_steps


def test_no_token_waits_for_another_step():
    async def serve() -> tuple[list[tuple[Decision, int]], int]:
        engine = SteppingEngine({"a": 2, "b": 4, "c": 4})
        decisions, running = Decisions(engine), asyncio.create_task(engine.run())
        found = await asyncio.gather(*(taken_at(engine, decisions, name) for name in engine.decides))
        running.cancel()
        return list(found), engine.n_calls

    found, n_calls = asyncio.run(serve())
    assert found == [(Decision("route of a"), 2), (Decision("route of b"), 4), (Decision("route of c"), 4)]
    assert n_calls <= 6  # one a step for all prompts that wait, and one before the first


def test_nobody_is_asked_for_a_dropped_prompt():
    async def serve() -> int:
        engine = SteppingEngine({"a": 10**6})
        decisions, running = Decisions(engine), asyncio.create_task(engine.run())
        decisions.expect("a")
        await asyncio.sleep(0.12)
        decisions.drop("a")
        await asyncio.sleep(0.12)
        before = engine.n_calls
        await asyncio.sleep(0.2)
        running.cancel()
        return engine.n_calls - before

    assert asyncio.run(serve()) == 0


def test_a_dead_engine_is_said():
    class Dead:
        async def collective_rpc(self, method: str, args: Any) -> Any:
            raise RuntimeError("the engine died")

    async def serve() -> None:
        decisions = Decisions(Dead())
        decisions.expect("a")
        await decisions.take("a")

    with pytest.raises(RuntimeError, match="the engine died"):
        asyncio.run(serve())
