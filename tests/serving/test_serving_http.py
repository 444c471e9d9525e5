"""`drllm serve` over HTTP with OpenAI's client: SmolLM2 in float32 behind a codebook, in `make test-slow`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from drllm import Route, RoutedModel
from drllm.cli.main import main
from drllm.model.packages import PACKAGED
from drllm.policies.codebook import Codebook, Point, TextSelector, grams_in
from engines import PYTHON, checkpoint, free_port, needs_vllm, random_routers, serving
from fences import fences

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-q4"
openai = pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    needs_vllm,
    pytest.mark.skipif(PACKAGED[MODEL].installed is None, reason=f"needs the data package of {MODEL} (drllm models)"),
]
FULL = "1" * 30
ROUTES = [FULL, f"{FULL[:16]}000{FULL[19:]}", f"{FULL[:14]}000000{FULL[20:]}", "0-16,14-27,27-29"]  # the last: 14-16 again, 27 twice
DAMPED = "0-16,(14-16)*0.5,17-29"
TOPICS = [
    *("plants", "iron", "the Moon", "a whale", "rust", "sound", "glass", "yeast"),
    *("a comet", "salt", "rain", "coal", "bees", "gravity", "a magnet", "lava"),
]
PROMPTS = [f"Question: {start} {topic}?\nAnswer:" for topic in TOPICS for start in ("What do we know about", "Who first wrote about")]
KEY = "a-key"
RUNNING = f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}}'  # requests in the engine's last step
HITS = f'vllm:prefix_cache_hits_total{{engine="0",model_name="{MODEL}"}}'  # tokens


class Server:
    """`drllm serve` in a process group of its own."""

    def __init__(self, arguments: list[str]):
        self.port = free_port()
        command = [str(PYTHON), "-m", "drllm", "serve", *arguments, "--port", str(self.port)]
        self.running = contextlib.ExitStack()
        self.running.enter_context(serving(command, self.port, minutes=10))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and body, also of a refusal."""
        status, body = _asked(urllib.request.Request(self.url + path), 10)
        return status, body.decode()

    def post(self, path: str, body: bytes, key: str = KEY) -> tuple[int, str]:
        """Status and body, also of a refusal."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        status, answered = _asked(urllib.request.Request(self.url + path, body, headers), 120)
        return status, answered.decode(errors="replace")

    def stop(self) -> None:
        """As Ctrl-C would."""
        self.running.close()


def _asked(request: urllib.request.Request, timeout: int) -> tuple[int, bytes]:
    try:
        answered = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as refusal:
        answered = refusal
    with answered:
        return answered.status, answered.read()


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    """SmolLM2 in transformers, float32."""
    return RoutedModel.wrap(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def codebook(routed, tmp_path_factory) -> Path:
    """A saved codebook whose random selector takes each of its routes on some prompts."""
    ids = [routed.tokenizer(text)["input_ids"] for text in PROMPTS]
    grams = sorted(set().union(*map(grams_in, ids)))
    weight = torch.randn(len(grams), 3, generator=torch.Generator().manual_seed(0))
    routed.policy = Codebook([Route.parse(text) for text in ROUTES], TextSelector(grams, weight, torch.zeros(3), 1.0), [Point(0.0)])
    routed.policy.prompt_format = "raw"
    return routed.save_pretrained(tmp_path_factory.mktemp("policy") / "codebook")


@pytest.fixture(scope="module")
def server(codebook, tmp_path_factory) -> Iterator[Server]:
    """The codebook's server, with a key."""
    arguments = [str(codebook), "--dtype", "float32", "--vllm-args=--enforce-eager", "--api-key", KEY, "--max-model-len", "1024"]
    started = Server(arguments)
    yield started
    started.stop()


def client(server: Server, key: str = KEY) -> Any:
    """OpenAI's own, closed when the server stops."""
    return server.running.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120))


def answer(server: Server, prompt: str, **options: Any) -> tuple[str, Any]:
    """(text, what the answer says of its route)."""
    options = {"model": MODEL, "max_tokens": 24, "temperature": 0} | options
    with client(server) as asked:
        made = asked.completions.create(prompt=prompt, **options)
    return made.choices[0].text, made.model_extra["drllm"]


def streamed_chat(server: Server, messages: Any) -> tuple[tuple[str, int, str], str]:
    """((route, passes, who decided), text) of an answer that comes in parts."""
    options: Any = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0, "stream": True}
    parts = list(client(server).chat.completions.create(**options))
    (told,) = [part.model_extra["drllm"] for part in parts if part.model_extra.get("drllm")]
    assert sum(bool(part.choices[0].delta.content) for part in parts) > 4
    return (told[0]["route"], told[0]["passes"], told[0]["decided"]), "".join(part.choices[0].delta.content or "" for part in parts)


def answer_of(routed: RoutedModel, prompt: Any, route: Route) -> str:
    """In transformers."""
    return routed.generate([prompt], policy=route, max_new_tokens=24)[0].text


def test_what_an_answer_carries(server):
    told = client(server).completions.create(model=MODEL, prompt=PROMPTS[:3], max_tokens=2, temperature=0).model_extra["drllm"]
    assert [(one["of"], one["decided"], one["passes"] == Route.parse(one["route"], 30).n_passes) for one in told] == [
        (30, "policy", True)
    ] * 3
    assert all(one["seconds"] > 0 for one in told)


def test_streams_and_chats(server):
    events = list(client(server).completions.create(model=MODEL, prompt=PROMPTS[0], max_tokens=8, temperature=0, stream=True))
    told = [event.model_extra["drllm"] for event in events if event.model_extra.get("drllm")]
    text, whole = answer(server, PROMPTS[0], max_tokens=8)
    assert "".join(event.choices[0].text for event in events) == text
    assert len(told) == 1
    assert told[0][0]["route"] == whole[0]["route"]
    forced = {"vllm_xargs": {"drllm_route": ROUTES[1]}}
    messages: Any = [{"role": "user", "content": "Name a colour."}]
    chat = client(server).chat.completions.create(model=MODEL, messages=messages, max_tokens=4, temperature=0, extra_body=forced)
    assert (chat.model_extra["drllm"][0]["route"], chat.model_extra["drllm"][0]["decided"]) == (ROUTES[1], "request")


def test_a_forced_route_is_obeyed(server, routed):
    """Also by rows that a prefix cache could have served from another route, and by samples."""
    for route in (*ROUTES, DAMPED):
        forced = {"vllm_xargs": {"drllm_route": route}}
        made = client(server).completions.create(model=MODEL, prompt=PROMPTS[0] * 12, max_tokens=8, temperature=0, extra_body=forced)
        (output,) = routed.generate([PROMPTS[0] * 12], policy=Route.parse(route), max_new_tokens=8)
        assert made.choices[0].text == output.text
        sampled = client(server).completions.create(
            model=MODEL, prompt=PROMPTS[0] * 12, max_tokens=8, temperature=1, n=2, extra_body=forced | {"top_k": 1}
        )
        assert {choice.text for choice in sampled.choices} == {output.text}


def test_a_client_cannot_pass_its_salt_for_a_route(server, routed):
    """A salt written like a route's, on a request of the base: what it leaves in the prefix cache is no other route's."""
    prompt, route = PROMPTS[4] * 14, ROUTES[2]
    options = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    client(server).completions.create(**options, extra_body={"vllm_xargs": {"drllm_route": FULL}, "cache_salt": f"{route}|"})
    made = client(server).completions.create(**options, extra_body={"vllm_xargs": {"drllm_route": route}})
    (output,) = routed.generate([prompt], policy=Route.parse(route), max_new_tokens=8)
    assert made.choices[0].text == output.text


def test_what_a_client_may_look_at(server):
    assert [model.id for model in client(server).models.list()] == [MODEL]
    for path in ("/health", "/ping", "/version", "/load", "/metrics"):
        assert server.get(path)[0] == 200, path
    assert server.get("/v1/models")[0] == 401, "without the key"


def _count(server: Server, name: str) -> float:
    """One figure of vLLM's /metrics; 0 for one that has not been counted yet."""
    found = re.search(rf"^{re.escape(name)} ([0-9.e+-]+)$", server.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


REFUSED = [
    *(
        ({"vllm_xargs": {"drllm_route": route}}, 400, says)
        for route, says in (
            ("1", "leads through 1 blocks, the model has 30"),
            ("x" * 30, "cannot read route"),
            ("2" + FULL[1:], "runs block 0 2 times, the server keeps caches for 1"),
            ("0" * 30, "runs no block"),
            (7, "must be a string"),
            (FULL * 1000, "must be a string"),
        )
    ),
    ({"model": "no-such-policy"}, 404, "does not exist"),
    ({"prompt": "word " * 5000}, 400, "maximum context length"),
    ({"prompt": [99_999_999]}, 400, "out of the vocabulary"),
    ({"prompt": [5, -1]}, 400, ""),
    ({"messages": [{"role": "user", "content": "hi"}]}, 400, "trained on 'raw' prompts"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "status", "says"), REFUSED)
def test_refused_in_one_line(server, change: dict[str, Any], status: int, says: str, stream: bool):
    path, prompt = ("/v1/chat/completions", {}) if "messages" in change else ("/v1/completions", {"prompt": "hi"})
    found, text = server.post(path, json.dumps({"model": MODEL, "max_tokens": 4, "stream": stream} | prompt | change).encode())
    message = json.loads(text)["error"]["message"]
    assert found == status
    assert says in message
    assert "\n" not in message


def test_beam_search_is_refused(server):
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 4, "use_beam_search": True, "n": 2}
    status, text = server.post("/v1/completions", json.dumps(body).encode())
    assert (status, "beam search" in text) == (400, True)


def test_paths_without_a_key_or_a_route_are_not_served(server):
    body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}).encode()
    for path in ("/invocations", "/generative_scoring", "/v1/responses", "/v1/messages", "/tokenize", "/inference/v1/generate"):
        status, text = server.post(path, body)
        assert (status, "not served with routes" in text) == (404, True), path
    for path, key in (("/v1/completions", ""), ("/v1/chat/completions", "wrong")):
        assert server.post(path, body, key=key)[0] == 401
    with pytest.raises(openai.AuthenticationError):
        client(server, key="wrong").completions.create(model=MODEL, prompt="hi", max_tokens=2)


def test_dropped_connections(server):
    """Clients that leave in the middle of an answer: theirs ends at once, nobody else's changes."""
    wanted = answer(server, PROMPTS[1])
    body = json.dumps({"model": MODEL, "prompt": PROMPTS[0], "max_tokens": 900, "stream": True, "ignore_eos": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for connection in connections:
        connection.sendall(head + body)
    for connection in connections:
        connection.recv(100)
    start = time.monotonic()
    while _count(server, RUNNING) < 6:
        assert time.monotonic() - start < 30, "the six are not running"
    for connection in connections:
        connection.close()
    start = time.monotonic()
    while _count(server, RUNNING) > 0:  # 900 tokens of six rows would take a minute
        assert time.monotonic() - start < 15, "requests of clients that left are still running"
        time.sleep(0.2)
    assert answer(server, PROMPTS[1])[0] == wanted[0]


def test_two_thousand_broken_bodies(server):
    """Whatever is sent, a status below 500, one line, a live engine, and right answers for others meanwhile."""
    rng = random.Random(0)
    wanted = answer(server, PROMPTS[2])
    seen: dict[int, int] = {}
    meanwhile: list[str] = []
    over = threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            meanwhile.append(answer(server, PROMPTS[2])[0])

    other = threading.Thread(target=ask_on)
    other.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for status, text in pool.map(lambda body: server.post(*body), [_broken(rng) for _ in range(2000)]):
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, text
                if status >= 400:
                    assert "\n" not in json.loads(text).get("error", {}).get("message", "\n"), text
    finally:
        over.set()
        other.join()
    assert len(meanwhile) >= 2
    assert set(meanwhile) == {wanted[0]}
    assert sum(count for status, count in seen.items() if 400 <= status < 500) > 1000, seen
    assert answer(server, PROMPTS[2])[0] == wanted[0]


def _broken(rng: random.Random) -> tuple[str, bytes]:
    """A path and a body that is most likely wrong somewhere."""
    path = rng.choice(["/v1/completions", "/v1/chat/completions"])
    body: Any = {"model": MODEL, "max_tokens": 1}
    body |= {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    value = rng.choice(
        [None, -1, 1e308, "", "x" * 300, [], [[]], {}, {"a": [{}]}, True, "\u0000", [1, "a"], 10**30, "1120", "1" * 29 + "2"]
    )
    fields = "model max_tokens prompt messages stream n temperature vllm_xargs cache_salt logprobs stop seed top_p echo response_format"
    field = rng.choice(fields.split())
    if rng.random() < 0.4:
        body["vllm_xargs"] = {rng.choice(["drllm_route", "drllm_prompt", "other"]): value}
    else:
        body[field] = value
    data = json.dumps(body).encode()
    kind = rng.random()
    if kind < 0.2:
        data = data[: rng.randrange(len(data))]
    elif kind < 0.3:
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
    elif kind < 0.35:
        data = b"[" * 5000
    return path, data


def test_a_codebook_as_users_start_it(codebook, routed, capsys):
    """Compiled: mixed requests at once and alone have the same answers, along the routes of transformers; a chat is streamed."""
    served = Server([str(codebook), "--dtype", "float32", "--max-model-len", "1024", "--any-format"])
    try:
        alone = [answer(served, prompt) for prompt in PROMPTS[:16]]
        most = 0.0
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(answer, served, prompt) for prompt in PROMPTS[:16]]
            while not all(one.done() for one in asked):
                most = max(most, _count(served, RUNNING))
                time.sleep(0.05)
        together = [one.result() for one in asked]
        assert most > 1, "some step held several requests"
        assert [text for text, _ in together] == [text for text, _ in alone]
        ids = [routed.tokenizer(text)["input_ids"] for text in PROMPTS[:16]]
        policy = RoutedModel.from_pretrained(codebook, base=routed).policy
        wanted = [str(route) for route in policy.routes_for(ids)]
        assert [told[0]["route"] for _, told in together] == wanted
        assert len(set(wanted)) > 1
        for prompt, route, (text, _) in list(zip(PROMPTS, wanted, alone, strict=False))[:4]:
            assert text == answer_of(routed, prompt, Route.parse(route))
        messages: Any = [{"role": "user", "content": "What do plants need to grow?"}]
        chat = routed.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        (chosen,) = policy.routes_for([chat])
        assert streamed_chat(served, messages) == ((str(chosen), chosen.n_passes, "policy"), answer_of(routed, messages, chosen))
        (shown,) = fences(ROOT / "docs" / "serve.md", "python")
        exec(compile(shown.replace("http://127.0.0.1:8000", served.url).replace("smollm2-135m-q4", MODEL), "docs/serve.md", "exec"), {})
        assert "'decided': 'policy'" in capsys.readouterr().out
        _cached_by_route(served, routed, policy)
    finally:
        served.stop()


def _cached_by_route(served: Server, routed: Any, policy: Any) -> None:
    """What prompts begin with alike is taken from the cache where an earlier one took the same route, and the answers stay right."""
    start = "A plant grows where it has light, water and good soil. " * 24
    seen: set[Route] = set()
    for end in ("It is green because", "Its roots", "In winter it", "Its leaves", "Rain"):
        ids = routed.tokenizer(start + end)["input_ids"]
        (route,) = policy.routes_for([ids])
        before = _count(served, HITS)
        text, told = answer(served, start + end, max_tokens=6)
        assert told[0]["route"] == str(route)
        assert told[0]["seconds"] < 1
        assert (_count(served, HITS) - before >= 128) == (route in seen)
        assert text == routed.generate([start + end], policy=route, max_new_tokens=6)[0].text
        seen.add(route)
    assert len(seen) < 5


def test_one_route_as_users_start_it(routed, tmp_path):
    """Compiled: transformers' answers along the route; a chat's stream carries it, though it was learned from raw prompts."""
    routed.policy = Route.parse(ROUTES[2])
    routed.policy.prompt_format = "raw"
    folder = routed.save_pretrained(tmp_path / "static")
    routed.policy = None
    served = Server([str(folder), "--dtype", "float32"])
    try:
        messages: Any = [{"role": "user", "content": "What do plants need to grow?"}]
        route = Route.parse(ROUTES[2])
        assert streamed_chat(served, messages) == ((ROUTES[2], 24, "server"), answer_of(routed, messages, route))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda prompt: answer(served, prompt), PROMPTS[:4]))
        assert {told[0]["route"] for _, told in together} == {ROUTES[2]}
        assert [text for text, _ in together] == [answer_of(routed, prompt, route) for prompt in PROMPTS[:4]]
    finally:
        served.stop()


def test_the_healed_example_in_vllms_own_server(tmp_path):
    """As the README has it: exported, then `vllm serve`, which knows nothing of drllm; transformers' answers."""
    example, folder, port = ROOT / "examples" / "smollm2-135m-27-of-30", tmp_path / "short", free_port()
    assert main(["export", "--policy", str(example), "--dtype", "float32", "--out", str(folder)]) == 0
    healed = RoutedModel.from_pretrained(example, dtype="float32")
    command = [str(PYTHON.with_name("vllm")), "serve", str(folder), "--port", str(port)]
    with serving(command, port, {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_PLUGINS": ""}, minutes=10) as served:
        asked = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
        said = [asked.completions.create(model=str(folder), prompt=prompt, max_tokens=12, temperature=0) for prompt in PROMPTS[:4]]
    assert [one.choices[0].text for one in said] == [healed.generate([prompt], max_new_tokens=12)[0].text for prompt in PROMPTS[:4]]


def test_a_policy_in_the_engine_tells_its_routes(tmp_path):
    """Tiny routers, compiled as users start them, decide inside the engine: answers, whole or streamed, carry transformers' routes."""
    base = RoutedModel.wrap(str(checkpoint(tmp_path / "base", "llama")), dtype="float32")
    base.policy = random_routers(base)
    folder = base.save_pretrained(tmp_path / "routers")
    served = Server([str(folder), "--dtype", "float32", "--name", "tiny"])
    try:
        prompts = [letter * (3 + 5 * place) for place, letter in enumerate("aZ{0 ~bQ")]
        wanted = [str(base.generate([prompt], max_new_tokens=1)[0].route) for prompt in prompts]
        asked = client(served)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            options: Any = {"model": "tiny", "max_tokens": 6, "temperature": 1, "n": 2, "extra_body": {"top_k": 1}}
            made = list(pool.map(lambda prompt: asked.completions.create(prompt=prompt, **options), prompts))
        assert [one.model_extra["drllm"][0]["route"] for one in made] == wanted
        assert {one.model_extra["drllm"][0]["decided"] for one in made} == {"policy"}
        assert len(set(wanted)) > 1
        messages: Any = [{"role": "user", "content": "hi"}]
        (streamed,) = base.generate([messages], max_new_tokens=6)
        parts = list(asked.chat.completions.create(model="tiny", messages=messages, max_tokens=6, temperature=0, stream=True))
        assert [part.model_extra["drllm"][0]["route"] for part in parts if part.model_extra.get("drllm")] == [str(streamed.route)]
        assert "".join(part.choices[0].delta.content or "" for part in parts) == streamed.text
    finally:
        served.stop()
