"""Upload a saved policy and its model card to the Hub.

example:
  drllm push runs/a/routers someone/smollm2-routers
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common


def run(job: Job) -> Lines:
    from drllm.runs.card_facts import refresh_card

    arguments = job.arguments
    yield refresh_card(Path(arguments.folder)).push(arguments.repo, arguments.revision, arguments.private or None)


def add_flags(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a saved policy")
    parser.add_argument("repo", metavar="ID", help="Hub id, such as someone/smollm2-routers; made if there is none")
    parser.add_argument("--revision", metavar="NAME", help="branch to commit to; made if there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    add_common(parser)
