"""Everything a run folder holds, read once; stages that have not run are simply empty."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drllm.core.errors import ArtifactError
from drllm.policies.card import CONFIG_FILE
from drllm.runs.earlier import OTHER_TASKS, VerdictFile, with_earlier
from drllm.runs.manifest import Manifest
from drllm.runs.records import RouteRecord, read_records
from drllm.runs.summary import Summary


@dataclass(frozen=True)
class Run:
    """Attributes:
    folder: the run folder.
    jobs: the entries of `run.json`, oldest first.
    manifests: the search manifest of each task.
    records: the search records of each task.
    epochs: the training metrics of each method, one mapping an epoch.
    summaries: the evaluation summary of each split, with what earlier evaluations left (`drllm.runs.earlier`).
    left_out: what they left and the summary is without, in lines, by split.
    questions: rows of the per-question files by (split, method, task).
    policies: the configuration of each saved policy, by its name in the run.
    """

    folder: Path
    jobs: list[dict[str, Any]]
    manifests: dict[str, Manifest]
    records: dict[str, list[RouteRecord]]
    epochs: dict[str, list[dict[str, Any]]]
    summaries: dict[str, Summary]
    left_out: dict[str, list[str]]
    questions: dict[tuple[str, str, str], list[dict[str, Any]]]
    policies: dict[str, dict[str, Any]]


def load_run(folder: Path) -> Run:
    """Read a run folder; `ArtifactError` when it is missing, holds no stage, or a file in it is corrupt."""
    if not folder.is_dir():
        raise ArtifactError(f"no run folder {str(folder)!r}: give the --out of a search, evaluate or retrofit")
    manifests = {path.parent.name: Manifest.of(_json(path)) for path in sorted(folder.glob("search/*/_plan.json"))}
    records = {task: list(read_records(folder / "search" / task)) for task in manifests}
    epochs = {path.parent.name: read_epochs(path) for path in sorted(folder.glob("train/*/metrics.jsonl"))}
    summaries = {path.parent.name: read_summary(path) for path in sorted(folder.glob("evaluate/*/summary.json"))}
    paths = sorted(folder.glob("evaluate/*/*/*.parquet"))
    files = {(path.parent.parent.name, path.parent.name, path.stem): read_verdicts(path) for path in paths}
    left_out: dict[str, list[str]] = {}
    for split in list(summaries):
        found, left_out[split] = with_earlier(folder, summaries[split], files)
        summaries |= found
    questions = {
        (split, row.method, row.task): files[place].rows
        for split, summary in summaries.items()
        for row in summary.rows
        if (place := (split.removesuffix(OTHER_TASKS), row.method, row.task)) in files
    }
    for place, rows in questions.items():
        layers = {row.n_layers for row in summaries[place[0]].rows}
        if odd := [row["route"] for row in rows if row.get("route") and len(row["route"]) not in layers]:
            raise ArtifactError(f"{folder}/evaluate/{'/'.join(place)}.parquet has a route of {len(odd[0])} blocks: evaluate again")
    jobs = _json(folder / "run.json") if (folder / "run.json").is_file() else []
    if not (manifests or epochs or summaries):
        raise ArtifactError(f"{str(folder)!r} holds no search, training or evaluation: give the --out of a search, evaluate or retrofit")
    policies = {path.parent.name: _json(path) for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))}
    return Run(folder, jobs, manifests, records, epochs, summaries, left_out, questions, policies)


def read_summary(path: Path) -> Summary:
    """One split's `summary.json`."""
    return Summary.of(_json(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): run that stage again") from None


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The metrics of a training, one mapping an epoch."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON lines ({error}): train again") from None


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of one method and task: id, verdicts, margin, route, passes."""
    return read_verdicts(path).rows


def read_verdicts(path: Path) -> VerdictFile:
    """The same, with what the file says of itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}): evaluate again") from None
    metadata = table.schema.metadata or {}
    return VerdictFile(table.to_pylist(), {name.decode(): value.decode() for name, value in metadata.items() if name != b"ARROW:schema"})
