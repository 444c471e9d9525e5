"""`report()`: one page, and the same as Markdown with pictures, out of everything a run folder holds. No torch, and no model is loaded."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.core.text import percent, points
from drllm.reporting import figures
from drllm.reporting.agreement import page_parts
from drllm.reporting.drawing import need_extras, write_charts
from drllm.reporting.page import write_page
from drllm.reporting.parts import Commands, Folded, Heading, Paragraph, Part, Table
from drllm.reporting.recommendation import opening
from drllm.reporting.scan import scan_parts
from drllm.reporting.summary_table import by_size, by_task, headline
from drllm.runs.labels import HEADER, LEGEND, broken_note, count_labels, label_rows
from drllm.runs.layout import PAGE_FILE, RunFolder
from drllm.runs.load import Run, load_run
from drllm.runs.names import owner_of
from drllm.runs.provenance import typed_commands
from drllm.runs.recommendation import Agreed
from drllm.runs.summary import POOLED

JOBS = 8  # more are folded: a run of many calls has hundreds
ROWS = 40  # of a comparison; more are folded by task
BASELINES = (
    "random-NAME moves the skips and repeats of policy NAME to random blocks, shuffled-NAME deals its own routes to other prompts (random "
    "and shuffled alone: those of the routers). A good policy beats its own baselines."
)


def report(run: str | Path) -> Path:
    """Write `run/report/report.html`, the same as `report.md`, and a PNG and a CSV with the numbers of each picture.

    The page needs nothing beside it: style, numbers and pictures are inside. A stage that has not run is named in a sentence. The same run
    folder gives the same bytes.

    Args:
        run: the run folder of `search`, `scan`, `train`, `evaluate` or `retrofit`.

    Returns:
        The path of `report.html`.

    Raises:
        ArtifactError: no such folder, no stage in it, or a corrupt file.
        InputError: matplotlib or jinja2 is not installed.
    """
    if (found := Agreed.read(RunFolder(Path(run)).agreed, "run the retrofit again")) is not None:
        need_extras()
        start, body = page_parts(found, Path(run).as_posix())
        write_charts(body, folder := RunFolder(Path(run)).report)
        return write_page(start, body, folder)
    loaded = load_run(Path(run))
    need_extras()
    folder = RunFolder(loaded.folder).report
    bare = bool(loaded.scan or loaded.healings) and not (loaded.manifests or loaded.summaries or loaded.policies or loaded.epochs)
    sections = (_provenance,) if bare else (_results, _labels, _training, _promises, _dropped, _provenance)
    parts = [part for section in (_scan, _healing, *sections) for part in section(loaded)]
    write_charts(parts, folder)
    return write_page(_opening(loaded), parts, folder)


def _opening(run: Run) -> list[Part]:
    scans = () if run.scan is None else (run.scan,)
    model = next((source.model for source in (*run.summaries.values(), *run.manifests.values(), *scans)), "")
    audits = run.scan is not None and not (run.scan.sizes or run.summaries or run.manifests)
    named = f"Adaptive depth on {model}" if model else "Adaptive depth"
    parts: list[Part] = [Heading(f"Audit of {model or 'a model in memory'}" if audits else named, 1)]
    parts += opening(run.recommendation, run.folder.as_posix()) if run.recommendation is not None else headline(run)
    if pages := sorted(page.relative_to(run.folder).as_posix() for page in RunFolder(run.folder).reproduction.glob(f"*/{PAGE_FILE}")):
        text = "The paper's tables and figures on this model, each with its comparison, stand in a page of their own"
        parts.append(Paragraph(f"{text}: {', '.join(f'`{page}`' for page in pages)}."))
    return parts


def _scan(run: Run) -> Iterator[Part]:
    """The map of the model; no word of it where none was made."""
    if run.scan is not None:
        yield from scan_parts(run.scan, run.map)
    elif run.scan_is_unfinished:
        yield Heading("Scan")
        yield Paragraph("The scan is unfinished: run the same `drllm scan` again, which resumes.")


def _healing(run: Run) -> Iterator[Part]:
    """What healings came to, where there were some."""
    yield from [Heading("Healing")] if run.healings else ()
    for found in run.healings:
        rows = (
            ("KL to the base, nats a token", *(f"{found[name]:.3f}" for name in ("kl_before", "kl_after"))),
            ("same next token as the base", *(f"{percent(found[name])} %" for name in ("same_before", "same_after"))),
        )
        seconds = ", ".join(f"{name} {value:.0f}" for name, value in found["seconds"].items())
        prompts = f"On {found['n_held_out']} held-out prompts, which also chose when to stop. Seconds: {seconds}."
        caption = f"Route {found['route']} of {found['n_passes']} passes. {prompts}"
        yield Table(("", "without the adapter", "with it"), rows, caption)


def _results(run: Run) -> Iterator[Part]:
    yield Heading("Results")
    if not run.summaries:
        yield Paragraph("Nothing has been evaluated yet: `drllm evaluate` writes this section.")
    for split, summary in by_size(run).items():
        yield Heading(f"{split.capitalize()} split", 3)
        whole = by_task(summary)
        pooled = tuple(row for row in whole.rows if row[0] == POOLED)
        yield from [Table(whole.header, pooled), Folded("By task", (whole,))] if len(whole.rows) > ROWS and pooled else [whole]
        if baselines := dict.fromkeys(row.method for row in summary.rows if owner_of(row.method)):
            yield Paragraph(f"Baselines: {', '.join(baselines)}. {BASELINES}")
        yield figures.accuracy_chart(summary)
        yield figures.usage_map(run.questions, split) if not (missing := _missing(run, split)) else Paragraph(missing)


def _missing(run: Run, split: str) -> str:
    """Which answers that a split's summary names are not in the folder; empty where none is missing."""
    found = {(method, task) for where, method, task in run.questions if where == split}
    lost = dict.fromkeys(row.method for row in run.summaries[split].rows if row.task != POOLED and (row.method, row.task) not in found)
    return f"Answers of the {split} split are not in this folder (of {', '.join(lost)}), so their routes are not shown." if lost else ""


def _labels(run: Run) -> Iterator[Part]:
    yield Heading("Labels of the search")
    if not run.manifests:
        yield Paragraph("Nothing has been searched yet: `drllm search` writes this section.")
    if begun := [task for task in run.manifests if not run.records[task]]:
        some = ", ".join(begun)
        yield Paragraph(f"The search of {some} has begun, and no question is finished yet: the same `drllm search` call goes on.")
    if len(begun) == len(run.manifests):
        return
    try:
        counted = count_labels(record for records in run.records.values() for record in records)
    except InputError as error:  # records of several models
        yield Paragraph(f"No table of labels: {error}.")
        return
    yield Table(HEADER, tuple(label_rows(counted)), f"{LEGEND[0].upper()}{LEGEND[1:]}.")
    if note := broken_note(counted):
        yield Paragraph(note)


def _training(run: Run) -> Iterator[Part]:
    """The metrics of each policy's last epoch, a row each."""
    yield Heading("Training")
    lasts = {method: run.epochs[method][-1] for method in sorted(run.epochs, key=lambda name: name != "routers") if run.epochs[method]}
    if not lasts:
        yield Paragraph("No method with epochs has been trained yet: `drllm train` writes this section.")
        return
    names = dict.fromkeys(name for last in lasts.values() for name in last if name != "epoch" and not name.startswith("val_"))
    rows = []
    for method, last in lasts.items():
        done = len(run.epochs[method])
        rows.append((method, f"{last.get('epoch', done)} of {done}", *(_both(last, name) for name in names)))
    caption = "After the last epoch: on the questions trained on / on those held back. All epochs: `train/NAME/metrics.jsonl`."
    yield Table(("policy", "epoch", *names), tuple(rows), caption)


def _both(last: Mapping[str, Any], name: str) -> str:
    found = [value for key in (name, f"val_{name}") if (value := last.get(key)) is not None]
    return " / ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in found)


def _promises(run: Run) -> Iterator[Part]:
    yield Heading("Calibration and promise")
    if not run.policies:
        yield Paragraph("No policy has been saved in this run.")
    promises = {name: config.get("promise") for name, config in run.policies.items()}
    tested = run.recommendation if run.recommendation is not None and not run.recommendation.promised else None
    if tested is not None and tested.promise:
        yield Paragraph(f"{tested.best} was calibrated, and nothing is promised of it: {tested.promise}")
    if bare := ", ".join(name for name, found in promises.items() if not found and (tested is None or name != tested.best)):
        yield Paragraph(f"Not calibrated, so nothing is promised of them; the figures above are what was measured: {bare}.")
    for name, found in promises.items():
        if found:
            yield Paragraph(f"{name}: {found['sentence']}")
            header = ("operating point", "observed, points", "mean passes", "p", f"at delta {found['delta']:g}")
            yield Table(header, tuple(map(_tested, found["tested"])))


def _tested(point: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "passed" if point["passed"] else "failed"
    return str(point["point"]), points(point["difference"]), f"{point['mean_passes']:.2f}", f"{point['p']:.4f}", verdict


def _dropped(run: Run) -> Iterator[Part]:
    yield Heading("Dropped questions")
    dropped: dict[str, list[str]] = {}
    for split, summary in run.summaries.items():
        some = ", ".join(f"{task} {why} {n}" for task, found in summary.dropped.items() for why, n in found.items())
        dropped.setdefault(some or "none", []).append(split)
    for what, splits in dropped.items():
        yield Paragraph(f"Of the data of the {' and '.join(splits)} split{'s' * (len(splits) > 1)}: {what}.")
    if not run.summaries:
        yield Paragraph("Known once an evaluation has run.")


def _provenance(run: Run) -> Iterator[Part]:
    yield Heading("Provenance")
    searched: dict[str, list[str]] = {}
    for task, manifest in run.manifests.items():
        weights = f"model {manifest.model}, weights {manifest.fingerprint}, {manifest.dtype}"
        searched.setdefault(f"{manifest.source}; {weights}", []).append(task)
    for source, tasks in searched.items():
        yield Paragraph(f"{', '.join(tasks)}: {source}.")
    if not run.jobs:
        yield Paragraph("The run folder has no run.json.")
        return
    jobs = Table(("job", "status", "command", "seconds", "commit"), tuple(map(_job, run.jobs)), code=frozenset({"command"}))
    yield jobs if len(run.jobs) <= JOBS else Folded(f"All {len(run.jobs)} jobs", (jobs,))
    for name in ("versions", "hardware"):
        if facts := run.jobs[-1].get(name):
            some = ", ".join(f"{key} {value}" for key, value in facts.items())
            yield Paragraph(f"{name.capitalize()} of the last job: {some}.")
    if commands := typed_commands(run.jobs):
        yield from (Heading("Commands to reproduce"), Commands(commands))


def _job(job: Mapping[str, Any]) -> tuple[str, ...]:
    command, seconds = shlex.join(map(str, job["argv"])) if job.get("argv") else "called from Python", job.get("seconds")
    took = "" if seconds is None else f"{seconds:.4g}" if seconds < 1000 else f"{seconds:.0f}"
    return str(job.get("job", "")), str(job.get("status", "")), command, took, str(job.get("commit") or "")
