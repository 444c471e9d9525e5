"""Compare methods document by document, from the sample logs of lm-evaluation-harness.

example:
  drllm compare base=out/base routed=out/routed
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common
from drllm.core.errors import InputError
from drllm.core.files import write_json


def run(job: Job) -> Lines:
    from drllm.evaluation.harness.compare import compare, read_scores, render

    folders = {}
    for given in job.arguments.folders:
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise InputError(f"{given!r} names no method: write NAME=FOLDER, for example base=runs/a/harness/tune/base")
        if name in folders:
            raise InputError(f"method {name!r} is given twice: give each folder its own name")
        folders[name] = folder
    rows = compare({name: read_scores(folder) for name, folder in folders.items()}, job.arguments.resamples, job.arguments.seed)
    yield render(rows, next(iter(folders)))
    if job.common.out:
        write_json(Path(job.common.out), rows)
        yield f"rows: {job.common.out}"


def add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="NAME=FOLDER", help="sample logs of lm-evaluation-harness; the first is the reference")
    add("--out", metavar="FILE.json", help="write the rows there too")
    add("--resamples", type=int, default=10_000, metavar="N", help="bootstrap resamples (default: 10000)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    add_common(parser)
