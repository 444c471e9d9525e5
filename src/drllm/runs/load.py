"""Everything a run folder holds, read once; stages that have not run are simply empty."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json, read_json_lines
from drllm.core.route import Route
from drllm.policies.saved_config import CONFIG_FILE
from drllm.runs.answers import read_answers
from drllm.runs.layout import MANIFEST_FILE, METRICS_FILE, RunFolder
from drllm.runs.manifest import Manifest
from drllm.runs.provenance import read_jobs
from drllm.runs.recommendation import Recommendation
from drllm.runs.records import RouteRecord, read_records
from drllm.runs.scan_result import Cell, ScanResult, read_map, read_scan
from drllm.runs.summary import Summary


@dataclass(frozen=True)
class Run:
    """What stands in a run folder."""

    folder: Path
    jobs: list[dict[str, Any]]  # the entries of `run.json`, oldest first
    manifests: dict[str, Manifest]  # of the search of each task
    records: dict[str, list[RouteRecord]]  # of each searched task
    epochs: dict[str, list[dict[str, Any]]]  # the training metrics of each method, one mapping an epoch
    summaries: dict[str, Summary]  # of each evaluated split
    questions: dict[tuple[str, str, str], list[dict[str, Any]]]  # rows of their answers by (split, method, task)
    policies: dict[str, dict[str, Any]]  # the configuration of each saved policy, by its name in the run
    recommendation: Recommendation | None = None
    scan: ScanResult | None = None
    map: Sequence[Cell] = ()  # every candidate of the scan
    scan_is_unfinished: bool = False
    healings: Sequence[dict[str, Any]] = ()  # what they came to, `drllm.healing.heal.Healed`


def load_run(folder: Path) -> Run:
    """Read a run folder; `ArtifactError` when it is missing, holds no stage, or a file in it is corrupt."""
    if not folder.is_dir():
        raise ArtifactError(f"no run folder {str(folder)!r}: give the --out of a search, evaluate or retrofit")
    run = RunFolder(folder)
    manifests = {path.parent.name: Manifest.of(_json(path), path) for path in sorted(run.searches.glob(f"*/{MANIFEST_FILE}"))}
    records = {task: list(read_records(run.search(task))) for task in manifests}
    epochs = {path.parent.name: read_epochs(path.parent) for path in run.metrics()}
    summaries = {path.parent.name: read_summary(path) for path in run.summaries()}
    questions: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for split, summary in summaries.items():
        path = run.answers(split)
        answers, layers = read_answers(path) if path.is_file() else {}, {row.n_layers for row in summary.rows}
        for row in summary.rows:
            if found := answers.get((row.method, row.task)):
                questions[split, row.method, row.task] = found.rows
                if odd := [n for n in _n_blocks(found.routes, path) if n not in layers]:
                    raise ArtifactError(f"{path} has a route of {odd[0]} blocks: evaluate again")
    scanned = run.scan.result.is_file()
    healings = [_json(path) for path in run.healed()]
    if not (manifests or epochs or summaries or scanned or healings):
        what = "no search, training or evaluation, and no finished scan or healing"
        raise ArtifactError(f"{str(folder)!r} holds {what}: give the --out of a search, evaluate, scan, heal or retrofit")
    policies = {path.name: _json(path / CONFIG_FILE) for path in run.policies()}
    recommendation = Recommendation.read(run.recommendation, "run the retrofit again")
    scan = (read_scan(run.scan), read_map(run.scan)) if scanned else (None, ())
    begun = run.scan.settings.is_file() and not scanned
    read = (manifests, records, epochs, summaries, questions, policies, recommendation)
    return Run(folder, read_jobs(folder), *read, *scan, begun, healings)


def _n_blocks(routes: Iterable[str], path: Path) -> list[int]:
    """The blocks of each route of a file of verdicts; `ArtifactError` for what is none. Methods without routes have empty ones."""
    try:
        return [len(Route.parse(text)) for text in dict.fromkeys(routes) if text]
    except InputError as error:
        raise ArtifactError(f"{path} has an unreadable route ({error}): evaluate again") from None


def read_summary(path: Path) -> Summary:
    return Summary.of(_json(path), path)


def _json(path: Path) -> Any:
    return read_json(path, "run that stage again", dict)


def read_epochs(training: Path) -> list[dict[str, Any]]:
    """The metrics of a training, one mapping an epoch, from its folder."""
    return [epoch for _, epoch in read_json_lines(training / METRICS_FILE, "train again")]
