"""Routes on their way into answers: from the engine that decided them, and by `RouteMiddleware`, an ASGI one, into the JSON.

The JSON of every answer of `/v1/completions` and `/v1/chat/completions` has the member `drllm`: a list of one object a prompt with `route`,
`passes`, `of` (the base's passes), `decided` (`policy`, `request` or `server`) and `seconds` (of choosing it from the text). A stream has
it in the first event after a route is known, and again once all are. What else vLLM would serve is refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drllm.core.route import Route

FORMATS = {"/v1/completions": "raw", "/v1/chat/completions": "chat"}  # what can be asked for text
OPEN_PATHS = ("/v1/models", "/health", "/ping", "/version", "/load", "/metrics")
ASKS_EVERY_S = 0.001  # while the engine is idle, which is between a prompt's coming and its step; busy it answers once a step
PATIENCE_S = 60.0  # for the decision on a prompt that has been answered: it is there, unless the engine lost it
_NOT_SERVED = f"not served with routes; these paths are: {', '.join((*FORMATS, *OPEN_PATHS))}"
NOT_SERVED = json.dumps({"error": {"message": _NOT_SERVED, "type": "NotFoundError", "code": 404}}).encode()


@dataclass
class Taken:
    """The route one prompt took, once it is known."""

    call: Call | None = None
    route: Route | None = None
    decided: str = ""
    seconds: float = 0.0

    def set(self, route: Route, decided: str, seconds: float = 0.0) -> None:
        if self.route is None and self.call is not None:
            self.call.n_known += 1
        self.route, self.decided, self.seconds = route, decided, seconds

    def record(self) -> dict[str, Any] | None:
        if self.route is None:
            return None
        about = {"route": str(self.route), "passes": self.route.n_passes, "of": len(self.route)}
        return about | {"decided": self.decided, "seconds": round(self.seconds, 6)}


@dataclass
class Call:
    """One HTTP request: its prompts' format, and the route of each as they become known."""

    prompt_format: str | None
    taken: list[Taken] = field(default_factory=list)
    n_known: int = 0

    def take(self) -> Taken:
        self.taken.append(Taken(self))
        return self.taken[-1]

    @property
    def records(self) -> list[dict[str, Any] | None]:
        return [taken.record() for taken in self.taken]


CALL: contextvars.ContextVar[Call | None] = contextvars.ContextVar("drllm_call", default=None)


class RouteMiddleware:
    """Writes the routes of a request's prompts into its answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI. Whatever else vLLM would answer is refused: it would pass by the routes, or by the key."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and path not in FORMATS and path.rstrip("/") not in OPEN_PATHS:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(NOT_SERVED)).encode())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": NOT_SERVED})
            return
        if scope["type"] != "http" or scope.get("method") != "POST" or path not in FORMATS:
            await self.app(scope, receive, send)
            return
        call = Call(FORMATS[path])
        token = CALL.set(call)
        try:
            await self.app(scope, receive, _Answer(call, send))
        finally:
            CALL.reset(token)


class _Answer:
    """Writes the routes into an answer's body: into the whole of a JSON one, into the first events of a stream."""

    def __init__(self, call: Call, send: Any):
        self.call, self.forward = call, send
        self.start: dict[str, Any] = {}  # of a JSON answer, held back until its length is known
        self.kind = ""
        self.held = b""
        self.n_said = 0

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self.kind = kinds[0].decode().split(";")[0] if kinds else ""
            if self.kind == "application/json":
                self.start = message
                return
        elif message["type"] == "http.response.body" and self.kind == "application/json":
            self.held += message.get("body", b"")
            if message.get("more_body"):
                return
            body = self._whole(self.held)
            headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
            await self.forward({**self.start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            message = {**message, "body": body}
        elif message["type"] == "http.response.body" and self.kind == "text/event-stream":
            message = {**message, "body": self._event(message.get("body", b""))}
        await self.forward(message)

    def _whole(self, body: bytes) -> bytes:
        status = self.start["status"]
        answer = json.loads(body) if status >= 400 or any(self.call.records) else None
        if status >= 400:
            answer = _refusal(answer, status)
        elif isinstance(answer, dict):
            answer |= {"drllm": self.call.records}
        else:
            return body
        return json.dumps(answer, ensure_ascii=False).encode()

    def _event(self, chunk: bytes) -> bytes:
        """A stream's chunk, which is whole events; the routes go into its first JSON object once one is known, and once all are.

        Not whenever one more is: a request may have hundreds of prompts, and every event passes here.
        """
        n_known = self.call.n_known
        if n_known == self.n_said or (self.n_said > 0 and n_known < len(self.call.taken)):
            return chunk
        events = chunk.split(b"\n\n")
        for place, event in enumerate(events):
            if event.startswith(b"data: {"):
                answer = json.loads(event[len(b"data: ") :])
                events[place] = b"data: " + json.dumps(answer | {"drllm": self.call.records}, ensure_ascii=False).encode()
                self.n_said = n_known
                break
        return b"\n\n".join(events)


def _refusal(answer: Any, status: int) -> dict[str, Any]:
    """A refusal in the API's shape, its message one line; what cannot be parsed at all FastAPI refuses in a shape of its own."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return answer | {"error": error | {"message": " ".join(error["message"].split())}}
    detail = (error if isinstance(error, str) else answer.get("detail", answer)) if isinstance(answer, dict) else answer
    text = detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False)
    return {"error": {"message": " ".join(text.split())[:4096], "type": "BadRequestError", "code": status}}


class Decision(NamedTuple):
    """Of a policy on one prompt; vLLM carries it as a plain list."""

    route: str = ""
    failure: str = ""  # why there is no route


class Decisions:
    """Prompts whose decisions are yet to come, each under a key; `client` is vLLM's engine client.

    An engine answers a call between two steps. Asked once a prompt's first token is there, it is in its next step already, for which that
    token would wait. So it is asked all the while, one call at a time for all prompts, and a route comes with the step that decided it.
    """

    def __init__(self, client: Any):
        self.client = client
        self._waiting: dict[str, asyncio.Future[Decision]] = {}
        self._asking: asyncio.Task[None] | None = None

    def expect(self, key: str) -> None:
        self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_heard)

    async def take(self, key: str) -> Decision:
        """That of an expected prompt that has been answered; raises what a call to the engine raised."""
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
