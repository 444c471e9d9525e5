"""What a policy decides in the engine, on its way to the process that answers.

An engine answers a call between two steps. Asked once a prompt's first token is there, it is in its next step already, for which that token
would wait. So it is asked all the while, one call at a time for all prompts that wait, and a route comes with the step that decided it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

ASKS_EVERY_S = 0.001  # while the engine is idle, which is between a prompt's coming and its step; busy it answers once a step
PATIENCE_S = 60.0  # for the decision on a prompt that has been answered: it is there, unless the engine lost it


class Decision(NamedTuple):
    """Of a policy on one prompt; vLLM carries it as a plain list."""

    route: str = ""
    failure: str = ""  # why there is no route


class Decisions:
    """Prompts whose decisions are yet to come, each under a key.

    Args:
        client: vLLM's engine client.
    """

    def __init__(self, client: Any):
        self.client = client
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._asking: asyncio.Task[None] | None = None

    def expect(self, key: str) -> None:
        """Ask for a prompt's decision from now on."""
        self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_heard)

    async def take(self, key: str) -> Decision:
        """That of an expected prompt that has been answered.

        Raises what a call to the engine raised.
        """
        decision, asking = self._waiting[key], self._asking
        if asking is not None:
            await asyncio.wait({decision, asking}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not decision.done():
                asking.result()
        self.drop(key)
        return decision.result() if decision.done() else Decision(failure="its route is not known")

    def drop(self, key: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(key, None)

    async def _ask(self) -> None:
        while keys := [key for key, decision in self._waiting.items() if not decision.done()]:
            found: dict[str, list[str]] = (await self.client.collective_rpc("drllm_decisions", args=(keys,)))[0]
            for key, decision in found.items():
                if key in self._waiting:
                    self._waiting[key].set_result(Decision(*decision))
            await asyncio.sleep(ASKS_EVERY_S)


def _heard(asking: asyncio.Task[None]) -> None:
    """What it raised reaches whoever takes a decision; without one, the requests fail by themselves."""
    if not asking.cancelled():
        asking.exception()
