"""The search taken apart (simulations, lambda, repeated segments, the reader), and teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drllm.core.config import SearchConfig
from drllm.core.text import percent, with_interval
from drllm.reporting.parts import Bullets, Part, Table
from drllm.runs.layout import RunFolder
from drllm.runs.records import RouteRecord, read_records
from drllm.runs.summary import mean_over_tasks
from drllm.searching.cost import searched_cost
from drllm.tasks import get_task
from drllm_research.paper.claims import weighed
from drllm_research.paper.exhibits import Exhibit
from drllm_research.paper.figures import EACH_F1, MACRO_F1, Sweep, after_training
from drllm_research.paper.setup import OF_SEARCH, SHARED, Setup, changed_flags
from drllm_research.paper.stages import ROUTERS, Bench, Stage

PAPER = "the paper's"
FACTORS: dict[str, dict[str, Any]] = {  # what differs from the paper's search
    PAPER: {},
    "25 simulations": {"n_simulations": 25},
    "200 simulations": {"n_simulations": 200},
    "lambda 0": {"length_penalty": 0.0},
    "lambda 1": {"length_penalty": 1.0},
    "lambda 6": {"length_penalty": 6.0},
    **{f"segments of up to {n} run twice": {"max_loop_span": n} for n in (2, 3, 4)},
    "the lenient reader": {"reader": "lenient"},
}
CHANGED = ("n_simulations", "length_penalty", "max_loop_span", "reader", "control", "verify")
FEWEST = 8  # questions a task
SOLVED = "questions that some path answers, over the paper's search, points"
CAPTION = (
    "The same fit questions, searched again with one thing changed; nothing stops at a number kept. Solved: some path, the base's among "
    "them, is right. Intervals are paired, tasks weigh the same."
)


@dataclass(frozen=True)
class SearchWith(Stage):
    """The paper's search of one task with something changed, in a folder of its own."""

    task: str
    factor: str

    @property
    def name(self) -> str:
        return f"search {self.task}, {self.factor}"

    def config(self, setup: Setup) -> SearchConfig:
        limit = setup.scaled(setup.config.ablated, FEWEST)
        return replace(setup.search_config(self.task), keep=0, limit=limit, control=False, verify=False, **FACTORS[self.factor])

    def out(self, setup: Setup) -> Path:
        return setup.run.reproduction / "searches" / self.factor.replace(" ", "-").replace("'", "")

    def forwards(self, setup: Setup) -> float:
        config, reward = self.config(setup), get_task(self.task).reward_named(setup.config.reward)
        return config.limit * searched_cost(reward, config.n_simulations, control=False, verify=False)

    def command(self, setup: Setup) -> str:
        config = self.config(setup)
        flags = ["--tasks", self.task, "--limit", str(config.limit)]
        flags += changed_flags(config, dict.fromkeys((*OF_SEARCH, *SHARED, *CHANGED)))
        return replace(setup, out=self.out(setup)).command("search", *flags)

    def run(self, bench: Bench) -> list[RouteRecord]:
        from drllm.searching.runner import search

        setup, out = bench.setup, self.out(bench.setup)
        search(bench.routed, [self.task], self.config(setup), out, setup.data or None, bench.argv, resources=setup.resources)
        return read_records(RunFolder(out).search(self.task))


def _factors(setup: Setup) -> list[str]:
    """The reader is a factor where there are two."""
    read_twice = any(get_task(task).reward_named(setup.config.reward) in ("letter", "boxed") for task in setup.tasks)
    return [name for name in FACTORS if read_twice or "reader" not in FACTORS[name]]


def _show(bench: Bench) -> list[Part]:
    found = {name: [bench.run(SearchWith(task, name)) for task in bench.setup.tasks] for name in _factors(bench.setup)}
    return [Table(("search", "solved, %", SOLVED, "mended, %", "paths judged", "passes kept"), tuple(_rows(found)), CAPTION)]


def _rows(found: dict[str, list[list[RouteRecord]]]) -> Sequence[tuple[str, ...]]:
    solved = {name: [[record.kept for record in records] for records in tasks] for name, tasks in found.items()}
    rows = []
    for name, tasks in found.items():
        records = [record for one in tasks for record in one]
        kept = [record.chosen.n_passes for record in records if record.chosen is not None]
        wrong = max(1, sum(not record.base_correct for record in records))
        gain = "" if name == PAPER else with_interval(*mean_over_tasks(solved[name], solved[PAPER])[:3])
        judged = sum(len(record.routes) for record in records) / len(records)
        shares = percent(len(kept) / len(records)), gain, percent(sum(record.improved for record in records) / wrong)
        rows.append((name, *shares, f"{judged:.1f}", f"{sum(kept) / len(kept):.2f}" if kept else ""))
    return rows


FORCING = Sweep(
    "states learned from", {ROUTERS: {}, "routers_unforced": {"teacher_forcing": False}}, ("the label's path (paper)", "the base's path")
)


def _forced(bench: Bench) -> list[Part]:
    text = "states along the label's path teach more than the base's"
    return [FORCING.table(bench, MACRO_F1 | EACH_F1), Bullets((weighed(text, FORCING.against_others(bench)),))]


ABLATIONS = (
    Exhibit("search", "The search taken apart", lambda s: [SearchWith(task, name) for name in _factors(s) for task in s.tasks], _show),
    Exhibit("forcing", "Teacher forcing", after_training(FORCING), _forced),
)
