"""`report()`: one Markdown file with pictures out of everything a run folder holds. No torch, and no model is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drllm.files import write_text
from drllm.reporting import figures
from drllm.reporting.figures import Picture
from drllm.reporting.load import Run, load_run
from drllm.reporting.table import markdown, percent, verdict
from drllm.routes import Action

CONTROLS = ("random", "shuffled")  # or random-NAME, shuffled-NAME


def report(run: str | Path) -> Path:
    """Write `run/report/report.md`, its PNGs, and a CSV with the numbers of each picture.

    A stage that has not run is named in the report in a sentence. The same run folder gives the same bytes.

    Args:
        run: the run folder of `search`, `train`, `evaluate` or `retrofit`.

    Returns:
        The path of `report.md`.

    Raises:
        ArtifactError: no such folder, no stage in it, or a corrupt file.
        InputError: matplotlib is not installed.
    """
    loaded = load_run(Path(run))
    figures.need_matplotlib()
    import matplotlib.style

    folder = loaded.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context("default"):  # a user's own matplotlibrc must not change the pictures
        parts = [*_headline(loaded), *_results(loaded, folder), *_labels(loaded, folder), *_training(loaded, folder)]
    parts += [*_dropped(loaded), *_provenance(loaded)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return folder / "report.md"


def _headline(run: Run) -> list[str]:
    model = next((source["model"] for source in (*run.summaries.values(), *run.plans.values())), "")
    parts = [f"# Adaptive depth on {model}" if model else "# Adaptive depth"]
    for split, summary in run.summaries.items():
        methods = dict.fromkeys(row["method"] for row in summary["rows"])
        trained = [name for name in methods if name != summary["reference"] and name.partition("-")[0] not in CONTROLS]
        sentences = [f"- **{verdict(summary, method)}**" for method in sorted(trained, key=lambda name: name != "routers")]
        if sentences:
            parts += [f"On the {split} split, against {summary['reference']}:", "\n".join(sentences)]
    return parts


def _results(run: Run, folder: Path) -> list[str]:
    parts = ["## Results"]
    if not run.summaries:
        return [*parts, "Nothing has been evaluated yet: `drllm evaluate` writes this section."]
    for split, summary in run.summaries.items():
        parts += [f"### {split.capitalize()} split", markdown(summary)]
        if any(row["method"].partition("-")[0] in CONTROLS for row in summary["rows"]):
            parts.append(
                "random and shuffled are controls: random skips and repeats at the routers' mean passes, and the routers' own routes dealt "
                "to other prompts. Routers that choose well beat both."
            )
        parts += [_shown(figures.accuracy_against_passes(summary, folder)), _shown(figures.passes_by_block(run, folder, split))]
    return parts


def _labels(run: Run, folder: Path) -> list[str]:
    parts = ["## Labels of the search"]
    if not run.records:
        return [*parts, "Nothing has been searched yet: `drllm search` writes this section."]
    header = ("task", "questions", "base right, %", "kept routes", "of them rescue", "of them the base's", "evaluated a question", "skip",
              "execute", "repeat", "mean passes")  # fmt: skip
    rows = []
    for task, records in run.records.items():
        kept = [record for record in records if record.chosen is not None]
        counts = figures.label_counts(records)
        n = max(len(records), 1)
        rows.append((
            task, str(len(records)), percent(sum(record.base_correct for record in records) / n), str(len(kept)),
            str(sum(not record.base_correct for record in kept)),
            str(sum(record.chosen is not None and record.chosen.is_full for record in kept)),
            f"{sum(len(record.routes) for record in records) / n:.1f}", *(f"{counts[action]:,}" for action in Action),
            f"{sum(record.chosen.n_passes for record in kept if record.chosen) / len(kept):.2f}" if kept else "",
        ))  # fmt: skip
    return [*parts, _table(header, rows), _shown(figures.label_distribution(run, folder))]


def _training(run: Run, folder: Path) -> list[str]:
    parts = ["## Training"]
    if not run.epochs:
        return [*parts, "No method with epochs has been trained yet: `drllm train` writes this section."]
    for method, epochs in run.epochs.items():
        if not epochs:
            parts.append(f"{method}: its metrics file is empty.")
            continue
        last = epochs[-1]
        names = [name for name in last if name != "epoch" and not name.startswith("val_")]
        rows = [(name, _value(last[name]), _value(last.get(f"val_{name}"))) for name in names]
        parts += [f"{method}, epoch {last.get('epoch', len(epochs))} of {len(epochs)}:", _table(("metric", "train", "held back"), rows)]
    return [*parts, _shown(figures.training_curves(run, folder))]


def _dropped(run: Run) -> list[str]:
    parts = ["## Dropped questions"]
    for split, summary in run.summaries.items():
        counts = _flat(summary.get("dropped") or {})
        parts.append(f"{split} split: " + (", ".join(f"{name} {count}" for name, count in counts) if counts else "none") + ".")
    if not run.summaries:
        parts.append("Known once an evaluation has run.")
    return parts


def _provenance(run: Run) -> list[str]:
    parts = ["## Provenance"]
    for task, plan in run.plans.items():
        weights = f"model {plan.get('model', '')}, weights {plan.get('fingerprint', '')}, {plan.get('dtype', '')}"
        parts.append(f"{task}: {plan.get('source', '')}; {weights}.")
    if not run.jobs:
        return [*parts, "The run folder has no run.json."]
    rows = [
        (
            str(job.get("job", "")),
            str(job.get("status", "")),
            _command(job.get("argv")),
            _value(job.get("seconds")),
            str(job.get("commit") or ""),
        )
        for job in run.jobs
    ]
    parts.append(_table(("job", "status", "command", "seconds", "commit"), rows))
    for name in ("versions", "hardware"):
        facts = _flat(run.jobs[-1].get(name) or {})
        if facts:
            parts.append(f"{name.capitalize()} of the last job: " + ", ".join(f"{key} {value}" for key, value in facts) + ".")
    return parts


def _shown(picture: Picture | str) -> str:
    if isinstance(picture, str):
        return picture
    numbers = f"{Path(picture.file).stem}.csv"
    return f"![{picture.caption}]({picture.file})\n\n{picture.caption} Numbers: [{numbers}]({numbers})."


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (header, tuple("---" for _ in header), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def _command(argv: Any) -> str:
    return f"`{shlex.join(map(str, argv))}`" if argv else "called from Python"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def _flat(facts: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as ("outer inner", value) pairs."""
    if not isinstance(facts, Mapping):
        return [(prefix.strip(), facts)]
    return [pair for key, value in facts.items() for pair in _flat(value, f"{prefix} {key}")]
