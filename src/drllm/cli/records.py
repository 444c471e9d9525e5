"""Describe search records (info), merge those of several runs (merge), or write them to one file (export).

example:
  drllm records info runs/a
"""

from collections.abc import Iterable
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common
from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Route

ACTIONS = ("info", "merge", "export")


def run(job: Job) -> Lines:
    arguments = job.arguments
    action, folders = arguments.action, [Path(folder) for folder in arguments.folders]
    if action not in ACTIONS:
        raise InputError(f"unknown action {action!r}{did_you_mean(action, ACTIONS)}; choose from {', '.join(ACTIONS)}")
    if not folders:
        raise InputError(f"no folder: write `drllm records {action} FOLDER`, a run folder or one of its task folders")
    if arguments.float16 and action != "export":
        raise InputError(f"--float16 is for `drllm records export`: leave it out of {action}")
    if action == "info" and arguments.out is not None:
        raise InputError("info only prints: leave --out out of it, or use `drllm records export`")
    if action == "export" and len(folders) > 1:
        raise InputError(f"export takes one folder, got {len(folders)}: merge them first with `drllm records merge`")
    from drllm.runs.merge import export_records, merge_records, record_groups, task_folders

    if action == "merge":
        for part in merge_records(folders, Path(job.need("out"))):
            again = f", {part.n_again} given again" if part.n_again else ""
            yield f"{part.folder}: {part.n_records} records, folders: {part.n_sources}{again}"
        return
    if action == "export":
        out = Path(job.need("out"))
        yield f"{out}: {export_records(folders[0], out, arguments.float16)} rows"
        return
    from drllm.runs.label_stats import describe, render

    for folder in folders:
        for where, found in record_groups(folder).items():
            for fingerprint in sorted({record.fingerprint for record in found}):
                one = [record for record in found if record.fingerprint == fingerprint]
                rewards, splits = (", ".join(sorted({getattr(record, name) for record in one})) for name in ("reward", "split"))
                yield f"{where}: weights {fingerprint}, reward {rewards}, split {splits}"
                yield render(describe(one)) + "\n"
        if folder.is_dir():
            yield from sweeps(task_folders(folder))


def sweeps(folders: Iterable[Path]) -> Lines:
    """The forward passes that are in no record."""
    from drllm.searching.prior import read_prior

    for folder in folders:
        if (prior := read_prior(folder)) is not None:
            n_routes = 1 + len(prior.space.edited(Route.full(prior.n_layers)))
            yield f"  {folder.name}: the sweep behind its prior evaluated {prior.n_questions} x {n_routes} routes more\n"


def add_flags(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", help="info: print tables; merge: copy into one run folder; export: write one file")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="run folders or task folders; for info and export also a single shard")
    parser.add_argument("--out", metavar="NEW", help="merge: a new run folder; export: a file, .parquet, .csv or .jsonl")
    parser.add_argument("--float16", action="store_true", help="export: margins of a .parquet file as float16")
    add_common(parser)
