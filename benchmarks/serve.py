"""What routes cost and save on vLLM: `make bench-serve`, in the serving environment (`make serve-env`).

    .venv-serve/bin/python benchmarks/serve.py [--batches 1,32] [--rounds 20] [--new 32] [--only "4 nested; 4 deeper"] [--out FILE.json]

Every engine is a process of its own with one thread; all are started first, in an order drawn by `--seed`: two engines of a kind differ
by some hundredths for as long as they live, which no interval of one run holds, so run it with several seeds. Then in
each round every arm decodes the same prompts once, in an order drawn anew, beside stock vLLM: the two take turns step by step, who goes
first drawn anew for each step, since a machine's speed drifts within seconds by more than what is measured here. The processor time is
read: tokens a CPU-second, `--model` in bf16 where the processor multiplies bf16 itself, else in fp32. Ratios are of one arm and the stock
beside it; their median over the rounds stands with its 95 % interval by order statistics. Arms, compiled and eager, each beside the stock
of its mode: the identity along the routed machinery; one common route of 24 blocks; four nested routes, from the base's to 21 blocks;
four deeper ones, from 24 to 15 blocks, whose limit leaves more to reach; as many routes as rows, which no compiled segment fits; and,
compiled, that common route as a static server, a static server that runs a span of four blocks twice, beside one that repeats those
blocks in place (as many passes), the trained codebook `--book`, each prompt along the route the book chooses for it from its text, and
routers that decide in the engine, where prompts are read whole, and always execute. `--only` names the arms to run by how they begin,
with `;` between, since names hold commas. The limit of nested routes is `t_other(B) + sum over parts of
t_part(rows executing it)`, by clocks around the blocks of the eager stock engine, and around the segments of the compiled routed one, in
every second round (in each of fewer than twelve). Printed is what of its saving is reached, not what of its speed, of which stock alone
would reach most. A trained book reads the prompts that it learned, so ask its tasks as its reward does (`--tasks`, `--reward`): for plain
text, the default, it may never leave the base's route.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import timed_prompts
import timed_routes
from drllm import Route, RoutedModel
from drllm.core.files import write_json
from drllm.deploy.serving.engine.segments import cuts
from drllm.deploy.serving.launch import cache_folder, checkpoint_of, make_spec
from drllm.policies.codebook import Codebook
from drllm.runs.provenance import hardware, versions
from generate import native_dtype
from served import BOOK_OF_TEXT, always_executes, book_of_text
from timing import MIN_VALUES, ONLY_HELP, check_rounds, median_interval, shown, wanted_arms

# Their names, the engine that has their segments compiled, and the routes.
NESTS = {"4 nested routes": ("rows", timed_routes.nested), "4 deeper nested routes": ("deeper", timed_routes.deeper)}
IN_PLACE = "in place compiled"  # the engine that takes turns with the looped one, beside stock
LENGTHS = (16, 32, 64, 128, 256)  # tokens of an answer
BOOK = "trained book, compiled"
LOOPED = "static looped"  # how the arm beside which that one runs begins


@dataclass
class Run:
    """Processor seconds of one batch."""

    prefill: float = 0.0
    decode: float = 0.0  # all steps after it
    chosen: list[str] | None = None  # each row's route, where the engine chose it

    @property
    def whole(self) -> float:
        return self.prefill + self.decode

    def of(self, n: int, new: int) -> float:
        """What answers of `n` tokens would take, measured by those of `new`."""
        return self.prefill + self.decode / (new - 1) * (n - 1)


class Engine:
    """A `serve_engine.py` process."""

    def __init__(self, model: str, dtype: str, spec: dict[str, Any] | None, eager: bool):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve_engine.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.chooses = spec is not None and spec["mode"] == "engine"
        self.send({"model": model, "dtype": dtype, "spec": spec, "eager": eager})

    def send(self, request: dict[str, Any]) -> None:
        """One line to the engine."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Its answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self.process.wait()}: run benchmarks/serve_engine.py by hand to see why")
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What it answers to one line."""
        self.send(request)
        return self.receive()


def in_turns(
    engines: Sequence[Engine], routes: Sequence[list[str] | None], rows: list[list[int]], new: int, rng: random.Random
) -> list[Run]:
    """One batch by each of the engines, a step each in turn."""
    runs = [Run() for _ in engines]
    waiting = list(range(len(engines)))
    rng.shuffle(waiting)
    for which in list(waiting):
        done = engines[which].ask({"prompts": rows, "routes": routes[which], "new": new, "chosen": engines[which].chooses})
        runs[which].prefill, runs[which].chosen = done["seconds"], done["chosen"]
        if not done["more"]:
            waiting.remove(which)
    while waiting:
        rng.shuffle(waiting)
        for which in list(waiting):
            done = engines[which].ask({"step": True})
            runs[which].decode += done["seconds"]
            if not done["more"]:
                waiting.remove(which)
    return runs


def mode_of(name: str) -> str:
    """Compiled or eager: the last word of an arm's name, and of the stock that it runs beside."""
    return name.rsplit(maxsplit=1)[-1]


def arms_of(batch: int, n_layers: int, only: tuple[str, ...] = ("",)) -> dict[str, tuple[str, list[str] | None]]:
    """Each arm: its engine, and the route of each sequence; the codebook's are chosen for each round's prompts.

    `only`: how the names of those begin that are wanted.
    """
    full, common = "1" * n_layers, timed_routes.common(n_layers)
    routes = {"identity": ("rows", [full] * batch), "one common route": ("rows", [common] * batch)}
    if batch > 1:
        routes |= {name: (engine, [nest(n_layers)[row % 4] for row in range(batch)]) for name, (engine, nest) in NESTS.items()}
        routes |= {f"{batch} routes": ("rows", [str(route) for route in timed_routes.different(batch, n_layers)])}
    static = f"static {timed_routes.KEPT} of {n_layers}, compiled"
    arms: dict[str, tuple[str, list[str] | None]] = {static: ("static compiled", None), BOOK: ("book compiled", None)}
    passes = Route.parse(timed_routes.looped(n_layers), n_layers).n_passes
    arms |= {f"{LOOPED} {passes} of {n_layers}, compiled": ("looped compiled", None)}
    arms |= {f"{name}, compiled": (f"{engine} compiled", taken) for name, (engine, taken) in routes.items()}
    arms |= {f"{name}, eager": ("rows eager", taken) for name, (_, taken) in routes.items()}  # block by block, whatever the routes
    arms |= {"routers in the engine, compiled": ("inside compiled", None)}
    return {name: arm for name, arm in arms.items() if name.startswith(only)}


def limit_of(engine: Engine, nest: Sequence[str], firsts: Sequence[int], rows: list[list[int]], new: int) -> float:
    """A decoding step of nested routes that pays each part for the rows that run it alone, over one that pays all for all rows."""
    nested = [Route.parse(nest[row % 4]) for row in range(len(rows))]
    taking = [sum(route[first] > 0 for route in nested) for first in firsts]
    clocks = {n: engine.ask({"prompts": rows[:n], "routes": None, "new": new, "clocked": True}) for n in sorted({*taking, len(rows)} - {0})}
    whole = clocks[len(rows)]
    paid = sum(clocks[n]["parts"][place] for place, n in enumerate(taking) if n)
    return (whole["beside"] + paid) / (whole["beside"] + sum(whole["parts"]))


class Batch:
    """All arms at one batch size: a round after the other, then what they say together."""

    def __init__(self, arms: dict[str, tuple[str, list[str] | None]], engines: dict[str, Engine], book: Codebook, new: int):
        self.arms, self.engines, self.book, self.new = arms, engines, book, new
        self.full = "1" * len(book.routes[0])
        self.chosen: list[str] = []
        self.strayed: dict[str, int] = {}  # choices in the engine that are not the base's route
        self.found: dict[str, list[tuple[Run, Run]]] = {name: [] for name in arms}  # with the stock beside it
        # Decoding seconds over those of the other engine.
        self.beside: dict[str, list[float]] = {name: [] for name in arms if name.startswith(LOOPED)}
        self.limits: dict[str, list[float]] = {name: [] for name in arms if name.rsplit(", ")[0] in NESTS}

    def round(self, rows: list[list[int]], rng: random.Random, counts: bool) -> None:
        """Every arm on these prompts, in an order drawn anew; the first round `counts` for nothing."""
        by_book = [str(route) for route in self.book.routes_for(rows) or ()]
        self.chosen += by_book if counts else []
        for name in rng.sample(list(self.arms), len(self.arms)):
            self._arm(name, rows, by_book, rng, counts)

    def _arm(self, name: str, rows: list[list[int]], by_book: list[str], rng: random.Random, counts: bool) -> None:
        engine, routes = self.arms[name]
        others = (self.engines[f"stock {mode_of(name)}"], *([self.engines[IN_PLACE]] if name in self.beside else []))
        taken = by_book if name == BOOK else routes
        mine, stock, *other = in_turns((self.engines[engine], *others), (taken, *[None] * len(others)), rows, self.new, rng)
        if counts:
            self.found[name].append((mine, stock))
        if other and counts:
            self.beside[name].append(mine.decode / other[0].decode)
        if mine.chosen is not None:
            self.strayed[name] = self.strayed.get(name, 0) + sum(route != self.full for route in mine.chosen)

    def best_possible(self, rows: list[list[int]]) -> None:
        """What nested routes could save at most, on these prompts."""
        for name, at_best in self.limits.items():
            engine, nest_of = NESTS[name.rsplit(", ")[0]]
            nest = nest_of(len(self.full))
            if name.endswith("eager"):
                at_best.append(limit_of(self.engines["stock eager"], nest, range(len(self.full)), rows, self.new))
            else:
                firsts = [first for first, _ in cuts([self.full, *nest])]
                at_best.append(limit_of(self.engines[f"{engine} compiled"], nest, firsts, rows, self.new))

    def about_stock(self, batch: int) -> dict[str, dict[str, Any]]:
        """By mode: stock's speed."""
        said = {}
        for mode in {mode_of(name): None for name in self.arms}:
            stocks = [[stock for _, stock in runs] for name, runs in self.found.items() if mode_of(name) == mode]
            prefills = [statistics.mean(run.prefill for run in of_round) for of_round in zip(*stocks, strict=True)]
            said[mode] = {
                "tokens_a_cpu_second": statistics.median(batch * (self.new - 1) / run.decode for runs in stocks for run in runs),
                "prefill": statistics.median(prefills),
            }
        return said

    def about_arm(self, name: str, batch: int) -> dict[str, Any]:
        """An arm's speed, and its seconds over stock's in the same rounds."""
        runs, new = self.found[name], self.new
        ratios = [stock.decode / mine.decode for mine, stock in runs]
        return {
            "tokens_a_cpu_second": statistics.median(batch * (new - 1) / mine.decode for mine, _ in runs),
            "ratio": median_interval(ratios),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "prefill": statistics.median(mine.prefill for mine, _ in runs),
            "prefill_ratio": median_interval([mine.prefill / stock.prefill for mine, stock in runs]),
            "whole_ratio": median_interval([mine.whole / stock.whole for mine, stock in runs]),
            "whole_by_length": {str(n): median_interval([mine.of(n, new) / stock.of(n, new) for mine, stock in runs]) for n in LENGTHS},
        }

    def about_limit(self, name: str, every: int) -> dict[str, Any]:
        """How much of the most that nested routes could save they do save."""
        at_best = self.limits[name]
        saved = [1 - mine.decode / stock.decode for mine, stock in self.found[name][::every]]
        return {
            "speed": median_interval([1 / best for best in at_best]),
            "saving_reached": median_interval([part / (1 - best) for part, best in zip(saved, at_best, strict=True)]),
            "rounds": len(at_best),
        }


def measure(one: Batch, prompts: list[list[int]], batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """All arms at one batch size."""
    limit_every = 2 if rounds >= 2 * MIN_VALUES else 1
    rng = random.Random(seed)
    for round_ in range(-1, rounds):  # the first warms up
        rows = [prompts[(max(round_, 0) * batch + row) % len(prompts)] for row in range(batch)]
        one.round(rows, rng, counts=round_ >= 0)
        if round_ >= 0 and round_ % limit_every == 0:
            one.best_possible(rows)
    book = {
        "segments": len(cuts([str(route) for route in one.book.routes])),
        "routes": len(set(one.chosen)),
        "passes": statistics.mean(Route.parse(route).n_passes for route in one.chosen),
    }
    return {
        "batch": batch,
        "rounds": rounds,
        "new": one.new,
        "arms": {name: one.about_arm(name, batch) for name in one.arms},
        "limit": {name: one.about_limit(name, limit_every) for name in one.limits},
        "stock": one.about_stock(batch),
        "strayed": one.strayed,
        "book": book,
        "to_in_place": {name: median_interval(ratios) for name, ratios in one.beside.items()},
    }


def report(row: dict[str, Any]) -> None:
    """What people read."""
    book = row["book"]
    print(
        f"\nbatch {row['batch']}, {row['rounds']} rounds, {row['new']} tokens a row; "
        f"the book took {book['routes']} routes of {book['passes']:.1f} passes on average, in {book['segments']} segments"
    )
    print(f"  {'':34} tokens a CPU-second   speed over stock          prefill seconds over stock")
    for mode, stock in row["stock"].items():
        print(f"  {f'stock, {mode}':34} {stock['tokens_a_cpu_second']:19.1f}")
    for name, arm in row["arms"].items():
        print(f"  {name:34} {arm['tokens_a_cpu_second']:19.1f}   {shown(arm['ratio'])}   {shown(arm['prefill_ratio'])}")
    for name, count in row["strayed"].items():
        print(f"  {name}: {count} choices other than the base's route, of {row['batch'] * (row['rounds'] + 1)}")
    for name, ratio in row["to_in_place"].items():
        print(f"  {name}: {shown(ratio)} of the decoding seconds of the same blocks repeated in place")
    for name, limit in row["limit"].items():
        print(
            f"  {name}: the limit is {shown(limit['speed'])} times stock; of its saving reached "
            f"{shown(limit['saving_reached'])}, {limit['rounds']} rounds"
        )
    for mode in row["stock"]:
        arms = {name: arm for name, arm in row["arms"].items() if mode_of(name) == mode}
        print(f"  {mode}: prefill and {row['new']} tokens over stock's; for answers of other lengths, by the mean step:")
        for name, arm in arms.items():
            by_length = ", ".join(f"{n} {value[0]:.3f} (to {value[2]:.3f})" for n, value in arm["whole_by_length"].items())
            print(f"    {name:32} {shown(arm['whole_ratio'])}   {by_length}")


def parsed() -> argparse.Namespace:
    """The arguments, checked, with `sizes`: of the batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=timed_routes.MODEL)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    timed_prompts.add_options(parser)
    parser.add_argument("--book", default=BOOK_OF_TEXT, help="a codebook trained with --read text")
    parser.add_argument("--dtype", default="", choices=["", "bfloat16", "float32"], help="default: what the processor multiplies itself")
    parser.add_argument("--only", default="", help=ONLY_HELP)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)  # before hours of measuring
    check_rounds(parser, given.rounds)
    given.sizes, given.refuse = [int(size) for size in given.batches.split(",")], parser
    return given


def kinds_of(routed: RoutedModel, book: Codebook, place: Path) -> dict[str, tuple[dict[str, Any] | None, bool]]:
    """Every kind of engine: what it serves, and whether it is eager. The routers that decide in the engine are saved at `place`."""
    n_layers = routed.n_layers
    full, static = "1" * n_layers, {"mode": "static", "n_layers": n_layers}
    rows: dict[str, Any] = {"mode": "routes", "n_layers": n_layers, "routes": [full, *timed_routes.nested(n_layers)]}
    repeatable = sorted({block for route in book.routes for block, action in enumerate(route) if action == 2})
    trained = {"mode": "routes", "n_layers": n_layers, "routes": list(map(str, book.routes)), "repeatable": repeatable}
    routed.policy = routers = always_executes(routed)
    inside = asdict(make_spec(routers, str(routed.save_pretrained(place)), routed))
    routed.policy = None
    return {
        "stock compiled": (None, False),
        "static compiled": (static | {"route": timed_routes.common(n_layers)}, False),
        "rows compiled": (rows, False),
        "looped compiled": (static | {"route": timed_routes.looped(n_layers)}, False),
        IN_PLACE: (static | {"route": timed_routes.in_place(n_layers)}, False),
        "deeper compiled": (rows | {"routes": [full, *timed_routes.deeper(n_layers)]}, False),
        "book compiled": (trained, False),
        "inside compiled": (inside, False),
        "stock eager": (None, True),
        "rows eager": (rows, True),
    }


def needed_by(arms: Sequence[tuple[str, str]]) -> set[str]:
    """The engines of (arm, its engine), and those that they are compared with."""
    needed = {engine for _, engine in arms} | {f"stock {mode_of(name)}" for name, _ in arms}
    return needed | {IN_PLACE for name, _ in arms if name.startswith(LOOPED)}


def main() -> None:
    given = parsed()
    torch.set_num_threads(1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] - each batch is printed as it is done, also to a file
    dtype = given.dtype or native_dtype("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{dtype} on {hardware()['processor']}")
    routed = RoutedModel.wrap(given.model, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    n_layers, sizes = routed.n_layers, given.sizes
    only = wanted_arms(given.refuse, given.only, list({arm: None for size in sizes for arm in arms_of(size, n_layers)}))
    checkpoint = checkpoint_of(routed, cache_folder())
    prompts = timed_prompts.timed_prompts(routed, given)
    book, place = book_of_text(Path(given.book)), tempfile.TemporaryDirectory()
    kinds = kinds_of(routed, book, Path(place.name))
    needed = needed_by([(name, engine) for size in sizes for name, (engine, _) in arms_of(size, n_layers, only).items()])
    engines: dict[str, Engine] = {}
    # An engine keeps where in memory its weights lie, which is worth some hundredths of its speed, and those started later lie elsewhere.
    starting = random.Random(given.seed).sample(sorted(needed), len(needed))
    for name in starting:
        engines[name] = Engine(checkpoint, dtype, *kinds[name])
        engines[name].receive()
        print(f"started: {name}", file=sys.stderr, flush=True)
    results = []
    for batch in sizes:
        one = Batch(arms_of(batch, n_layers, only), engines, book, given.new)
        results.append(measure(one, prompts, batch, given.rounds, given.seed))
        report(results[-1])
    if given.out:
        said = {"model": given.model, "dtype": dtype, "book": given.book, "asked": timed_prompts.described(given), "turns": "steps"}
        found = said | {"started": starting, "serve": results, "hardware": hardware(), "versions": versions()}
        write_json(Path(given.out), found)


if __name__ == "__main__":
    main()
