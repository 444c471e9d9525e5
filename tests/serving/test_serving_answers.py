"""Routes on their way into answers: from the engine with the step that decided them, and through the middleware."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from drllm import Route
from drllm.deploy.serving.engine.answers import CALL, Decision, Decisions, RouteMiddleware


def ask(app: Any, path: str = "/v1/completions", method: str = "POST") -> tuple[dict[str, str], list[bytes]]:
    """Headers and body parts of an answer behind the middleware."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(RouteMiddleware(app)({"type": "http", "method": method, "path": path}, None, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, [message["body"] for message in sent[1:]]


def json_app(body: Any, routes: list[str | None]) -> Any:
    """Answers with JSON in two parts, after these routes were taken."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = CALL.get()
        for text in routes if call else []:
            taken = call.take()
            if text:
                taken.set(Route.parse(text), "policy", 0.25)
        data = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data[:5], "more_body": True})
        await send({"type": "http.response.body", "body": data[5:]})

    return app


def test_routes_in_a_whole_answer():
    headers, parts = ask(json_app({"id": "é"}, ["1021", "1111"]))
    answer = json.loads(b"".join(parts))
    assert answer["id"] == "é"
    assert answer["drllm"][0] == {"route": "1021", "passes": 4, "of": 4, "decided": "policy", "seconds": 0.25}
    assert answer["drllm"][1]["route"] == "1111"
    assert int(headers["content-length"]) == len(b"".join(parts))


@pytest.mark.parametrize(
    ("routes", "path", "method"),
    [
        ([], "/v1/completions", "POST"),
        (["1021"], "/health", "POST"),
        (["1021"], "/v1/models", "GET"),
        (["1021"], "/v1/models", "POST"),
        ([None], "/v1/completions", "POST"),
    ],
)
def test_answers_without_a_route_stay_as_they_are(routes, path, method):
    _, parts = ask(json_app({"error": {}}, routes), path, method)
    assert b"".join(parts) == b'{"error": {}}'


def test_routes_in_a_stream():
    """They stand in the first event after one became known, and after all did: each event passes through the server's one loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = CALL.get()
        assert call.prompt_format == "raw"
        takes = [call.take() for _ in range(3)]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
        for number in range(5):
            if number < 3:
                takes[number].set(Route.parse("1021"), "policy")
            await send({"type": "http.response.body", "body": f': note\n\ndata: {{"n": {number}}}\n\n'.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    _, parts = ask(app)
    events = [json.loads(event[6:]) for part in parts for event in part.decode().split("\n\n") if event.startswith("data: {")]
    assert [[one and one["route"] for one in event["drllm"]] if "drllm" in event else None for event in events] == [
        *(["1021", None, None], None, ["1021", "1021", "1021"], None, None)
    ]
    assert parts[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/generative_scoring", "/v1/responses", "/v1/messages", "/tokenize", "/scale_elastic_ep", "/docs", "/v1/completions/"],
)
def test_other_paths_are_not_served(path: str):
    """Some of vLLM's take no key, others would answer without a route."""
    headers, parts = ask(json_app({"id": 1}, ["1021"]), path)
    assert json.loads(b"".join(parts))["error"]["code"] == 404
    assert int(headers["content-length"]) == len(b"".join(parts))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": {"message": "two\nlines", "code": 400}}, "two lines"),
        ({"detail": "There was an error parsing the body"}, "There was an error parsing the body"),
        ({"detail": [{"loc": ["body"], "msg": "bad"}]}, '[{"loc": ["body"], "msg": "bad"}]'),
        (["odd"], '["odd"]'),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"error": 7}, '{"error": 7}'),
    ],
)
def test_every_refusal_has_one_shape_and_one_line(body: Any, says: str):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    headers, parts = ask(app)
    answer = json.loads(b"".join(parts))["error"]
    assert (answer["message"], answer["code"]) == (says, 400)
    assert int(headers["content-length"]) == len(b"".join(parts))


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


def test_no_token_waits_for_another_step_and_nobody_asks_for_a_dropped_prompt():
    async def serve() -> tuple[list[tuple[Decision, int]], int, int]:
        engine = SteppingEngine({"a": 2, "b": 4, "c": 4, "dropped": 10**6})
        decisions, running = Decisions(engine), asyncio.create_task(engine.run())
        decisions.expect("dropped")
        decisions.drop("dropped")
        found = await asyncio.gather(*(taken_at(engine, decisions, name) for name in "abc"))
        n_calls = engine.n_calls
        await asyncio.sleep(0.2)
        running.cancel()
        return list(found), n_calls, engine.n_calls - n_calls

    found, n_calls, n_more = asyncio.run(serve())
    assert found == [(Decision("route of a"), 2), (Decision("route of b"), 4), (Decision("route of c"), 4)]
    assert n_calls <= 6  # one a step for all prompts that wait, and one before the first
    assert n_more == 0


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
