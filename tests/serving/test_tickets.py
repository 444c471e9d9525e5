"""Routes decided in the engine reach the answering process with the step that decided them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from drllm.deploy.serving.engine.tickets import Tickets


class SteppingEngine:
    """Answers calls between steps alone, as vLLM's engine does; `decides` gives the step that decides a ticket."""

    def __init__(self, decides: dict[str, int]):
        self.decides, self.n_steps, self.n_calls = decides, 0, 0
        self.calls: list[tuple[list[str], asyncio.Future[list[dict[str, str]]]]] = []
        self.stepped = asyncio.Condition()

    async def collective_rpc(self, method: str, args: tuple[Sequence[str]]) -> list[dict[str, str]]:
        assert method == "drllm_routes"
        self.n_calls += 1
        self.calls.append((list(args[0]), asyncio.get_running_loop().create_future()))
        return await self.calls[-1][1]

    async def run(self) -> None:
        while True:
            for tickets, answer in self.calls:
                answer.set_result([{name: f"route of {name}" for name in tickets if self.decides[name] <= self.n_steps}])
            self.calls.clear()
            await asyncio.sleep(0.05)
            async with self.stepped:
                self.n_steps += 1
                self.stepped.notify_all()

    async def answered(self, ticket: str) -> None:
        """The prompt's first token is there."""
        async with self.stepped:
            await self.stepped.wait_for(lambda: self.n_steps >= self.decides[ticket])


async def taken_at(engine: SteppingEngine, tickets: Tickets, name: str) -> tuple[str | None, int]:
    """A ticket's route, and the steps that were done when it was there."""
    tickets.expect(name)
    await engine.answered(name)
    return await tickets.take(name), engine.n_steps


def test_no_token_waits_for_another_step():
    async def serve() -> tuple[list[tuple[str | None, int]], int]:
        engine = SteppingEngine({"a": 2, "b": 4, "c": 4})
        tickets, running = Tickets(engine), asyncio.create_task(engine.run())
        found = await asyncio.gather(*(taken_at(engine, tickets, name) for name in engine.decides))
        running.cancel()
        return list(found), engine.n_calls

    found, n_calls = asyncio.run(serve())
    assert found == [("route of a", 2), ("route of b", 4), ("route of c", 4)]
    assert n_calls <= 6  # one a step for all prompts that wait, and one before the first


def test_nobody_is_asked_for_a_dropped_ticket():
    async def serve() -> int:
        engine = SteppingEngine({"a": 10**6})
        tickets, running = Tickets(engine), asyncio.create_task(engine.run())
        tickets.expect("a")
        await asyncio.sleep(0.12)
        tickets.drop("a")
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
        tickets = Tickets(Dead())
        tickets.expect("a")
        await tickets.take("a")

    with pytest.raises(RuntimeError, match="the engine died"):
        asyncio.run(serve())
