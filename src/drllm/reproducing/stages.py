"""The work behind tables and figures, declared: each stage names itself, says what it costs and which command does the same, and runs.

Costs are in plain forwards (PF): one forward of one question by the base, as `make bench-search` measures them. No torch until one runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from drllm.config import Resources, to_dict
from drllm.errors import ArtifactError, BudgetError, InputError
from drllm.evaluation.names import owner_of
from drllm.files import write_json
from drllm.methods.base import get_method
from drllm.reproducing.setup import Setup
from drllm.tasks import get_task

if TYPE_CHECKING:
    from drllm.model.policy import Policy
    from drllm.model.routed import RoutedModel

LEDGER_FILE = "stages.json"
PATH_COST = {"loglik": 0.31, "letter": 0.46, "boxed": 0.49, "number": 0.49}  # PF a searched path, docs/benchmarks.md
ANSWER_COST = {"loglik": 1.0, "letter": 1.5, "boxed": 2.0, "number": 1.5}  # PF an evaluated question
CHECKS = 4  # forwards in float32 that check the base's and the kept route
KNOB_POINTS = 12  # operating points that a budget tries on tune
DECODE_COST = 0.25  # PF a decoding step, of which a batch shares one
BATCHES = (1, 8, 32, 128)


class Stage(Protocol):
    """One piece of work; equal stages of two tables run once."""

    @property
    def name(self) -> str:
        """What progress and the dry run call it."""
        ...

    def forwards(self, setup: Setup) -> float:
        """What it costs, in PF."""
        ...

    def command(self, setup: Setup) -> str:
        """A shell command that does the same on the run folder; empty where only `drllm reproduce` does it."""
        ...

    def run(self, bench: Bench) -> Any:
        """Do it, or find it done; what it found."""
        ...


@dataclass
class Bench:
    """What stages work with: the model, the setup, and what was found so far."""

    routed: RoutedModel
    setup: Setup
    argv: Sequence[str] | None = None
    resources: Resources | None = None
    results: dict[Any, Any] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)  # policies that cannot keep their budget, and why

    @property
    def folder(self) -> Path:
        """Where tables, pictures and the ledger go."""
        return self.setup.out / "reproduce"

    def run(self, stage: Stage) -> Any:
        """The result of a stage, run once."""
        if stage not in self.results:
            self.results[stage] = stage.run(self)
        return self.results[stage]

    def policy(self, name: str) -> Policy:
        """A policy of the run."""
        from drllm.model import artifact

        return artifact.load_policy(self.setup.out / name, self.routed)

    def remembered(self, name: str, key: Any) -> Any:
        """What a stage of this name and key found before, else None."""
        entry = self._ledger().get(name)
        return entry["result"] if entry is not None and entry["key"] == _digest(key) else None

    def remember(self, name: str, key: Any, result: Any) -> None:
        """Keep what a stage found, in the ledger."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / LEDGER_FILE, self._ledger() | {name: {"key": _digest(key), "result": result}})

    def _ledger(self) -> dict[str, Any]:
        path = self.folder / LEDGER_FILE
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path} is not readable ({error}): delete it, finished searches and verdicts are found again") from None


@dataclass(frozen=True)
class Search:
    """The paper's tree search on one task."""

    task: str

    @property
    def name(self) -> str:
        return f"search {self.task}"

    def forwards(self, setup: Setup) -> float:
        """The base, the simulations, and as many routes of the control, shared prefixes once; then the checks."""
        reward = get_task(self.task).reward_named(setup.config.reward)
        return setup.n_searched(self.task) * ((1 + 2 * setup.config.n_simulations) * PATH_COST[reward] + CHECKS)

    def command(self, setup: Setup) -> str:
        config = setup.search_config(self.task)
        flags = ["--tasks", self.task, "--preset", config.preset, "--limit", str(config.limit)]
        flags += _unless_default("--n-simulations", config.n_simulations, 50)
        return setup.command("search", *flags, *_given(config))

    def run(self, bench: Bench) -> Any:
        from drllm.searching.runner import search

        setup = bench.setup
        config, data = setup.search_config(self.task), setup.data or None
        return search(bench.routed, [self.task], config, setup.out, data, bench.argv, resources=bench.resources)


@dataclass(frozen=True)
class Train:
    """One policy, by one method.

    Attributes:
        policy: its name in the run.
        options: of the method, as (name, value).
        tasks: learned from; none: all that were searched.
        forwards_each, forwards_more: PF a searched question, and in all, beside `knob`.
        knob: tune questions a task on which a budget's points are tried.
    """

    policy: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    tasks: tuple[str, ...] = ()
    forwards_each: float = 1.0
    forwards_more: float = 0.0
    knob: int = 0

    @property
    def name(self) -> str:
        return f"train {self.policy}"

    def forwards(self, setup: Setup) -> float:
        tasks = self.tasks or setup.tasks
        return self.forwards_each * sum(map(setup.n_searched, tasks)) + self.forwards_more + KNOB_POINTS * self.knob * len(tasks)

    def command(self, setup: Setup) -> str:
        flags = [part for name, value in self.options for part in _flag(name, value)]
        flags += _unless_default("--tasks", ",".join(self.tasks), "")
        return setup.command("train", "--method", self.method, "--name", self.policy, *flags)

    def run(self, bench: Bench) -> Any:
        """Train, unless this very policy stands in the run. One that cannot keep its budget is left out of every comparison, and named."""
        from drllm.methods.material import Material
        from drllm.model import artifact
        from drllm.pipeline import fit_policy

        out, config = bench.setup.out, get_method(self.method).config(**dict(self.options))
        searched = Material(bench.routed, out, self.tasks).key
        key = [bench.routed.fingerprint, str(bench.routed.model.dtype), self.method, to_dict(config), self.tasks, searched]
        found = bench.remembered(self.name, key) or {}
        is_there = (out / self.policy).is_dir() and artifact.digest(out / self.policy) == found.get("digest")
        if not is_there and "missed" not in found:
            try:
                fit_policy(bench.routed, out, self.method, config, bench.argv, tasks=self.tasks, name=self.policy)
                found = {"digest": artifact.digest(out / self.policy)}
            except BudgetError as error:
                found = {"missed": str(error)}
            bench.remember(self.name, key, found)
        if "missed" in found:
            bench.missed[self.policy] = found["missed"]


@dataclass(frozen=True)
class Turn:
    """Trained routers at one setting of the control knob (appendix C)."""

    control: float
    owner: str = "routers"

    @property
    def policy(self) -> str:
        """Its name in the run."""
        return f"{self.owner}@{self.control:+.2f}"

    @property
    def name(self) -> str:
        return f"knob at {self.control:+.2f}"

    def forwards(self, setup: Setup) -> float:
        return 0.0

    def command(self, setup: Setup) -> str:
        return ""

    def run(self, bench: Bench) -> Any:
        view = bench.policy(self.owner).with_control(self.control)
        before, bench.routed.policy = bench.routed.policy, view
        try:
            bench.routed.save_pretrained(bench.setup.out / self.policy)
        finally:
            bench.routed.policy = before
        return self.policy


@dataclass(frozen=True)
class Evaluate:
    """Methods on the same questions; the result is `evaluate`'s summary."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    split: str
    ablation: bool = False

    @property
    def name(self) -> str:
        return f"evaluate {len(self.methods)} on {', '.join(self.tasks)} ({self.split})"

    def forwards(self, setup: Setup) -> float:
        """At most: a task may have fewer questions, and another table may have asked the same."""
        rewards = [get_task(task).reward_named(setup.config.reward) for task in self.tasks]
        n_methods = len({"base", *self.methods})
        return n_methods * setup.n_compared(self.ablation) * sum(ANSWER_COST[reward] for reward in rewards)

    def command(self, setup: Setup) -> str:
        config = setup.evaluate_config(self.split, self.ablation)
        flags = ["--methods", ",".join(self.methods), "--tasks", ",".join(self.tasks), "--split", self.split, "--limit", str(config.limit)]
        return setup.command("evaluate", *flags, *_unless_default("--batch-size", config.batch_size, 16), *_given(config))

    def run(self, bench: Bench) -> Any:
        from drllm.evaluation.run import evaluate

        setup = bench.setup
        config, data = setup.evaluate_config(self.split, self.ablation), setup.data or None
        methods = [name for name in self.methods if (owner_of(name) or name) not in bench.missed]
        return evaluate(bench.routed, methods, self.tasks, setup.out, config, data, bench.argv)


@dataclass(frozen=True)
class Clock:
    """Seconds of generation by the base and by a policy, in turn; `kind` is throughput (by batch size) or latency (one long answer)."""

    kind: str
    policy: str = "routers"

    @property
    def name(self) -> str:
        return self.kind

    def n_tokens(self, setup: Setup) -> int:
        """Tokens of an answer."""
        return setup.scaled(setup.config.tokens if self.kind == "latency" else 64, 8)

    @property
    def rounds(self) -> int:
        """Of base and policy."""
        return 3 if self.kind == "latency" else 5

    def batches(self, setup: Setup) -> tuple[int, ...]:
        """Prompts generated together."""
        return tuple(size for size in BATCHES if size <= max(1, BATCHES[-1] * setup.config.scale)) if self.kind == "throughput" else (1,)

    def forwards(self, setup: Setup) -> float:
        sizes = self.batches(setup)
        return 2 * self.rounds * (sum(sizes) + len(sizes) * self.n_tokens(setup) * DECODE_COST)

    def command(self, setup: Setup) -> str:
        return ""

    def run(self, bench: Bench) -> Any:
        from drllm.model import artifact
        from drllm.reproducing.clock import latency, throughput

        setup, folder = bench.setup, bench.setup.out / self.policy
        key = [artifact.digest(folder), self.batches(setup), self.n_tokens(setup), self.rounds]
        if (found := bench.remembered(self.name, key)) is None:
            policy, prompts = bench.policy(self.policy), self._prompts(bench, max(self.batches(setup)))
            if self.kind == "latency":
                found = latency(bench.routed, policy, prompts[0], self.n_tokens(setup), self.rounds)
            else:
                found = throughput(bench.routed, policy, prompts, self.batches(setup), self.n_tokens(setup), self.rounds)
            bench.remember(self.name, key, found)
        return found

    def _prompts(self, bench: Bench, n: int) -> list[tuple[int, ...]]:
        """Prompts of fit questions of all lengths, again from the first where there are too few."""
        from drllm.methods.material import Material

        found = Material(bench.routed, bench.setup.out).prompts
        if not found:
            raise InputError(f"{bench.setup.out} holds no fit question to generate from")
        step = max(1, len(found) // n)
        some = found[::step][:n]
        return [some[place % len(some)] for place in range(n)]


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, f"{value:g}" if isinstance(value, float) else str(value)]


def _unless_default(flag: str, value: Any, default: Any) -> list[str]:
    return [] if value == default else [flag, str(value)]


def _given(config: Any) -> list[str]:
    """What a search and its evaluations share."""
    pairs = (("--reward", config.reward, "auto"), ("--seed", config.seed, 0), ("--max-step-tokens", config.max_step_tokens, 512))
    return [part for pair in pairs for part in _unless_default(*pair)]


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
