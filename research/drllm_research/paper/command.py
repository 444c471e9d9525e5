"""Reproduce the paper's tables and figures on a model.

Searches, trains and compares what they need, then writes one page; resumes.

example:
  drllm reproduce table3 --model smollm2-135m-q4 --scale 0.1 --out runs/paper
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import DRY_RUN, Parser, add_common, add_section
from drllm_research.paper.config import ReproduceConfig

CONFIG = ReproduceConfig
SHOWN = ("names", "model", "tasks", "data", "out", "scale", "reward", "split", "outside", "dry_run", "config")  # by --help
NAMES = "table2 to table8, fig1, fig4, fig5, fig7 to fig11, latency, search, forcing, or all"


def run(job: Job) -> Lines:
    from drllm.reporting.drawing import need_extras
    from drllm.tasks import get_task
    from drllm_research.paper.run import dry_run, reproduce, wanted_exhibits
    from drllm_research.paper.setup import TASKS, Setup, changed_flags

    exhibits = wanted_exhibits(job.arguments.names)
    config, resources = job.config("reproduce"), job.config("resources")
    for name in config.outside:
        get_task(name)
    placed = changed_flags(job.common, ("dtype", "device"))
    tasks = job.tasks() if job.common.tasks else TASKS
    setup = Setup(job.need("model"), tasks, Path(job.out), job.common.data, config, tuple(placed), resources)
    if job.arguments.dry_run:
        from drllm.evaluation.clock import batched_ms

        questions = (*setup.tasks, *config.outside), setup.evaluate_config(config.split, False), job.data
        yield from dry_run(exhibits, setup, config.plain_ms or batched_ms(job.load(setup.model), *questions))
        return
    need_extras()  # before the model is loaded
    from drllm_research.paper.stages import Bench

    page = reproduce(Bench(job.load(setup.model), setup, job.argv), exhibits)
    yield page.with_suffix(".md").read_text(encoding="utf-8").rstrip()
    yield f"page: {page}"


def add_flags(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=NAMES)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "reproduce")
    add_section(parser, "resources", about="where and how searches and comparisons run")
