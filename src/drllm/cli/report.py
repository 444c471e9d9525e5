"""Write a run folder's report: one page for a browser, the same as Markdown, its pictures and their numbers.

example:
  drllm report runs/a
"""

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common
from drllm.core.errors import InputError


def run(job: Job) -> Lines:
    given = job.arguments.run
    if given and job.common.out:
        raise InputError(f"the run folder was given twice, {given!r} and --out {job.common.out!r}: give one")
    out = given or job.out
    from drllm.reporting.report import report

    yield f"report: {report(out)}"


def add_flags(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run folder; --out names it as well")
    add_common(parser, "out")
