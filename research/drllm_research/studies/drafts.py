"""Are routes that skip blocks good drafts of lossless self-speculative decoding? How many of their tokens the whole model would accept.

    python -m drllm_research.studies.drafts --model qwen2.5-coder-1.5b-q4 --out results/benchmarks/drafts-qwen.json

A draft proposes tokens by a route that skips blocks, then the whole model checks them in one step and keeps those that it would have said
itself, and one more. Greedy, so the text is the base's own. It stops by one of three rules: after k tokens; after a token that it gives a
probability below t; or where it would be refused, which nothing can know (the limit). A draft token costs its passes' share of a step and a
check one step. In truth both cost more, so every speed-up printed is an upper bound; k and t are the best on the prompts themselves.

Routes are chosen on `CHOOSING` by the better of the first two rules, then measured on `ASKED`: seven prompts of chat, seven of code, six
of mathematics.
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
        "How many ways are there to choose 3 of 8 people?",
        "What is the area of a circle with a diameter of 10 cm?",
        "If five machines make five parts in five minutes, how long do 100 machines need for 100 parts?",
    ],
}
LENGTHS = (1, 2, 4, 6, 8, 10, 12)  # blocks that a draft skips, of those next to one another
MOST_DRAFTED, LONGEST = 8, 16  # tokens drafted at a time, at most: by the first rule, by the second
THRESHOLDS = (30, 50, 60, 70, 80, 90, 95)
DRAWS = 200
RULES = ("length", "confidence", "limit")


def candidates(n_layers: int) -> list[Route]:
    """One span left out, of each length at every second place; and every second block in the middle."""
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
def drafted(routed: RoutedModel, prompt: list[int], answer: list[int], route: Route) -> tuple[list[bool], list[int]]:
    """Of each token of the base's answer: whether the draft would have said it behind the same text; the percent that it gives its own."""
    logits = routed(torch.tensor([prompt + answer]), routes=route).logits[0]
    chance, said = logits[len(prompt) - 1 : -1].float().softmax(-1).max(-1)
    return (said == torch.tensor(answer)).tolist(), (100 * chance).int().clamp(max=99).tolist()


def steps_spent(hits: list[bool], surely: list[int], cost: float, k: int, t: int) -> float:
    """Steps of the whole model that a text takes, each drafted token at `cost` of one.

    At most k are drafted at a time, and none behind one that is less sure than t percent.
    """
    at, spent = 0, 0.0
    while at < len(hits):
        n_drafted = 0
        while n_drafted < k and at + n_drafted < len(hits) and (not n_drafted or surely[at + n_drafted - 1] >= t):
            n_drafted += 1
        kept = 0
        while kept < n_drafted and hits[at + kept]:
            kept += 1
        spent += n_drafted * cost + 1
        at += kept + 1
    return spent


def steps_at_best(hits: list[bool], cost: float) -> float:
    """The same for a draft that stops just where it would be refused."""
    return sum(cost if hit else 1 for hit in hits) + bool(hits and hits[-1])


Drafted = tuple[list[bool], list[int]]


def bound(texts: list[Drafted], cost: float, rule: str) -> tuple[float, int]:
    """(speed-up, k or t) by the rule "length", "confidence" or "limit"."""
    n = sum(len(hits) for hits, _ in texts)
    if rule == "limit":
        return n / sum(steps_at_best(hits, cost) for hits, _ in texts), 0
    tried = [(k, 0, k) for k in range(1, MOST_DRAFTED + 1)] if rule == "length" else [(LONGEST, t, t) for t in THRESHOLDS]
    return max((n / sum(steps_spent(*text, cost, k, t) for text in texts), name) for k, t, name in tried)


def interval(texts: list[Drafted], cost: float, rule: str) -> list[float]:
    """95 % of the speed-up over prompts drawn again, k or t drawn with them."""
    rng = np.random.default_rng(0)
    found = [bound([texts[place] for place in rng.integers(0, len(texts), len(texts))], cost, rule)[0] for _ in range(DRAWS)]
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
                        hits, surely = drafted(self.routed, self.prompt(text), self.kept["answers"][text], route)
                        known[text] = ["".join(str(int(hit)) for hit in hits), "".join(f"{percent:02d}" for percent in surely)]
                write_json(self.out, self.kept)
                progress.advance(1)

    def of(self, route: Route, prompts: list[str]) -> list[Drafted]:
        """What a route would have said and how surely, a pair a prompt."""
        found = [self.kept["hits"][str(route)][text] for text in prompts]
        return [([hit == "1" for hit in hits], [int(sure[at : at + 2]) for at in range(0, len(sure), 2)]) for hits, sure in found]


def share(texts: list[Drafted]) -> float:
    """Of the tokens, those accepted."""
    return float(np.mean([hit for hits, _ in texts for hit in hits]))


def main() -> None:
    """Choose drafts, measure them, print the table."""
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-q4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--measured", type=int, default=5, help="routes that are measured")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    routed = RoutedModel.wrap(arguments.model)
    every = [text for part in ASKED.values() for text in part]
    texts = Texts(routed, arguments.out, arguments.tokens)
    texts.answers(CHOOSING + every)
    routes, n_layers = candidates(routed.n_layers), routed.n_layers
    texts.hits(CHOOSING, routes)
    cost = {route: route.n_passes / n_layers for route in routes}
    chosen_at = {route: max(bound(texts.of(route, CHOOSING), cost[route], rule)[0] for rule in RULES[:2]) for route in routes}
    ranked = sorted(routes, key=lambda route: -chosen_at[route])[: arguments.measured]
    texts.hits(every, ranked)
    texts.kept["table"] = []
    for route in ranked:
        found = texts.of(route, every)
        by_kind = {kind: share(texts.of(route, part)) for kind, part in ASKED.items()}
        row: dict[str, Any] = {"route": str(route), "passes": route.n_passes, "chosen_at": chosen_at[route], "accepted": share(found)}
        print(f"{route}: {route.n_passes} of {n_layers} passes, {row['accepted']:.0%} of the tokens accepted")
        for rule in RULES:
            (speedup, setting), (low, high) = bound(found, cost[route], rule), interval(found, cost[route], rule)
            row[rule] = {"speedup": speedup, "interval": [low, high], "setting": setting}
            print(f"  stops by {rule} ({setting}): at most {speedup:.2f} ({low:.2f} to {high:.2f}) times as fast")
        texts.kept["table"].append(row | {"by_kind": by_kind})
    write_json(arguments.out, texts.kept)


if __name__ == "__main__":
    main()
