"""Scan a model: run each span of blocks twice, or skip it, and measure the best on new questions; --claimed audits a claim.

All spans race: many on few questions, few on many. The best are then measured on questions that chose nothing, beside random spans. The
same command resumes.

example:
  drllm scan --model smollm2-135m-q4 --tasks arc_easy,arc_challenge,openbookqa --out runs/map
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import DRY_RUN, Parser, add_common, add_section

SHOWN = ("model", "tasks", "data", "out", "claimed", "fresh", "kinds", "questions", "reward", "dtype", "dry_run")  # by --help


def run(job: Job) -> Lines:
    model = job.need("model")
    from drllm.reporting.scan import render
    from drllm.runs.layout import RunFolder
    from drllm.scanning.claims import read_claims
    from drllm.scanning.scan import check_claims, scan

    out, tasks, config, resources = job.out, job.tasks(), job.config("scan"), job.config("resources")
    check_claims(read_claims(job.arguments.claimed), config)  # before the model is loaded
    routed = job.load(model)
    claimed = read_claims(job.arguments.claimed, routed.n_layers)
    if job.arguments.dry_run:
        from drllm.scanning.claims import claim, stages_of
        from drllm.scanning.questions import choose
        from drllm.tasks import load_task

        raced, fresh = choose(routed, {name: load_task(name, job.data) for name in tasks}, config)
        claims = [claim(route, config) for route in claimed]
        yield from job.costs(stages_of(routed.n_layers, len(raced), len(fresh), claims, config), routed, tasks, config)
        return
    yield render(scan(routed, tasks, config, out, job.data, job.argv, resources, claimed))
    folder = RunFolder(Path(out)).scan
    if config.questions:
        yield f"map: {folder.map}; routes for drllm search --paths: {folder.best}; drllm report {out} draws it"
    yield f"scan: {folder.result}" + ("" if config.questions else f"; drllm report {out} writes a page to send")


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "scan")
    add_section(parser, "resources", about="where and how it runs; no verdict depends on them")
    about = 'what somebody says helps: "12-15 twice" (from 0, both ends included), "12-15 skipped", a route, or a .jsonl file; repeatable'
    parser.add_argument("--claimed", metavar="CLAIM", action="append", default=[], help=about)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN)
