"""What is reproduced on what: the model's run folder, tasks, and how many questions at which scale. No torch."""

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from drllm.core.config import OF_COMPARISONS, EvaluateConfig, Resources, SearchConfig
from drllm.runs.layout import MANIFEST_FILE, RunFolder
from drllm.runs.manifest import read_manifest
from drllm_research.paper.config import ReproduceConfig
from drllm_research.paper.published import SAMPLED

ARITH = tuple(f"arith-{level}" for level in range(1, 6))
TASKS = ("arc_easy", "arc_challenge", *ARITH)  # learned from, unless --tasks says otherwise
OTHER_SAMPLED = {"arith": 100}  # a stand-in for DART-Math on models that cannot do mathematics: not the paper's, so not its numbers
SAMPLED_ELSE = 400
OF_SEARCHES = tuple(item.name for item in fields(Resources))
OF_SEARCH = ("n_simulations", "group_size")  # settings that are a search's own
SHARED = ("reward", "prompts", "reader", "seed", "max_step_tokens")  # settings of a search and of its evaluations
TOKENS_A_PROMPT = 64  # of a step, to say how many prompts may share it
FEWEST_SEARCHED, FEWEST_COMPARED = 12, 16  # a smaller sample trains nothing and tells nothing


@dataclass(frozen=True)
class Setup:
    model: str  # as given, an id, folder, file or alias
    tasks: tuple[str, ...]  # learned from
    out: Path  # the run folder
    data: str  # where questions are read, or empty
    config: ReproduceConfig
    placed: tuple[str, ...] = ()  # flags that say in which type and where the model runs
    resources: Resources = Resources()  # what searches and comparisons run on

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.out)

    def n_searched(self, task: str) -> int:
        """Questions of a task that are kept: as many as the paper keeps, times the scale."""
        if self.config.searched:
            return (there := self.search_config(task)).keep or there.limit
        full = SAMPLED.get(task) or OTHER_SAMPLED.get(task.partition("-")[0], SAMPLED_ELSE)
        return self.scaled(full, FEWEST_SEARCHED)

    def n_compared(self, ablation: bool = False) -> int:
        """Questions a task that policies are compared on, at most."""
        return self.scaled(self.config.ablated if ablation else self.config.compared, FEWEST_COMPARED)

    def scaled(self, full: int, fewest: int) -> int:
        return max(fewest, round(full * self.config.scale))

    def searched_in(self, task: str) -> str:
        """The type of the weights with which a task was searched; empty where it was not yet."""
        folder = self.run.search(task)
        return read_manifest(folder).dtype_name if (folder / MANIFEST_FILE).is_file() else ""

    def search_config(self, task: str) -> SearchConfig:
        """The paper's search (section 4) of one task, or the one that stands in the run."""
        if self.config.searched:
            return read_manifest(self.run.search(task)).search_config
        own: dict[str, Any] = {name: getattr(self.config, name) for name in OF_SEARCH}
        n, visits = self.n_searched(task), self.config.visits
        visited = {"limit": math.ceil(n * visits), "keep": n} if visits else {"limit": n}
        return SearchConfig(**visited, **own, **self._shared)

    @property
    def _shared(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in SHARED}

    def evaluate_config(self, split: str, ablation: bool, reward: str = "") -> EvaluateConfig:
        """An evaluation on one split; `reward` where that is not the setup's."""
        batch_size = max(16, self.config.max_step_tokens // TOKENS_A_PROMPT)
        given: dict[str, Any] = {"split": split, "limit": self.n_compared(ablation), "batch_size": batch_size, **self._shared}
        given["reward"] = reward or self.config.reward
        return EvaluateConfig(**given)

    @property
    def flags(self) -> list[str]:
        """Of `drllm reproduce`, beside the table's name."""
        given = ["--model", self.model, "--out", str(self.out), *self.placed, *changed_flags(self.resources, OF_SEARCHES)]
        given += [] if self.tasks == TASKS else ["--tasks", ",".join(self.tasks)]
        given += ["--data", self.data] if self.data else []
        return given + changed_flags(self.config, [item.name for item in fields(self.config) if item.name != "plain_ms"])

    def command(self, job: str, *flags: str) -> str:
        """A drllm command on this run, for a shell."""
        where = [*(["--model", self.model] if job == "search" else []), "--out", str(self.out), *self.placed]
        source = ["--data", self.data] if self.data and job in ("search", "evaluate") else []
        known = {"search": OF_SEARCHES, "evaluate": OF_COMPARISONS}.get(job, ())
        source += changed_flags(self.resources, known)
        return shlex.join(["drllm", job, *where, *source, *flags])


def changed_flags(config: Any, names: Iterable[str]) -> list[str]:
    """Those of the named settings that are not their defaults, as they are typed, in this order."""
    defaults = {item.name: item.default for item in fields(config)}
    return [part for name in names if (value := getattr(config, name)) != defaults[name] for part in as_flag(name, value)]


def as_flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)]
