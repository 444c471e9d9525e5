"""Print the model card of a saved policy or an exported checkpoint, after checking that its files are whole.

example:
  drllm info runs/a/routers
"""

from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common


def run(job: Job) -> Lines:
    from drllm.policies.card import CARD_FILE
    from drllm.policies.saved import open_policy
    from drllm.runs.card_facts import card_facts
    from drllm.runs.layout import EXPORT_FILE

    place, made = Path(job.arguments.name), ""
    if (place / EXPORT_FILE).is_file():
        from drllm.deploy.export import check_export

        check_export(place)
    else:
        place = (saved := open_policy(job.arguments.name, job.arguments.revision)).folder
        made = "" if (place / CARD_FILE).is_file() else saved.card(card_facts(place))  # those under results/, and some of the Hub
    yield (made or (place / CARD_FILE).read_text(encoding="utf-8")).rstrip()


def add_flags(parser: Parser) -> None:
    parser.add_argument("name", metavar="FOLDER|ID", help="a saved policy, or an exported checkpoint; a folder, or a policy's Hub id")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id")
    add_common(parser)
