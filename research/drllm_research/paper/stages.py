"""The work behind tables and figures, declared: each stage names itself, says what it costs and which command does the same, and runs.

Costs are in plain forwards (PF): one forward of one question by the base, as `make bench-search` measures them. No torch until one runs.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.config import EvaluateConfig, to_dict
from drllm.core.errors import ArtifactError, BudgetError, InputError, UnsupportedModelError
from drllm.runs.labels import Kept, kept_in
from drllm.runs.manifest import read_manifest
from drllm.runs.names import owner_of
from drllm.runs.records import read_records
from drllm.runs.stages import Stages, key_of
from drllm.searching.cost import searched_cost
from drllm.tasks import get_task, texts_digest
from drllm_research.paper.setup import OF_SEARCH, SHARED, Setup, as_flag, changed_flags
from drllm_research.rivals.evaluator import EVALUATORS, fit_evaluator, load_evaluator, method_named

if TYPE_CHECKING:
    from drllm.methods.training_data import TrainingData
    from drllm.model.routed import RoutedModel

DECODE_COST = 0.25  # PF a decoding step, of which a batch shares one
BATCHES = (1, 8, 32, 128)
ROUNDS = 8  # of base and policy in turn, each on other prompts
PROMPTS = 64  # tune questions a task that timings draw from
ROUTERS = "routers"
ANSWER_TOKENS = 64  # of a timed answer, at scale 1


class Stage(ABC):
    """One piece of work; equal stages of two tables run once."""

    name: str  # what progress and the dry run call it

    def forwards(self, setup: Setup) -> float:
        """What it costs, in PF."""
        return 0.0

    def command(self, setup: Setup) -> str:
        """A shell command that does the same on the run folder; empty where only `drllm reproduce` does it."""
        return ""

    @abstractmethod
    def run(self, bench: Bench) -> Any:
        """Do it, or find it done; what it found."""


@dataclass
class Bench:
    """What stages work with: the model, the setup, and what was found so far."""

    routed: RoutedModel
    setup: Setup
    argv: Sequence[str] | None = None
    results: dict[Any, Any] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)  # policies that cannot keep their budget, and why

    def __post_init__(self) -> None:
        self.stages = Stages(self.setup.run, ())  # what trainings and clocks gave, for another call

    @property
    def folder(self) -> Path:
        return self.setup.run.reproduction

    def there(self, methods: Sequence[str]) -> tuple[str, ...]:
        """Without the policies that were missed, and their blind baselines."""
        return tuple(name for name in methods if (owner_of(name) or name) not in self.missed)

    def run(self, stage: Stage) -> Any:
        """The result of a stage, run once."""
        if stage not in self.results:
            self.results[stage] = stage.run(self)
        return self.results[stage]

    def policy(self, name: str) -> Any:
        return self.routed.as_source(self.routed.load_policy(self.setup.run.policy(name)))

    def kept(self, task: str) -> Kept:
        """What the search of a task has kept, of what it has visited."""
        config = self.setup.search_config(task)
        if config.keep:
            return kept_in(self.setup.run.search(task), config)
        records = read_records(self.setup.run.search(task))
        return Kept([record for record in records if record.kept], records, True)

    @cached_property
    def training_data(self) -> TrainingData:
        """What was searched of the tasks that are learned from; whatever else the run holds stays out."""
        from drllm.methods.training_data import TrainingData

        return TrainingData(self.routed, self.setup.out, self.setup.tasks)


@dataclass(frozen=True)
class Search(Stage):
    task: str

    @property
    def name(self) -> str:
        return f"search {self.task}"

    def forwards(self, setup: Setup) -> float:
        """The base, the simulations, and as many random routes, shared prefixes once; then the checks."""
        reward = get_task(self.task).reward_named(setup.config.reward)
        return 0 if setup.config.searched else setup.search_config(self.task).limit * searched_cost(reward, setup.config.n_simulations)

    def command(self, setup: Setup) -> str:
        config = setup.search_config(self.task)
        flags = ["--tasks", self.task, "--limit", str(config.limit)]
        if (found := setup.searched_in(self.task)) and found not in setup.placed:  # in another type now the search would be refused
            flags += ["--dtype", found]
        return setup.command("search", *flags, *changed_flags(config, ("keep", "verify", "control", *OF_SEARCH, *SHARED)))

    def run(self, bench: Bench) -> Any:
        from drllm.scoring.scorer import asked_how, scorer_of
        from drllm.searching.runner import search

        setup = bench.setup
        config, given = setup.search_config(self.task), (setup.out, setup.data or None, bench.argv)
        if setup.config.searched:  # and it was there, or the line before had refused
            there, asking = read_manifest(setup.run.search(self.task)), setup.evaluate_config("tune", ablation=False)
            asked = (there.prompts, there.reader), asked_how(scorer_of(bench.routed, get_task(self.task), asking))
            before, now = (" and ".join(filter(None, how)) or "log-likelihoods" for how in asked)
            if before != now:
                raise ArtifactError(f"{self.task} was searched with {before}, this compares with {now}: ask as was searched")
            return None
        with bench.stages.doing(self.name):
            return search(bench.routed, [self.task], config, *given, resources=setup.resources, finished_in_any_type=True)


@dataclass(frozen=True)
class Train(Stage):
    policy: str  # its name in the run
    method: str
    options: tuple[tuple[str, Any], ...] = ()  # of the method, as (name, value)
    tasks: tuple[str, ...] = ()  # learned from; none: those of the setup
    forwards_each: float = 1.0  # PF a searched question
    forwards_more: float = 0.0  # PF in all, beside those and the tune questions'
    n_tune: int = 0  # tune questions a task on which a budget is tried
    points: int = 0  # that a budget tries

    @property
    def name(self) -> str:
        return f"train {self.policy}"

    def forwards(self, setup: Setup) -> float:
        tasks = self.tasks or setup.tasks
        searched = self.forwards_each * sum(map(setup.n_searched, tasks))
        return searched + self.forwards_more + self.points * self.n_tune * len(tasks)

    def command(self, setup: Setup) -> str:
        if self.method in EVALUATORS:
            return ""
        flags = [part for name, value in self.options for part in as_flag(name, value)]
        tasks = ",".join(self.tasks or setup.tasks)
        return setup.command("train", "--method", self.method, "--name", self.policy, "--tasks", tasks, *flags)

    def run(self, bench: Bench) -> Any:
        """Train, unless this very policy stands in the run.

        One that cannot keep its budget, or is not for this family, is left out of every comparison, and named.
        """
        from drllm.evaluation.fit import fit_policy
        from drllm.methods.training_data import TrainingData
        from drllm.policies.saved_config import CONFIG_FILE

        tasks, folder = self.tasks or bench.setup.tasks, bench.setup.run.policy(self.policy)
        config, training_data = method_named(self.method).config(**dict(self.options)), TrainingData(bench.routed, bench.setup.out, tasks)
        key = [bench.routed.fingerprint, str(bench.routed.model.dtype), self.method, to_dict(config), tasks, training_data.key]
        if self.n_tune:
            key.append([texts_digest(question.example for question in ask.questions) for ask in training_data.tune(self.n_tune)])
        if (folder / CONFIG_FILE).is_file() and not bench.stages.has_begun(self.name):
            raise ArtifactError(f"{folder} holds a policy that no reproduction made here: give another --out, or move it away")

        def fit() -> dict[str, str]:
            try:
                if self.method in EVALUATORS:
                    fit_evaluator(bench.routed, bench.setup.out, self.method, config, bench.argv, tasks, folder)
                else:
                    fit_policy(bench.routed, bench.setup.out, self.method, config, bench.argv, tasks=tasks, name=self.policy)
            except (BudgetError, UnsupportedModelError) as error:
                return {"missed": str(error)}
            return {}

        found = bench.stages.once(self.name, key_of(key), [folder], fit)
        if "missed" in found:
            bench.missed[self.policy] = found["missed"]
        return self.policy


@dataclass(frozen=True)
class Evaluate(Stage):
    """Methods on the same questions; the result is `evaluate`'s summary."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    split: str
    ablation: bool = False
    reward: str = ""  # none: the setup's

    @property
    def name(self) -> str:
        return f"evaluate {len(self.methods)} on {', '.join(self.tasks)} ({self.split})"

    def config(self, setup: Setup) -> EvaluateConfig:
        return setup.evaluate_config(self.split, self.ablation, self.reward)

    def forwards(self, setup: Setup) -> float:
        """At most: a task may have fewer questions, and another table may have asked the same. A policy first decides, then answers."""
        n_forwards = 1 + 2 * len({*self.methods} - {"base"})
        return n_forwards * setup.n_compared(self.ablation) * len(self.tasks)

    def command(self, setup: Setup) -> str:
        config = self.config(setup)
        methods = [name for name in self.methods if name not in EVALUATORS]
        flags = ["--methods", ",".join(methods), "--tasks", ",".join(self.tasks), "--split", self.split, "--limit", str(config.limit)]
        return setup.command("evaluate", *flags, *changed_flags(config, ("batch_size", *SHARED)))

    def run(self, bench: Bench) -> Any:
        from drllm.evaluation.run import evaluate

        setup = bench.setup
        methods = bench.there(self.methods)
        given = (methods, self.tasks, setup.out, self.config(setup), setup.data or None, bench.argv, setup.resources)
        with bench.stages.doing(self.name):
            evaluators = {name: load_evaluator(setup.run.policy(name), bench.routed) for name in methods if name in EVALUATORS}
            return evaluate(bench.routed, *given, evaluators)


@dataclass(frozen=True)
class Clock(Stage):
    """Seconds of generation by the base and by routers, in turn; `name` is throughput (by batch size) or latency (one long answer)."""

    name: str

    def n_tokens(self, setup: Setup) -> int:
        return setup.scaled(setup.config.tokens if self.name == "latency" else ANSWER_TOKENS, 8)

    def batches(self, setup: Setup) -> tuple[int, ...]:
        """Prompts generated together."""
        return tuple(size for size in BATCHES if size <= max(1, BATCHES[-1] * setup.config.scale)) if self.name == "throughput" else (1,)

    def forwards(self, setup: Setup) -> float:
        sizes = self.batches(setup)
        return 2 * ROUNDS * (sum(sizes) + len(sizes) * self.n_tokens(setup) * DECODE_COST)

    def run(self, bench: Bench) -> Any:
        """Measure, unless the same was measured on this machine with as many threads."""
        import torch

        from drllm.evaluation.clock import latency, throughput
        from drllm.policies.saved_config import policy_digest
        from drllm.runs.provenance import hardware

        setup, routed = bench.setup, bench.routed
        where = [hardware(), str(routed.device), torch.get_num_threads(), routed.fingerprint, str(routed.model.dtype)]
        prompts = self._prompts(bench)
        key = [where, policy_digest(setup.run.policy(ROUTERS)), self.batches(setup), self.n_tokens(setup), ROUNDS, prompts]
        measure: Any = latency if self.name == "latency" else throughput
        given = (prompts, self.batches(setup), self.n_tokens(setup), ROUNDS)
        return bench.stages.once(self.name, key_of(key), [], lambda: measure(routed, bench.policy(ROUTERS), *given))

    def _prompts(self, bench: Bench) -> list[list[int]]:
        """Tune questions of every task, which no router learned from, in an order drawn once."""
        found = [list(question.context_ids) for ask in bench.training_data.tune(PROMPTS) for question in ask.questions]
        if not found:
            raise InputError(f"{', '.join(bench.setup.tasks)} have no tune question to generate from: give data with a validation part")
        random.Random(bench.setup.config.seed).shuffle(found)
        return found
