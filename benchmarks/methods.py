"""Every method under one comparison: train and answer (resumes), time, then print the tables from what was stored (seconds).

    python benchmarks/methods.py run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA
    python benchmarks/methods.py run --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings ood
    python benchmarks/methods.py time --run runs/policies --out results/policies-smollm2-135m-q4 --data DATA --settings in-domain
    python benchmarks/methods.py run ... --settings in-domain --split test      # once, after the winner is named in docs/LOG.md
    python benchmarks/methods.py table --out results/policies-smollm2-135m-q4 > docs/results.md

`run` needs the dense matrix of `drllm search --paths` in --run, and for `paper` a tree search with preset paper in --searched. Policies
go to RUN/policies/<setting>/<method>.<seed>, verdicts to OUT/<setting>/<split>/<method>.<seed>.parquet. A verdict depends on the question
and the route alone (`docs/LOG.md`, the label factory), so that of a route of the matrix is looked up, others are computed once and kept.
`table` reads verdicts alone (`benchmarks/methods_table.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ARC, OBQA = ("arc_easy", "arc_challenge"), ("openbookqa",)
MIXED = (*ARC, *OBQA, "commonsenseqa", "piqa", "boolq")
OUTSIDE = ("piqa", "sciq", "commonsenseqa", "boolq", "mmlu")
LIMIT = 800  # questions of a task and split in the matrix


@dataclass(frozen=True)
class Setting:
    """Tasks learned from, tasks asked; `policies` of another setting, if it trains none of its own."""

    learned: tuple[str, ...]
    asked: tuple[str, ...]
    policies: str = ""


SETTINGS = {
    "arc": Setting(ARC, ARC),
    "openbookqa": Setting(OBQA, OBQA),
    "commonsenseqa": Setting(("commonsenseqa",), ("commonsenseqa",)),
    "piqa": Setting(("piqa",), ("piqa",)),
    "boolq": Setting(("boolq",), ("boolq",)),
    "in-domain": Setting((*ARC, *OBQA), (*ARC, *OBQA)),
    "mixed": Setting(MIXED, MIXED),
    "ood": Setting((*ARC, *OBQA), OUTSIDE, "in-domain"),
}
TOLD = ("arc", "openbookqa", "commonsenseqa", "piqa", "boolq")  # settings whose static routes make static-per-task
BUDGET = 0.9


@dataclass(frozen=True)
class Row:
    """A row of the tables: a method with options; whether seeds change it; where its records are."""

    method: str
    options: dict[str, Any]
    seeds: bool = False
    searched: bool = False


GATES = {"tune_questions": 100}
ROWS = {
    "static": Row("static", {"candidates": 100, "steps": 1}),
    "codebook": Row("codebook", {}, True),
    "polar": Row("polar", {}, True),
    "routers": Row("routers", {"tune_questions": 50}, True),
    "paper": Row("routers", {"preset": "paper"}, True, True),
    "random_codebook": Row("random_codebook", {}, True),
    "input_blind": Row("input_blind", {}, True),
    "oracle": Row("oracle", {}),
    "static@0.9": Row("static", {"candidates": 100, "steps": 1, "budget": BUDGET}),
    "codebook@0.9": Row("codebook", {"budget": BUDGET}, True),
    "routers@0.9": Row("routers", {"budget": BUDGET, "tune_questions": 50}),
    "tale": Row("tale", {"questions": 48}),
    "tale@0.9": Row("tale", {"budget": BUDGET, "questions": 48}),
    "shortgpt@0.9": Row("shortgpt", {"budget": BUDGET}),
    "early_exit@0.9": Row("early_exit", {"budget": BUDGET}),
    "random_skip@0.9": Row("random_skip", {"budget": BUDGET}, True),
    "mindskip@0.9": Row("mindskip", {"budget": BUDGET} | GATES),
    "flexidepth@0.9": Row("flexidepth", {"budget": BUDGET, "penalty": 3e-3} | GATES),
}
LIGHT = ("static", "codebook", "polar", "random_codebook", "input_blind")  # of the settings of one task
SHUFFLED = ("codebook", "polar", "routers", "paper")


class Asked:
    """Questions of some tasks and one split, and verdicts of any route on them: looked up, or computed once and kept."""

    def __init__(self, routed: Any, tasks: Sequence[str], split: str, run: Path, data: str | None):
        from drllm.records import read_records
        from drllm.scoring import make_scorer
        from drllm.tasks import drop_overlaps, load_task

        names = list(dict.fromkeys((*MIXED, *tasks)))
        loaded = drop_overlaps({name: load_task(name, data) for name in names}, list(MIXED))
        self.routed, self.split, self.run = routed, split, run
        self.parts: list[tuple[str, Any, list[Any]]] = []
        self.known: dict[tuple[str, str, str], bool] = {}
        for name in tasks:
            scorer = make_scorer(routed, loaded[name].task, "auto", 512, "acc_norm", 0)
            lists = [folder for folder in (run / "paths").glob(f"{name}*") if folder.name.partition(".")[0] == name]
            records = [record for folder in lists for record in read_records(folder) if record.split == split]
            for record in records:
                for route, reward in zip(record.routes, record.rewards, strict=True):
                    self.known[name, record.id, str(route)] = reward > 0.5
            examples = loaded[name].select(split, 0 if split == "test" else LIMIT)
            if records:
                ids = {record.id for record in records}
                examples = [example for example in loaded[name].examples[split] if example.id in ids]
            questions = [scorer.question(loaded[name].task, example) for example in examples]
            self.parts.append((name, scorer, sorted(questions, key=lambda question: (question.n_tokens, question.example.id))))
            if self._store(name).is_file():
                kept = pq.read_table(self._store(name)).to_pydict()
                self.known |= {(name, i, r): c for i, r, c in zip(kept["id"], kept["route"], kept["correct"], strict=True)}
        self.tasks = [name for name, _, questions in self.parts for _ in questions]
        self.ids = [question.example.id for _, _, questions in self.parts for question in questions]
        self.prompts = [question.context_ids for _, _, questions in self.parts for question in questions]
        self._features: dict[int, Any] = {}

    def _store(self, task: str) -> Path:
        return self.run / "computed" / f"{self.split}-{task}.parquet"

    def features(self, block: int) -> Any:
        """What a code book reads before a block, of all questions."""
        from drllm.methods.codebook import reading_blocks
        from drllm.training.features import read_prompts

        if block not in self._features:
            self._features = read_prompts(self.routed, self.prompts, sorted({block, *reading_blocks(self.routed.n_layers)}), 512)
        return self._features[block]

    def routes(self, policy: Any) -> list[Any]:
        """One route a question."""
        from drllm.model.codebook import Codebook
        from drllm.scoring.deciding import decide_routes

        if isinstance(policy, Codebook):
            return [policy.routes[place] for place in policy.choose(self.features(policy.block))]
        return decide_routes(self.routed, policy, self.prompts, 512)

    def told(self, oracle: Any) -> list[Any]:
        """One route a question by an oracle, as `Oracle.answer` takes them, from verdicts that are known or computed now."""
        self.compute([route] * len(self.ids) for route in oracle.ranked)
        return [
            next((route for route in oracle.ranked if self.known[task, name, str(route)]), oracle.ranked[0])
            for task, name in zip(self.tasks, self.ids, strict=True)
        ]

    def compute(self, wanted: Iterable[Sequence[Any]]) -> None:
        """Verdicts of one route a question, for several such lists, where they are not known yet."""
        missing: dict[int, list[Any]] = defaultdict(list)
        for routes in wanted:
            for place, route in enumerate(routes):
                if (self.tasks[place], self.ids[place], str(route)) not in self.known and route not in missing[place]:
                    missing[place].append(route)
        offset = 0
        for name, scorer, questions in self.parts:
            asked = [(question, missing[offset + at]) for at, question in enumerate(questions) if missing[offset + at]]
            offset += len(questions)
            for start in range(0, len(asked), 64):
                chunk = asked[start : start + 64]
                scorer.load([question for question, _ in chunk])
                pairs = [(at, route) for at, (_, routes) in enumerate(chunk) for route in routes]
                for (at, route), verdict in zip(pairs, scorer.score(pairs), strict=True):
                    self.known[name, chunk[at][0].example.id, str(route)] = verdict.correct
                if start % 1024 == 0 or start + 64 >= len(asked):
                    self._keep(name)
                    print(f"{self.split} {name}: {min(start + 64, len(asked))} of {len(asked)} questions", flush=True)

    def _keep(self, task: str) -> None:
        rows = [(i, r, c) for (t, i, r), c in self.known.items() if t == task]
        columns = dict(zip(("id", "route", "correct"), map(list, zip(*rows, strict=True)), strict=True))
        self._store(task).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), self._store(task))

    def store(self, path: Path, routes: Sequence[Any], correct: Sequence[bool] | None = None, policy: str = "") -> None:
        """One method's verdicts, a row a question."""
        if correct is None:
            correct = [self.known[task, i, str(route)] for task, i, route in zip(self.tasks, self.ids, routes, strict=True)]
        columns = {
            "task": self.tasks, "id": self.ids, "correct": list(correct), "n_passes": [route.n_passes for route in routes],
            "route": [str(route) for route in routes],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, metadata={"policy": policy}), path)


def wanted_rows(setting: str, methods: str, seeds: int) -> Iterable[tuple[str, Row, int]]:
    """(name in the table, row, seed) of a setting."""
    for name, row in ROWS.items():
        narrow = setting in TOLD
        if (methods and name not in methods.split(",")) or (narrow and name not in LIGHT):
            continue
        for seed in range(seeds if row.seeds and not narrow else 1):
            yield name, row, seed


def folder_of(run: Path, setting: str, name: str, seed: int) -> Path:
    """Of a trained policy."""
    return run / "policies" / (SETTINGS[setting].policies or setting) / file_of(name, seed)


def file_of(name: str, seed: int) -> str:
    """A row's name for the file system."""
    return f"{name.replace('@', '_at_')}.{seed}"


def fit(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Train what is missing."""
    from drllm import train
    from drllm.files import write_json
    from drllm.methods.base import get_method
    from drllm.methods.material import Material

    for name, row, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        folder = folder_of(arguments.run, setting, name, seed)
        about_path = arguments.out / setting / "training" / f"{file_of(name, seed)}.json"
        learned, run = SETTINGS[setting].learned, arguments.searched if row.searched else arguments.run
        material = Material(routed, run, learned)
        made_of = {"key": material.key, "options": row.options}
        if (folder / "drllm_config.json").is_file() and about_path.is_file():
            before = json.loads(about_path.read_text())
            if {name: before.get(name) for name in made_of} == made_of:
                continue
        seeded = {"draw": seed} if row.method == "random_codebook" else {"seed": seed} if row.seeds else {}
        started = time.perf_counter()
        routed.policy = train(routed, run, row.method, get_method(row.method).config(**row.options, **seeded), tasks=learned)
        seconds = time.perf_counter() - started
        routed.save_pretrained(folder)
        routed.policy = None
        about = made_of | {"seconds": seconds, "tasks": list(learned), "seed": seed, "questions": len(material.prompts)}
        about_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(about_path, about)
        print(f"{setting}: {name} with seed {seed} trained in {seconds:.0f} s", flush=True)


def answer(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Verdicts of every trained policy and its controls on one split."""
    from drllm import Route
    from drllm.evaluation.run import control_routes
    from drllm.model.artifact import digest, load_policy
    from drllm.model.oracle import Oracle

    asked = Asked(routed, SETTINGS[setting].asked, arguments.split, arguments.run, arguments.data)
    place = arguments.out / setting / arguments.split
    full = Route.full(routed.n_layers)
    chosen: dict[str, list[Any]] = {"base.0": [full] * len(asked.ids)}
    for name, _, seed in wanted_rows(setting, arguments.methods, arguments.seeds):
        folder, file = folder_of(arguments.run, setting, name, seed), file_of(name, seed)
        if not (folder / "drllm_config.json").is_file() or ((place / f"{file}.parquet").is_file() and arguments.split == "test"):
            continue
        policy = load_policy(folder, routed)
        if isinstance(policy, Oracle):
            chosen[file] = asked.told(policy)
            continue
        if policy.evaluate_only:
            path, policy_digest = place / f"{file}.parquet", digest(folder)
            if not path.is_file() or pq.read_schema(path).metadata.get(b"policy") != policy_digest.encode():
                evaluate_only(asked, policy, path, policy_digest)
            continue
        chosen[file] = routes = asked.routes(policy)
        if name in SHUFFLED:
            over_tasks = control_routes("shuffled", routes, f"{seed}:all")
            chosen[f"shuffled-over-tasks-{file}"] = over_tasks
            chosen[f"shuffled-{file}"] = dealt_within(routes, asked.tasks, seed)
    asked.compute(chosen.values())
    for file, routes in chosen.items():
        asked.store(place / f"{file}.parquet", routes)


def dealt_within(routes: Sequence[Any], tasks: Sequence[str], seed: int) -> list[Any]:
    """A method's own routes, dealt to other prompts of the same task."""
    from drllm.evaluation.run import control_routes

    dealt, names = list(routes), np.array(tasks)
    for task in dict.fromkeys(tasks):
        places = np.flatnonzero(names == task).tolist()
        for place, route in zip(places, control_routes("shuffled", [routes[p] for p in places], f"{seed}:{task}"), strict=True):
            dealt[place] = route
    return dealt


def evaluate_only(asked: Asked, policy: Any, path: Path, policy_digest: str) -> None:
    """The answers of a policy that decides no route."""
    verdicts, depths = [], []
    for name, scorer, questions in asked.parts:
        for start in range(0, len(questions), 64):
            found, spent = scorer.score_policy(questions[start : start + 64], policy)
            verdicts += [verdict.correct for verdict in found]
            depths += spent
        print(f"{path.name} {name}: {len(questions)} questions", flush=True)
    asked.store(path, depths, verdicts, policy_digest)


def clock(routed: Any, arguments: argparse.Namespace, setting: str) -> None:
    """Seconds of one prompt's forward under each policy, router included, as a ratio to the base's just before and after it."""
    import torch

    from drllm.files import write_json
    from drllm.model.artifact import load_policy
    from drllm.model.partial import PartialPolicy, Step

    asked = Asked(routed, SETTINGS[setting].asked, arguments.split, arguments.run, arguments.data)
    rng = np.random.default_rng(0)
    prompts = [asked.prompts[place] for place in rng.choice(len(asked.prompts), arguments.prompts, replace=False)]

    @torch.no_grad()
    def seconds(policy: Any, prompt: Sequence[int]) -> float:
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        if isinstance(policy, PartialPolicy):
            with policy.installed(routed, Step.of(torch.ones_like(ids), torch.ones_like(ids))):
                routed.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        elif policy is None:
            routed.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        else:
            routed(ids, routes=policy, logits_to_keep=1)
        return time.perf_counter() - started

    for name, _, seed in wanted_rows(setting, arguments.methods, 1):
        folder = folder_of(arguments.run, setting, name, seed)
        if not (folder / "drllm_config.json").is_file() or name == "oracle":
            continue
        policy = load_policy(folder, routed)
        ratios = []
        for prompt in prompts:
            before, ours, after = seconds(None, prompt), seconds(policy, prompt), seconds(None, prompt)
            ratios.append(2 * ours / (before + after))
        middle = [float(np.median(rng.choice(ratios, len(ratios)))) for _ in range(2000)]
        low, high = np.quantile(middle, [0.025, 0.975])
        about = {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "prompts": len(ratios)}
        (arguments.out / setting / "clock").mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / setting / "clock" / f"{file_of(name, seed)}.json", about)
        print(f"{setting} {name}: {about['ratio']:.3f} ({low:.3f} to {high:.3f}) of the base's seconds", flush=True)


def main() -> None:
    """Run, time or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("job", choices=("run", "time", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--searched", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--methods", default="")
    parser.add_argument("--split", default="tune", choices=("tune", "test"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.job == "table":
        from methods_table import tables

        print("\n".join(tables(arguments.out, SETTINGS, TOLD)))
        return
    import torch

    from drllm import RoutedModel

    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model)
    for setting in arguments.settings.split(","):
        if arguments.job == "time":
            clock(routed, arguments, setting)
            continue
        if not SETTINGS[setting].policies and arguments.split == "tune":
            fit(routed, arguments, setting)
        answer(routed, arguments, setting)


if __name__ == "__main__":
    main()
