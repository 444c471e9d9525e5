"""The questions a comparison asks, and verdicts of any route on them: looked up in the dense matrix, or computed once and kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.core.files import write_bytes
from drllm.retrofitting.choice import constant_accuracy

LIMIT = 800  # questions of a task in the matrix, and of a test part that is made of others
Key = tuple[str, str]  # task and id
HELD_OUT = {"boolq": 400}  # passages are long


def select(data: Any, split: str, seen: set[str], limit: int = 0, scanned: Set[str] = frozenset()) -> list[Any]:
    """What is asked of a task.

    Tune: the questions of the matrix, else the first ones. Calibrate: all, or the first `limit`. Test: the test part, whole unless a limit
    is given; of a task that has none, the first tune questions behind those of the matrix; where there is no matrix, so that nothing was
    learned from the task, its fit and calibrate questions, without those by which a scan found the routes.
    """
    if split == "tune":
        return [example for example in data.select("tune", 0 if seen else limit or LIMIT) if not seen or example.id in seen]
    if split == "calibrate":
        return [example for example in data.select("calibrate", limit) if example.id not in seen]
    if data.examples["test"]:
        return data.select("test", limit)
    rest = data.select("tune") if seen else data.select("fit") + data.select("calibrate")
    unread = [example for example in rest if example.id not in seen | scanned]
    most = HELD_OUT.get(data.task.name, LIMIT)
    return unread[: min(limit or most, most)]


class Asked:
    """Questions of some tasks and one split, and verdicts of any route on them: looked up, or computed once and kept."""

    def __init__(self, routed: Any, of: Any, split: str, run: Path, data: str | None, limit: int = 0, scanned: Set[Key] = frozenset()):
        """An unfinished matrix is refused.

        Args:
            of: `asked`, the tasks; `apart`, every task that a policy may learn from, whose questions are left out of others; `reward`, how
                tasks that the matrix does not hold are judged.
            scanned: task and id of questions by which routes were found; left out of what test is made of where there is no test part.
        """
        from drllm.runs.manifest import path_manifests
        from drllm.tasks import drop_overlaps, load_task

        names = list(dict.fromkeys((*of.apart, *of.asked)))
        loaded = drop_overlaps({name: load_task(name, data) for name in names}, list(of.apart))
        matrices = {manifest.task: (folder, manifest) for folder, manifest in path_manifests(run).items()}
        self.routed, self.split, self.run, self.limit, self.reward, self.scanned = routed, split, run, limit, of.reward, scanned
        self.most_common: dict[str, float] = {}  # accuracy of one answer to all, where every question has the same choices
        self.without_test_part: list[str] = []
        self.parts: list[tuple[str, Any, list[Any]]] = []
        self.known: dict[tuple[str, str, str], bool] = {}  # by task, id and route
        self.made_of: dict[Key, str] = {}  # of each task and id: the digest of the question
        for name in of.asked:
            self._ask(loaded[name], matrices.get(name))
        self.tasks = [name for name, _, questions in self.parts for _ in questions]
        self.ids = [question.example.id for _, _, questions in self.parts for question in questions]
        self.prompts = [question.context_ids for _, _, questions in self.parts for question in questions]
        self._features: dict[int, Any] = {}

    def _ask(self, loaded: Any, matrix: Any) -> None:
        """Take the questions of a task, and what its matrix says of them."""
        from drllm.core.config import EvaluateConfig
        from drllm.methods.checked_records import checked_questions, checked_records, manifest_scorer
        from drllm.scoring.scorer import questions_digest, scorer_of

        name, seen = loaded.task.name, {}
        if matrix is not None:  # judged as in the matrix
            folder, manifest = matrix
            if manifest.dtype != str(self.routed.model.dtype):
                raise SystemExit(f"{folder} was evaluated in {manifest.dtype}, this is {self.routed.model.dtype}: give another --run")
            scorer: Any = manifest_scorer(self.routed, manifest)
            made_of = checked_questions(scorer, folder, manifest)
            seen = {record.id: record for record in checked_records(self.routed, folder, manifest).values() if record.split == "tune"}
            self.made_of |= {(name, i): questions_digest([made_of[i]]) for i in seen}
        else:
            scorer = scorer_of(self.routed, loaded.task, EvaluateConfig(reward=self.reward))
        if self.split == "tune":
            for record in seen.values():
                pairs = zip(record.routes, record.rewards, strict=True)
                self.known |= {(name, record.id, str(route)): earned > 0.5 for route, earned in pairs}
        examples = select(loaded, self.split, {*seen}, self.limit, {i for task, i in self.scanned if task == name})
        if self.split == "tune" and seen and len(examples) < len(seen):
            raise SystemExit(
                f"{loaded.source} lacks {len(seen) - len(examples)} tune questions of the matrix: give the data it was made of"
            )
        if self.split == "test" and not loaded.examples["test"]:
            self.without_test_part.append(name)
        if not math.isnan(share := constant_accuracy({name: examples})):
            self.most_common[name] = share
        questions = [scorer.question(loaded.task, example) for example in examples]
        self._read_store(name, scorer)
        for question in questions:
            of_this = questions_digest([question])
            if self.made_of.setdefault((name, question.example.id), of_this) != of_this:
                where = "the matrix" if question.example.id in seen else self._store(name, scorer)
                raise SystemExit(f"{where} was made of another question {question.example.id}: give the data of then, or another --run")
        self.parts.append((name, scorer, sorted(questions, key=lambda question: (question.n_tokens, question.example.id))))

    def _read_store(self, task: str, scorer: Any) -> None:
        """What was computed before, of these and other questions; `SystemExit` where it was in another float type."""
        path = self._store(task, scorer)
        if not path.is_file():
            return
        table = pq.read_table(path)
        dtype = (table.schema.metadata or {}).get(b"dtype", b"").decode()
        if dtype != str(self.routed.model.dtype):
            raise SystemExit(f"{path} holds verdicts in {dtype or 'an unknown float type'}, this is {self.routed.model.dtype}: other --run")
        kept = table.to_pydict()
        for i, route, correct, question in zip(*(kept[name] for name in ("id", "route", "correct", "question")), strict=True):
            self.known.setdefault((task, i, route), correct)
            self.made_of.setdefault((task, i), question)

    def _store(self, task: str, scorer: Any) -> Path:  # a letter may be wrong where the log-likelihoods are right: a file a reward
        return self.run / "computed" / self.routed.fingerprint / f"{self.split}-{task}.{scorer.reward}.parquet"

    def features(self, block: int) -> Any:
        """What a codebook reads before a block, of all questions."""
        from drllm.core.progress import Progress
        from drllm.methods.prompt_reading import reading_blocks
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
            return policy.routes_from(self.features(policy.reads))
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
                self._keep(name, scorer)
                print(f"{self.split} {name}: {min(start + 64, len(asked))} of {len(asked)} questions", flush=True)

    def _keep(self, task: str, scorer: Any) -> None:
        rows = [(i, r, c, self.made_of[t, i]) for (t, i, r), c in self.known.items() if t == task]
        columns = dict(zip(("id", "route", "correct", "question"), map(list, zip(*rows, strict=True)), strict=True))
        write_small(self._store(task, scorer), pa.table(columns, metadata={"dtype": str(self.routed.model.dtype)}))

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
    """As Parquet, packed tightly, since hundreds of such files are kept; atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=19)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sink.getvalue().to_pybytes())
