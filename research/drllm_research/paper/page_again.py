r"""The page of a kept reproduction again, from its records and verdicts: no model, no policy and no verdict is made.

    cp -r results/paper-smollm2-135m-q4 runs/paper
    python -m drllm_research.paper.page_again --model smollm2-135m-q4 --out runs/paper --ablated 100 --threads 1 \
        --keep results/paper-smollm2-135m-q4/page

What a reproduction printed can change with the words and the tests of the code that prints it; what it measured does not. Kept of it are
`search/` and `evaluate/`, the ledger `stages.json` with its times, `scores.json` (the routers' scores after their last epoch, in percent)
and the picture of their probabilities: the policies themselves are not.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from drllm.core.config import Resources
from drllm.reporting.chart import Chart
from drllm.runs.answers import read_answers
from drllm.runs.manifest import search_manifests
from drllm.runs.names import BASE
from drllm.runs.summary import Summary, rows_of
from drllm_research.paper import charts, figures, run, tables
from drllm_research.paper.config import ReproduceConfig
from drllm_research.paper.setup import TASKS, Setup
from drllm_research.paper.stages import Bench, Clock, Evaluate, Stage

KEPT = {".md", ".png", ".csv"}


KEPT_FILE = "stages.json"  # what the clock found, beside the run's other files


@dataclass
class Kept(Bench):
    """A bench on which everything has been done."""

    results: dict[Any, Any] = field(default_factory=dict)

    def run(self, stage: Stage) -> Any:
        """What a stage left; nothing of those whose result no page reads."""
        if stage not in self.results:
            found: Any = None
            if isinstance(stage, Evaluate):
                found = self._summary(stage)
            elif isinstance(stage, Clock):
                found = json.loads((self.setup.out / KEPT_FILE).read_text())[stage.name]["result"]
            self.results[stage] = found
        return self.results[stage]

    def _summary(self, stage: Evaluate) -> Summary:
        """As `evaluate` writes it."""
        config = stage.config(self.setup)
        folder = self.setup.out / "evaluate" / config.folder
        n_layers = json.loads((folder / "summary.json").read_text())["rows"][0]["n_layers"]
        files = read_answers(folder / "answers.parquet")
        methods = [method for method in dict.fromkeys((BASE, *stage.methods)) if any(name == method for name, _ in files)]
        rows = rows_of(methods, stage.tasks, files, n_layers, config)
        return Summary(split=config.folder, reference=BASE, model=self.setup.model, tasks=list(stage.tasks), rows=rows)


def kept_scores(path: Path) -> Any:
    """As `exhibits.last_scores`, of what was kept."""
    kept: Mapping[str, Any] = json.loads(path.read_text())
    return lambda bench, policy: (kept["scores"][policy], kept["held_back"])


def kept_probabilities(path: Path, n: int, n_layers: int) -> Any:
    """Figure 7's histogram from its shares."""

    def drawn(bench: Bench) -> Chart:
        series: dict[str, list[float]] = {}
        for row in csv.DictReader(path.open()):
            middle = (float(row["from"]) + float(row["to"])) / 2
            series.setdefault(row["series"], []).extend([middle] * round(float(row["share"]) * n * n_layers))
        title = f"Probabilities of the routers, {n} fit questions x {n_layers} blocks"
        return charts.histogram("probabilities", title, figures.PROBABILITIES, "probability", series)

    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path, help="the run folder, which the page's commands name")
    parser.add_argument("--ablated", type=int, default=ReproduceConfig().ablated)
    parser.add_argument("--threads", type=int, default=Resources().threads)
    parser.add_argument("--keep", type=Path, help="folder that gets the page as Markdown, pictures and numbers")
    given = parser.parse_args()
    manifest = next(iter(search_manifests(given.out).values()))
    dtype = getattr(torch, manifest.dtype_name)
    routed: Any = SimpleNamespace(fingerprint=manifest.fingerprint, model=SimpleNamespace(dtype=dtype))
    setup = Setup(given.model, TASKS, given.out, "", ReproduceConfig(ablated=given.ablated), (), Resources(threads=given.threads))
    bench = Kept(routed, setup)
    scores, kept = kept_scores(given.out / "scores.json"), tables.labels(bench)[-1].kept
    n_layers = len(next(iter(read_answers(next(given.out.glob("evaluate/*/answers.parquet"))).values())).routes[0])
    for module in (tables, figures):
        module.last_scores = scores  # type: ignore[attr-defined]
    figures._probabilities = kept_probabilities(given.out / "page" / "probabilities.csv", kept, n_layers)
    run.check = lambda bench, exhibits: None  # type: ignore[assignment] - nothing is asked
    Evaluate.run = lambda stage, bench: None  # type: ignore[method-assign, assignment] - the last of them is not written again
    page = run.reproduce(bench, run.wanted_exhibits(["all"]))
    print(f"page: {page}")
    if given.keep:
        for path in sorted(page.parent.iterdir()):
            if path.suffix in KEPT:
                shutil.copyfile(path, given.keep / path.name)


if __name__ == "__main__":
    main()
