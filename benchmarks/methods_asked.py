"""The questions a comparison asks, and verdicts of any route on them: looked up in the dense matrix, or computed once and kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 800  # questions of a task in the matrix, and of a test part that is made of others
HELD_OUT = {"boolq": 400}  # passages are long


def select(data: Any, split: str, seen: set[str], limit: int = 0) -> list[Any]:
    """What is asked of a task.

    Tune: the questions of the matrix, else the first ones. Test: the test part, whole unless a limit is given; of a task that has none, the
    first tune questions behind those of the matrix; where there is no matrix, so that nothing was learned from the task, its fit and
    calibrate questions.
    """
    if split == "tune":
        return [example for example in data.select("tune", 0 if seen else LIMIT) if not seen or example.id in seen]
    if data.examples["test"]:
        return data.select("test", limit)
    rest = data.select("tune") if seen else data.select("fit") + data.select("calibrate")
    unread = [example for example in rest if example.id not in seen]
    most = HELD_OUT.get(data.task.name, LIMIT)
    return unread[: min(limit or most, most)]


def most_common(examples: Sequence[Any]) -> float | None:
    """How often the most common answer is right, of questions that all have the same choices (yes or no); else None."""
    if len({example.choices for example in examples}) != 1:
        return None
    return Counter(example.answer for example in examples).most_common(1)[0][1] / len(examples)


class Asked:
    """Questions of some tasks and one split, and verdicts of any route on them: looked up, or computed once and kept."""

    def __init__(
        self,
        routed: Any,
        learned: Sequence[str],
        tasks: Sequence[str],
        split: str,
        run: Path,
        data: str | None,
        limit: int = 0,
        reward: Any = "auto",
    ):
        """An unfinished matrix is refused.

        Args:
            learned: every task that a policy may learn from; their questions are left out of others.
            reward: how tasks that the matrix does not hold are judged.
        """
        from drllm.core.config import EvaluateConfig
        from drllm.methods.checked_records import joined_records, lists_by_task, manifest_scorer
        from drllm.runs.manifest import path_manifests
        from drllm.scoring.scorer import scorer_of
        from drllm.tasks import drop_overlaps, load_task

        names = list(dict.fromkeys((*learned, *tasks)))
        loaded = drop_overlaps({name: load_task(name, data) for name in names}, list(learned))
        lists = lists_by_task(path_manifests(run))
        self.routed, self.split, self.run = routed, split, run
        self.most_common: dict[str, float] = {}
        self.parts: list[tuple[str, Any, list[Any]]] = []
        self.known: dict[tuple[str, str, str], bool] = {}
        for name in tasks:
            if name in lists:  # judged as in the matrix
                scorer: Any = manifest_scorer(routed, lists[name][0][1])
            else:
                scorer = scorer_of(routed, loaded[name].task, EvaluateConfig(reward=reward))
            joined = joined_records(routed, lists[name]) if name in lists else {}
            records = [record for record in joined.values() if record.split == "tune"]
            seen = {record.id for record in records}
            if split == "tune":
                for record in records:
                    for route, earned in zip(record.routes, record.rewards, strict=True):
                        self.known[name, record.id, str(route)] = earned > 0.5
            examples = select(loaded[name], split, seen, limit)
            if (share := most_common(examples)) is not None:
                self.most_common[name] = share
            questions = [scorer.question(loaded[name].task, example) for example in examples]
            self.parts.append((name, scorer, sorted(questions, key=lambda question: (question.n_tokens, question.example.id))))
            if self._store(name, scorer).is_file():
                kept = pq.read_table(self._store(name, scorer)).to_pydict()
                self.known |= {(name, i, r): c for i, r, c in zip(kept["id"], kept["route"], kept["correct"], strict=True)}
        self.tasks = [name for name, _, questions in self.parts for _ in questions]
        self.ids = [question.example.id for _, _, questions in self.parts for question in questions]
        self.prompts = [question.context_ids for _, _, questions in self.parts for question in questions]
        self._features: dict[int, Any] = {}

    def _store(self, task: str, scorer: Any) -> Path:  # a letter may be wrong where the log-likelihoods are right: a file a reward
        return self.run / "computed" / self.routed.fingerprint / f"{self.split}-{task}.{scorer.reward}.parquet"

    def features(self, block: int) -> Any:
        """What a codebook reads before a block, of all questions."""
        from drllm.core.progress import Progress
        from drllm.methods.codebook import reading_blocks
        from drllm.scoring.route_prediction import read_prompts

        if block not in self._features:
            with Progress("read prompts", len(self.prompts)) as progress:
                blocks = sorted({block, *reading_blocks(self.routed.n_layers)})
                self._features = read_prompts(self.routed, self.prompts, blocks, 512, progress.advance)
        return self._features[block]

    def routes(self, policy: Any) -> list[Any]:
        """One route a question."""
        from drllm.scoring.route_prediction import decide_routes

        if policy.reads is not None:
            return policy.routes_for(self.features(policy.reads))
        return decide_routes(self.routed, [policy], self.prompts, 512)[0]

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
                    self._keep(name, scorer)
                    print(f"{self.split} {name}: {min(start + 64, len(asked))} of {len(asked)} questions", flush=True)

    def _keep(self, task: str, scorer: Any) -> None:
        rows = [(i, r, c) for (t, i, r), c in self.known.items() if t == task]
        columns = dict(zip(("id", "route", "correct"), map(list, zip(*rows, strict=True)), strict=True))
        write_small(self._store(task, scorer), pa.table(columns))

    def store(self, path: Path, routes: Sequence[Any], correct: Sequence[bool] | None = None, policy: str = "") -> None:
        """One method's verdicts, a row a question; the questions themselves stand once beside the folder, for all methods."""
        if correct is None:
            correct = [self.known[task, i, str(route)] for task, i, route in zip(self.tasks, self.ids, routes, strict=True)]
        questions = pa.table({"task": self.tasks, "id": self.ids})
        if not questions_path(path).is_file():
            write_small(questions_path(path), questions)
        if not pq.read_table(questions_path(path)).equals(questions):
            raise SystemExit(f"{questions_path(path)} holds other questions: those verdicts cannot be compared, give another --out")
        columns = {
            "correct": list(correct),
            "n_passes": [route.n_passes for route in routes],
            "route": [str(route) for route in routes],
        }
        write_small(path, pa.table(columns, metadata={"policy": policy}))


def questions_path(verdicts: Path) -> Path:
    """The questions, as task and id, that a setting's verdicts on one split are of, in their order."""
    return verdicts.parent.parent / f"questions-{verdicts.parent.name}.parquet"


def write_small(path: Path, table: pa.Table) -> None:
    """As Parquet, packed tightly: hundreds of such files are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=19)
