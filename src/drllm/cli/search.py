"""Find good routes for each question by Monte Carlo tree search.

The same command resumes.

example:
  drllm search --model smollm2-135m-q4 --tasks arc_easy --limit 100 --out runs/a
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import DRY_RUN, Parser, add_common, add_section

SHOWN = ("model", "tasks", "data", "out", "n_simulations", "limit", "keep", "reward", "paths", "dry_run")  # by --help


def run(job: Job) -> Lines:
    out, tasks, config, resources = job.out, job.tasks(), job.config("search"), job.config("resources")
    model = job.need("model")
    from drllm.runs.labels import count_labels, render
    from drllm.runs.layout import RunFolder
    from drllm.runs.records import iterate_records
    from drllm.searching.runner import check_splits, read_routes, search

    routes = None if job.arguments.paths is None else read_routes(job.arguments.paths)
    check_splits(config.splits, routes is not None)
    if job.arguments.dry_run:
        from drllm.searching.cost import stages_of
        from drllm.tasks import load_task

        routed = job.load(model)
        stages = stages_of({name: load_task(name, job.data) for name in tasks}, config, routed.n_layers, routes)
        yield from job.costs(stages, routed, tasks, config)
        return
    search(job.load(model), tasks, config, out, job.data, job.argv, routes, resources)
    place = RunFolder(Path(out))
    folder = place.searches if routes is None else place.matrices
    if routes is None:
        yield render(count_labels(record for name in tasks for record in iterate_records(folder / name)))
    yield f"search records: {folder}"


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "search")
    add_section(parser, "resources", about="where and how it runs; no record depends on them")
    listed = (
        "evaluate the routes of a file, one a line as digits or a path, on every question instead of searching; a later list adds to it"
    )
    parser.add_argument("--paths", metavar="FILE", help=listed)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
