"""`drllm reproduce`: the paper's tables and figures on a model of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import add_flags, common_flags
from drllm.core.config import SECTIONS


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    """The flags of `drllm reproduce`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="table2 to table8, fig1, fig4, fig5, fig7 to fig11, latency, or all")
    parser.add_argument("--dry-run", action="store_true", help="print the stages, what each costs in plain forwards and hours, and stop")
    common_flags("model", "dtype", "device", "tasks", "data", "out")(parser)
    add_flags(parser, SECTIONS["reproduce"], title="reproduce (section `reproduce` of the YAML file)")
    add_flags(parser, SECTIONS["resources"], title="resources: where and how searches and comparisons run (section `resources`)")


def reproduce_paper(job: Job) -> Lines:
    """Run `drllm reproduce`."""
    from drllm.paper.run import dry_run, reproduce, wanted_exhibits
    from drllm.paper.setup import TASKS, Setup, changed_flags
    from drllm.reporting.drawing import need_extras
    from drllm.tasks import get_task

    exhibits = wanted_exhibits(job.arguments.names)
    config, resources = job.config("reproduce"), job.config("resources")
    for name in config.outside:
        get_task(name)
    placed = changed_flags(job.common, ("dtype", "device"))
    tasks = job.tasks() if job.common.tasks else TASKS
    setup = Setup(job.need("model"), tasks, Path(job.need("out")), job.common.data, config, tuple(placed), resources)
    if job.arguments.dry_run and config.plain_ms:
        yield from dry_run(exhibits, setup, config.plain_ms)
        return
    if not job.arguments.dry_run:  # before the model is loaded
        need_extras()
    routed = job.load(setup.model)
    if job.arguments.dry_run:
        from drllm.paper.clock import plain_ms

        yield from dry_run(exhibits, setup, plain_ms(routed, (*setup.tasks, *config.outside), config.reward, setup.data or None))
        return
    from drllm.paper.stages import Bench

    page = reproduce(Bench(routed, setup, job.argv), exhibits)
    yield page.with_suffix(".md").read_text(encoding="utf-8").rstrip()
    yield f"page: {page}"
