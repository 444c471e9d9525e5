"""What clients of a routed server wait, against plain vLLM: `make bench-http`, in the serving environment.

    .venv-serve/bin/python benchmarks/serve_http.py [--clients 1,32] [--new 32] [--rounds 20] [--only "static; trained"] [--out FILE.json]

For each arm `drllm serve` stands beside a server of plain vLLM (the same base, precision and context, no drllm in it), both as users start
them, on loopback. In each round the same questions, one a client and all at once, are asked of both, streamed, who goes first drawn anew;
the other server waits meanwhile. Printed are the seconds until a client has its first token and its last, by the mean client, the seconds
until all have, and the processor seconds of the server's processes; medians over the rounds of arm over plain, with 95 % intervals by order
statistics. Arms: plain vLLM again, a control; one route of 24 blocks for all; the trained codebook `--book`, which chooses each prompt's
route from its text, before the engine; the trained routers `--routers`, if they are given, which decide in it; and such a book and such
routers that always take the base's route, whose answers must be plain vLLM's: in float32 the benchmark fails where more than one in a
hundred is not. Everything is counted: HTTP, the choice, the scheduler; and clients run on the same processor. Without `--shared` only
prompts of more than 128 tokens fill a block of the prefix cache. Rounds that run out of questions begin anew.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import timed_prompts
import timed_routes
from drllm import Route, RoutedModel
from drllm.core.files import write_json
from drllm.deploy.serving.engine.vllm_private import ENTRY
from drllm.deploy.serving.launch import cache_folder, checkpoint_of, environment
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Policy
from drllm.policies.saved import open_folder
from drllm.runs.provenance import hardware, versions
from generate import native_dtype
from served import BOOK_OF_TEXT, Served, always_executes, book_of_text, free_port, never_leaves, serving
from timing import ONLY_HELP, check_rounds, median_interval, shown, wanted_arms

NAME = "bench"
CONTEXT = 1024
PAUSE = 1.5  # seconds before each burst: an engine's worker spins for one after its last step
MAX_OTHER = 0.01  # of the identity's texts in float32, where sums of another order may flip a choice of near equals
STATIC, ROUTERS = "static, 24 of", "trained routers"  # the first, and the number of blocks
AGAIN = "plain vLLM again"  # a control: how one server differs from another of its kind
# Each arm's policy.
ARMS = {
    AGAIN: "",
    STATIC: "static",
    "trained book": "trained",
    "identity book": "never",
    ROUTERS: "routers",
    "identity routers": "executes",
}
MEASURES = {"first": "first token", "last": "last token", "wall": "all done", "cpu": "processor"}


@dataclass
class Burst:
    """What one server took for a round's questions, in seconds."""

    first: float
    last: float
    wall: float
    cpu: float
    texts: list[str]
    routes: list[str]


def ask(url: str, prompt: list[int], new: int) -> tuple[float, float, str, str]:
    """Seconds to the first token and to the last, the text, and the route if the server says it."""
    request = {"model": NAME, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "stream": True}
    # Most of the base's answers begin with an end of turn, which would otherwise have no text.
    body = json.dumps(request | {"skip_special_tokens": False}).encode()
    post = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    text, route, first = "", "", None
    started = time.perf_counter()
    with urllib.request.urlopen(post, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                event = json.loads(line[6:])
                text += event["choices"][0]["text"]
                if records := event.get("drllm"):
                    route = records[0]["route"]
    if first is None:
        raise SystemExit(f"an answer of {url} held no token")
    return first, time.perf_counter() - started, text, route


def burst(server: Served, prompts: list[list[int]], new: int) -> Burst:
    """All prompts at once, a client each."""
    got: list[tuple[float, float, str, str] | None] = [None] * len(prompts)

    def client(place: int) -> None:
        got[place] = ask(server.url, prompts[place], new)

    clients = [threading.Thread(target=client, args=(place,)) for place in range(len(prompts))]
    time.sleep(PAUSE)
    before, started = server.cpu_seconds(), time.perf_counter()
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    wall, cpu = time.perf_counter() - started, server.cpu_seconds() - before
    done = [answer for answer in got if answer is not None]
    if len(done) < len(prompts):
        raise SystemExit(f"{len(prompts) - len(done)} of {len(prompts)} requests failed: their errors stand above")
    first, last = (statistics.mean(answer[place] for answer in done) for place in (0, 1))
    return Burst(first, last, wall, cpu, [answer[2] for answer in done], [answer[3] for answer in done])


def measure(server: Served, plain: Served, prompts: list[list[int]], clients: int, new: int, rounds: int, seed: int) -> dict[str, Any]:
    """An arm beside plain vLLM."""
    rng = random.Random(seed)
    found: list[tuple[Burst, Burst]] = []
    for round_ in range(-1, rounds):  # the first warms up
        questions = [prompts[(max(round_, 0) * clients + place) % len(prompts)] for place in range(clients)]
        pair = [server, plain]
        rng.shuffle(pair)
        done = {which.url: burst(which, questions, new) for which in pair}
        found += [(done[server.url], done[plain.url])] if round_ >= 0 else []
    routes = [Route.parse(route) for mine, _ in found for route in mine.routes if route]
    result: dict[str, Any] = {"clients": clients, "new": new, "rounds": rounds, "answers": clients * rounds, "routes": len(set(routes))}
    if routes and len(routes) < result["answers"]:
        raise SystemExit(f"{result['answers'] - len(routes)} of {result['answers']} answers of {server.url} name no route")
    result["passes"] = statistics.mean(route.n_passes for route in routes) if routes else None
    result["other_texts"] = sum(a != b for mine, other in found for a, b in zip(mine.texts, other.texts, strict=True))
    for measured in MEASURES:
        pairs = [(getattr(mine, measured), getattr(other, measured)) for mine, other in found]
        ratios = [mine / other for mine, other in pairs]
        result[measured] = {
            "ratio": median_interval(ratios),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds": statistics.median(mine for mine, _ in pairs),
            "plain": statistics.median(other for _, other in pairs),
        }
    return result


def report(name: str, result: dict[str, Any]) -> None:
    """What people read."""
    load = f"{result['clients']} clients, {result['new']} tokens, {result['rounds']} rounds"
    routes = f" {result['routes']} routes of {result['passes']:.1f} passes on average;" if result["routes"] else ""
    print(f"\n{name}: {load};{routes} {result['other_texts']} of {result['answers']} texts are not plain vLLM's")
    for measured, what in MEASURES.items():
        seconds = result[measured]
        print(f"  {what:12} {seconds['seconds']:7.3f} s, plain {seconds['plain']:7.3f} s, ratio {shown(seconds['ratio'])}")


def parsed() -> argparse.Namespace:
    """The arguments, checked, with `wanted`: how the names of the arms begin that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=timed_routes.MODEL)
    parser.add_argument("--clients", default="1,32", help="how many ask at once")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help=ONLY_HELP)
    parser.add_argument("--seed", type=int, default=0)
    timed_prompts.add_options(parser)
    parser.add_argument("--book", default=BOOK_OF_TEXT, help="a codebook trained with --read text")
    parser.add_argument("--routers", default="", help="trained routers; none: without that arm")
    parser.add_argument("--dtype", default="", choices=["", "bfloat16", "float32"], help="default: what the processor multiplies itself")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    given.wanted = wanted_arms(parser, given.only, list(ARMS))
    if not all(word.isdecimal() and int(word) for word in given.clients.split(",")):
        parser.error(f"--clients is {given.clients!r}, expected numbers such as 1,32")
    check_rounds(parser, given.rounds)
    return given


def save_policies(routed: RoutedModel, given: argparse.Namespace, place: Path) -> None:
    """The policies that the arms serve."""
    book = book_of_text(Path(given.book))
    policies: dict[str, Policy] = {"static": RoutePolicy(Route.parse(timed_routes.common(routed.n_layers))), "trained": book}
    policies |= {"never": never_leaves(book), "executes": always_executes(routed)}
    policies |= {"routers": open_folder(Path(given.routers)).load(routed.identity)} if given.routers else {}
    for name, policy in policies.items():
        routed.policy = policy
        routed.save_pretrained(place / name)


def main() -> None:
    given = parsed()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] - each arm is printed as it is done, also to a file
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = given.dtype or native_dtype(device)
    print(f"{dtype} on {hardware()['processor']}")
    routed = RoutedModel.wrap(given.model, dtype=dtype, device=device)
    checkpoint, folders = checkpoint_of(routed, cache_folder()), tempfile.TemporaryDirectory()
    save_policies(routed, given, Path(folders.name))
    n_layers, prompts = routed.n_layers, timed_prompts.timed_prompts(routed, given)
    del routed
    found: dict[str, Any] = {"model": given.model, "dtype": dtype, "book": given.book, "seed": given.seed, "http": {}}
    found |= {"asked": timed_prompts.described(given), "hardware": hardware(), "versions": versions()}
    same = ["--dtype", dtype, "--max-model-len", str(CONTEXT)]
    stock = [sys.executable, "-m", ENTRY, "--model", checkpoint, "--served-model-name", NAME, "--generation-config", "vllm"]
    stock += ["--host", "127.0.0.1", *same]

    def plain_server(port: int) -> AbstractContextManager[Served]:
        return serving([*stock, "--port", str(port)], port, environment(device) | {"VLLM_PLUGINS": "none"})

    with plain_server(free_port()) as plain:
        for name, policy in ARMS.items():
            if not name.startswith(given.wanted) or (name == ROUTERS and not given.routers):
                continue
            port, folder = free_port(), str(Path(folders.name) / policy)
            command = [sys.executable, "-m", "drllm", "serve", folder, "--any-format", "--name", NAME, "--port", str(port), *same]
            with plain_server(port) if name == AGAIN else serving(command, port) as server:
                for clients in map(int, given.clients.split(",")):
                    result = measure(server, plain, prompts, clients, given.new, given.rounds, given.seed)
                    if (result["passes"] is None) != (name == AGAIN):
                        sys.exit(f"{name}: answers of {server.url} name {result['routes']} routes")
                    named = f"{name} {n_layers}" if name == STATIC else name
                    report(named, result)
                    found["http"].setdefault(named, []).append(result)
                    if given.out:  # each as it is done: a later arm may fail
                        write_json(Path(given.out), found)
    identities = [result for name, results in found["http"].items() for result in results if name.startswith("identity")]
    if dtype == "float32" and any(result["other_texts"] > MAX_OTHER * result["answers"] for result in identities):
        sys.exit("the identity's texts are not plain vLLM's: drllm or this benchmark is wrong")


if __name__ == "__main__":
    main()
