"""Show what runs have asked (info), merge runs (merge), or write rows into one file (export).

example:
  drllm records info runs/a
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common
from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.text import table_text

ACTIONS = ("info", "merge", "export")
FILTERS = ("task", "split", "reward", "route", "dtype")  # columns that rows are picked by


def run(job: Job) -> Lines:
    arguments = job.arguments
    action, folders = arguments.action, [Path(folder) for folder in arguments.folders]
    if action not in ACTIONS:
        raise InputError(f"unknown action {action!r}{did_you_mean(action, ACTIONS)}; choose from {', '.join(ACTIONS)}")
    if not folders:
        raise InputError(f"no folder: write `drllm records {action} FOLDER`, a run folder")
    where = {name: given.split(";") for name in FILTERS if (given := getattr(arguments, name)) is not None}
    if action == "merge" and where:
        raise InputError(f"--{next(iter(where))} picks rows to show or export: leave it out of merge")
    if action == "info" and arguments.out is not None:
        raise InputError("info only prints: leave --out out of it, or use `drllm records export`")
    if action == "export" and len(folders) > 1:
        raise InputError(f"export takes one folder, got {len(folders)}: merge them first with `drllm records merge`")
    from drllm.runs.layout import RunFolder
    from drllm.runs.merge import OVERVIEW, export_rows, merge_runs, overview, rows_of

    if action == "merge":
        out = Path(job.out)
        merged = merge_runs(folders, out)
        yield f"{RunFolder(out).verdicts}: {merged.n:,} rows, from {len(folders)} runs; {merged.n_again:,} were given again"
        yield from (f"{folder}: copied" for folder in merged.copied)
        for folder in merged.left:
            yield f"{folder}: not made, several runs have it: the same search in {out} looks its verdicts up"
        return
    if action == "export":
        out = Path(job.need("out"))
        yield f"{out}: {export_rows(rows_of(folders[0], where), out):,} rows"
        return
    from drllm.runs.labels import count_labels, render
    from drllm.runs.manifest import search_manifests
    from drllm.runs.records import iterate_records

    for folder in folders:
        yield table_text(OVERVIEW, overview(rows_of(folder, where)), str(folder)) + "\n"
        if folder.is_dir() and search_manifests(folder):
            yield render(count_labels(iterate_records(RunFolder(folder).searches))) + "\n"


def add_flags(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", help="info: print tables; merge: the rows of several runs in a new one; export: a file")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="run folders; for info and export also a single shard")
    parser.add_argument("--out", metavar="NEW", help="merge: a new run folder; export: a file, .parquet, .csv or .jsonl")
    for name in FILTERS:
        parser.add_argument(f"--{name}", metavar=name.upper(), help=f"info, export: rows of this {name} alone; of several: A;B")
    add_common(parser)
