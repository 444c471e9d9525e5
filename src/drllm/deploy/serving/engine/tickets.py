"""The routes that a policy decides in the engine, for the process that answers.

An engine answers a call between two steps. Asked once a prompt's first token is there, it is in its next step already, for which that token
would wait. So it is asked all the while, one call at a time for all prompts that wait, and a route comes with the step that decided it.
"""

from __future__ import annotations

import asyncio
from typing import Any

ASKS_EVERY_S = 0.001  # while the engine is idle, which is between a prompt's ticket and the prompt; busy it answers once a step
PATIENCE_S = 60.0  # for a route whose prompt has been answered: it is there, unless the engine lost it


class Tickets:
    """Prompts whose routes are yet to come, each under its ticket.

    Args:
        client: vLLM's engine client.
    """

    def __init__(self, client: Any):
        self.client = client
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._asking: asyncio.Task[None] | None = None

    def expect(self, ticket: str) -> None:
        """Ask for a ticket's route from now on."""
        self._waiting[ticket] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_heard)

    async def take(self, ticket: str) -> str | None:
        """The route of an expected ticket whose prompt has been answered, or "!" and why there is none; None: the engine knows none.

        Raises what a call to the engine raised.
        """
        route, asking = self._waiting[ticket], self._asking
        if asking is not None:
            await asyncio.wait({route, asking}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not route.done():
                asking.result()
        self.drop(ticket)
        return route.result() if route.done() else None

    def drop(self, ticket: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(ticket, None)

    async def _ask(self) -> None:
        while tickets := [ticket for ticket, route in self._waiting.items() if not route.done()]:
            found: dict[str, str] = (await self.client.collective_rpc("drllm_routes", args=(tickets,)))[0]
            for ticket, text in found.items():
                if ticket in self._waiting:
                    self._waiting[ticket].set_result(text)
            await asyncio.sleep(ASKS_EVERY_S)


def _heard(asking: asyncio.Task[None]) -> None:
    """What it raised reaches whoever takes a ticket; without one, the requests fail by themselves."""
    if not asking.cancelled():
        asking.exception()
