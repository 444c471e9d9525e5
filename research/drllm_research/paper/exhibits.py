"""What a table or figure of the paper is: the stages behind it, and how it is shown; and what all of them share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from drllm.core.text import percent
from drllm.reporting.parts import Part
from drllm.runs.load import read_epochs
from drllm.runs.names import BASE
from drllm_research.paper.setup import Setup
from drllm_research.paper.stages import ROUTERS, Bench, Evaluate, Search, Stage, Train


@dataclass(frozen=True)
class Exhibit:
    name: str
    title: str  # what it shows, and its number in the paper
    stages: Callable[[Setup], list[Stage]]  # what it needs, in order
    show: Callable[[Bench], list[Part]]  # what it says, once they ran


def searches(setup: Setup) -> list[Stage]:
    return [Search(task) for task in setup.tasks]


def train_routers(setup: Setup, policy: str = ROUTERS, **options: Any) -> Train:
    """Routers by the paper's recipe, but for `options`."""
    given = {"preset": "paper"} | options | ({"seed": setup.config.seed} if setup.config.seed else {})
    # Variants learn from the states that the routers' training has saved, but for other windows.
    is_new = policy == ROUTERS or "n_windows" in options
    return Train(policy, "routers", tuple(given.items()), forwards_each=float(is_new))


def after_routers(*stages: Callable[[Setup], Stage]) -> Callable[[Setup], list[Stage]]:
    """The search, the routers, and then these stages."""
    return lambda setup: [*searches(setup), train_routers(setup), *(stage(setup) for stage in stages)]


def in_domain(setup: Setup) -> Evaluate:
    """Table 3's comparison, which other exhibits read too: routers and their blind baselines where they were trained."""
    return Evaluate((BASE, ROUTERS, "random", "shuffled", *setup.config.beside), setup.tasks, setup.config.split)


def ablation(setup: Setup, policies: Sequence[str]) -> Evaluate:
    """Variants of the routers, always on tune."""
    return Evaluate((BASE, *policies), setup.tasks, "tune", ablation=True)


def last_scores(bench: Bench, policy: str) -> tuple[dict[str, str], bool]:
    """A policy's scores after its last epoch, in percent, empty where there is none; whether they are of held-back questions."""
    metrics = read_epochs(bench.setup.run.training(policy))[-1]
    held_back = {name.removeprefix("val_"): value for name, value in metrics.items() if name.startswith("val_")}
    shown = {name: "" if value is None else percent(value) for name, value in (held_back or metrics).items()}
    return shown, bool(held_back)
