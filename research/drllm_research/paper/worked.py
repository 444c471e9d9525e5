"""What table 4 shows of problems that are worked out in writing, GSM8K and AIME: asked and graded by lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drllm.core.config import EvaluateConfig
from drllm.core.errors import InputError
from drllm.core.text import percent, with_interval
from drllm.evaluation.harness import TASKS_FOLDER
from drllm.reporting.parts import Part, Table
from drllm.runs.names import BASE
from drllm.runs.summary import evenly
from drllm.tasks import get_task
from drllm_research.paper.setup import Setup, changed_flags
from drllm_research.paper.stages import DECODE_COST, ROUTERS, Bench, Stage

# Of GSM8K the harness reads an answer twice, as our two readers do: the number behind "####", or the last number of any form.
STRICT, FLEXIBLE = "strict-match", "flexible-extract"
READ_TWICE = "gsm8k"
USUAL_TOKENS = 200  # of a worked answer, to say what it costs


def worked_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some tasks that the harness asks with room to reason; `InputError`, before anything is searched, where it is missing."""
    found = tuple(name for name in tasks if get_task(name).kind == "math" and (TASKS_FOLDER / f"drllm_{name}.yaml").is_file())
    if found and importlib.util.find_spec("lm_eval") is None:
        advice = "pip install '.[eval]' in a clone of drllm, or leave them out of --outside"
        raise InputError(f"table 4 asks {', '.join(found)} by lm-evaluation-harness, which is not installed: {advice}")
    return found


@dataclass(frozen=True)
class Worked(Stage):
    """The base and the routers on tasks of the harness; the result is `evaluate_harness`'s summary."""

    tasks: tuple[str, ...]
    split: str

    @property
    def name(self) -> str:
        return f"evaluate 2 on {', '.join(self.tasks)} by the harness"

    def given(self, setup: Setup) -> list[str]:
        """The harness's own options: all of them its defaults, but for a limit."""
        return ["--gen_kwargs", f"max_gen_toks={setup.config.answer_tokens}"]

    def forwards(self, setup: Setup) -> float:
        """Answers are decoded some together."""
        tokens = min(setup.config.answer_tokens, USUAL_TOKENS)
        return 2 * self.config(setup).limit * len(self.tasks) * (1 + tokens * DECODE_COST)

    def config(self, setup: Setup) -> EvaluateConfig:
        config = setup.evaluate_config(self.split, False)
        return replace(config, limit=min(config.limit, setup.config.worked or config.limit))

    def command(self, setup: Setup) -> str:
        config, tasks = self.config(setup), ",".join(f"drllm_{name}" for name in self.tasks)
        flags = ["--harness", "--methods", f"{BASE},{ROUTERS}", "--tasks", tasks, "--split", config.split]
        flags += ["--limit", str(config.limit), *changed_flags(config, ("batch_size",)), f"--harness-args={' '.join(self.given(setup))}"]
        return setup.command("evaluate", *flags)

    def run(self, bench: Bench) -> Any:
        from drllm.evaluation.harness.run import evaluate_harness

        setup = bench.setup
        tasks, source = [f"drllm_{name}" for name in self.tasks], setup.data or None
        return evaluate_harness(bench.routed, [BASE, ROUTERS], tasks, setup.out, self.config(setup), source, self.given(setup), bench.argv)


Scored = dict[str, list[float]]  # task -> what each question scored
Logged = Mapping[tuple[str, str, str], dict[str, float]]  # (task, filter, metric) -> document -> value


def logged(bench: Bench, stage: Worked) -> tuple[Logged, Logged]:
    from drllm.evaluation.harness.compare import read_scores
    from drllm.evaluation.harness.run import harness_folder

    setup = bench.setup
    bench.run(stage)
    folder = harness_folder(setup.out, [f"drllm_{name}" for name in stage.tasks], stage.config(setup), stage.given(setup))
    return read_scores(folder / ROUTERS), read_scores(folder / BASE)


def scored(logs: tuple[Logged, Logged], tasks: Sequence[str], reader: str) -> tuple[Scored, Scored]:
    """What the routers and the base scored on each task, question by question; `reader` where the harness reads an answer twice."""
    ours, base = ({name: _of(scores, name, reader) for name in tasks} for scores in logs)
    return {name: list(ours[name].values()) for name in ours}, {name: [base[name][document] for document in ours[name]] for name in ours}


def _of(scores: Logged, name: str, reader: str) -> dict[str, float]:
    kinds = [kind for task, kind, metric in scores if (task, metric) == (f"drllm_{name}", "exact_match")]
    return scores[f"drllm_{name}", reader if reader in kinds else kinds[0], "exact_match"]


def worked_answers(bench: Bench, stage: Worked) -> list[Part]:
    rows = []
    for row in bench.run(stage)["rows"]:
        if row["metric"] == "exact_match" and row["task"].startswith("drllm_"):
            name = row["task"].removeprefix("drllm_") + ("" if row["filter"] == "none" else f", {row['filter']}")
            change = with_interval(*(row[key] for key in ("difference", "difference_low", "difference_high")))
            rows.append((name, f"{row['n']:,}", percent(row["reference"]), percent(row["value"]), change))
    if READ_TWICE in stage.tasks:  # form is the strict gain less the flexible one, question by question
        both = [scored(logged(bench, stage), (READ_TWICE,), reader) for reader in (STRICT, FLEXIBLE)]
        strict, flexible = (np.subtract(ours[READ_TWICE], base[READ_TWICE]) for ours, base in both)
        rows.append((f"{READ_TWICE}, form", "", "", "", with_interval(*evenly([strict - flexible])[1])))
    header = ("task", "questions", "base, %", "routers, %", "difference, points")
    caption = f"In writing, as lm-evaluation-harness asks and grades, at most {bench.setup.config.answer_tokens:,} new tokens an answer."
    return [Table(header, tuple(rows), caption)]
