"""Are routes that skip blocks good drafts of lossless self-speculative decoding? How many of their tokens the whole model would accept.

    python benchmarks/drafts.py --model qwen2.5-coder-1.5b-q4 --out results/benchmarks/drafts.json

A draft proposes k tokens by a route that skips blocks, then the whole model checks them in one step and keeps those that it would have said
itself, and one more. Greedy, so the text is the base's own. A draft token costs its passes' share of a step and a check one step. In truth
both cost more, so the speed-up printed is an upper bound. k is the best of 1 to 8 on the prompts themselves, which flatters it once more.

Routes are chosen on `CHOOSING` by their bound, then measured on `ASKED`: seven prompts of chat, seven of code, six of mathematics.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drllm import Route, RoutedModel, show_progress
from drllm.core.files import read_json, write_json
from drllm.core.progress import Progress
from drllm.model.prompts import encode_prompts

CHOOSING = [
    "Tell me what a lighthouse is for.",
    "Write a Python function that counts the vowels of a string.",
    "A train leaves at 9:40 and arrives at 12:15. How long does it take?",
    "Explain to a child why the sky is dark at night.",
    "Write a SQL query for the three oldest customers of a table.",
]
ASKED = {
    "chat": [
        "What should I pack for a walk of three days in the hills?",
        "Write a short thank-you note to a neighbour who watered my plants.",
        "What is the difference between weather and climate?",
        "Give me three ideas for a rainy afternoon with children.",
        "How do I get rid of the smell of onions on my hands?",
        "Summarise in two sentences what a central bank does.",
        "Which questions should I ask when I look at a flat to rent?",
    ],
    "code": [
        "Write a Python function that merges two sorted lists.",
        "Write a bash command that finds the ten largest files of a folder.",
        "What does this do? `x = [i for i in range(50) if i % 7 == 0]`",
        "Write a JavaScript function that removes duplicates of an array.",
        "Write a Python class for a stack with push, pop and peek.",
        "How do I undo the last commit in git without losing my changes?",
        "Write a C function that reverses a string in place.",
    ],
    "mathematics": [
        "What is 17 * 24? Show each step.",
        "A shirt costs 40 euros and is 15 % cheaper today. What does it cost?",
        "Solve 3x + 7 = 22 for x.",
        "How many ways are there to choose 3 of 8 books?",
        "What is the area of a circle with a diameter of 10 cm?",
        "If five machines make five parts in five minutes, how long do 100 machines need for 100 parts?",
    ],
}
LENGTHS = (1, 2, 4, 6, 8, 10, 12)  # blocks that a draft skips, of those next to one another
MOST_DRAFTED = 8


def candidates(n_layers: int) -> list[Route]:
    """One span left out, of each length at every second place; and every second block of a middle stretch."""
    found = []
    for length in LENGTHS:
        for first in range(1, n_layers - length, 2):
            found.append(Route([0 if first <= block < first + length else 1 for block in range(n_layers)]))
    for skipped in (4, 6, 8, 10):
        start = max(1, n_layers // 2 - skipped)
        alternate = set(range(start, min(n_layers - 1, start + 2 * skipped), 2))
        found.append(Route([0 if block in alternate else 1 for block in range(n_layers)]))
    return list(dict.fromkeys(found))


@torch.no_grad()
def accepted(routed: RoutedModel, prompt: list[int], answer: list[int], route: Route) -> list[bool]:
    """Of each token of the base's answer, whether the draft would have said it behind the same text."""
    logits = routed(torch.tensor([prompt + answer]), routes=route).logits[0]
    return (logits[len(prompt) - 1 : -1].argmax(-1) == torch.tensor(answer)).tolist()


def steps_spent(hits: list[bool], k: int, cost: float) -> float:
    """Steps of the whole model that a text takes, k tokens drafted at a time, each at `cost` of a step."""
    at, spent = 0, 0.0
    while at < len(hits):
        run = 0
        while run < k and at + run < len(hits) and hits[at + run]:
            run += 1
        spent += k * cost + 1
        at += run + 1
    return spent


def bound(texts: list[list[bool]], cost: float) -> tuple[float, int]:
    """(speed-up, k): the best number of tokens to draft at a time."""
    n = sum(map(len, texts))
    found = [(n / sum(steps_spent(hits, k, cost) for hits in texts), k) for k in range(1, MOST_DRAFTED + 1)]
    return max(found)


def interval(texts: list[list[bool]], cost: float) -> list[float]:
    """95 % of the speed-up over prompts drawn again, k drawn with them."""
    rng = np.random.default_rng(0)
    found = [bound([texts[place] for place in rng.integers(0, len(texts), len(texts))], cost)[0] for _ in range(300)]
    return [float(value) for value in np.quantile(found, [0.025, 0.975])]


class Texts:
    """The base's answers and each route's hits on them; kept in the file as they are found, so that the same command goes on."""

    def __init__(self, routed: RoutedModel, out: Path, n_tokens: int):
        self.routed, self.out = routed, out
        about = {"model": routed.base_id, "fingerprint": routed.fingerprint, "tokens": n_tokens}
        self.kept: dict[str, Any] = about | {"answers": {}, "hits": {}}
        if out.is_file():
            self.kept = read_json(out, "remove it and run again", dict)
        if {key: self.kept.get(key) for key in about} != about:
            raise SystemExit(f"{out} is of another model or length: give another --out")
        self.n_tokens = n_tokens

    def prompt(self, text: str) -> list[int]:
        """Its tokens, as chat."""
        (ids,), _ = encode_prompts(self.routed.tokenizer, [[{"role": "user", "content": text}]])
        return list(ids)

    def answers(self, prompts: list[str]) -> None:
        """The base's greedy texts, eight prompts at a time."""
        missing = [text for text in prompts if text not in self.kept["answers"]]
        with Progress("the base's answers", len(missing)) as progress:
            for start in range(0, len(missing), 8):
                part = missing[start : start + 8]
                given = [[{"role": "user", "content": text}] for text in part]
                outs = self.routed.generate(given, max_new_tokens=self.n_tokens, do_sample=False)
                self.kept["answers"] |= {text: out.token_ids for text, out in zip(part, outs, strict=True)}
                write_json(self.out, self.kept)
                progress.advance(len(part))

    def hits(self, prompts: list[str], routes: list[Route]) -> None:
        """What each route would have said, of all these answers."""
        with Progress("drafts", len(routes)) as progress:
            for route in routes:
                known = self.kept["hits"].setdefault(str(route), {})
                for text in prompts:
                    if text not in known:
                        found = accepted(self.routed, self.prompt(text), self.kept["answers"][text], route)
                        known[text] = "".join(str(int(hit)) for hit in found)
                write_json(self.out, self.kept)
                progress.advance(1)

    def of(self, route: Route, prompts: list[str]) -> list[list[bool]]:
        """Hits of a route, a list a prompt."""
        return [[hit == "1" for hit in self.kept["hits"][str(route)][text]] for text in prompts]


def main() -> None:
    """Choose drafts, measure them, print the table."""
    show_progress()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-q4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--measured", type=int, default=5, help="routes that are measured")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model)
    every = [text for part in ASKED.values() for text in part]
    texts = Texts(routed, arguments.out, arguments.tokens)
    texts.answers(CHOOSING + every)
    routes, n_layers = candidates(routed.n_layers), routed.n_layers
    texts.hits(CHOOSING, routes)
    cost = {route: route.n_passes / n_layers for route in routes}
    ranked = sorted(routes, key=lambda route: -bound(texts.of(route, CHOOSING), cost[route])[0])[: arguments.measured]
    texts.hits(every, ranked)
    texts.kept["table"] = []
    for route in ranked:
        found, chosen = texts.of(route, every), bound(texts.of(route, CHOOSING), cost[route])[0]
        by_kind = {kind: float(np.mean(np.concatenate(texts.of(route, part)))) for kind, part in ASKED.items()}
        (speedup, k), (low, high) = bound(found, cost[route]), interval(found, cost[route])
        row = {"route": str(route), "passes": route.n_passes, "accepted": float(np.mean(np.concatenate(found))), "by_kind": by_kind}
        texts.kept["table"].append(row | {"k": k, "speedup": speedup, "interval": [low, high], "chosen_at": chosen})
        print(f"{route}: {route.n_passes} of {n_layers} passes, {row['accepted']:.0%} of the tokens accepted, by kind {by_kind}")
        print(f"  at most {speedup:.2f} ({low:.2f} to {high:.2f}) times as fast, {k} tokens drafted at a time; where chosen {chosen:.2f}")
    write_json(arguments.out, texts.kept)


if __name__ == "__main__":
    main()
