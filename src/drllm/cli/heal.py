"""Heal a cheaper route: train a small adapter until the blocks that stay say what the whole model says.

No answer key is needed: prompts are enough, and the model itself is the teacher. --budget alone chooses which blocks to leave out. The
policy is saved in OUT/healed, the adapter in PEFT's format; the base's weights do not change. The same command resumes.

example:
  drllm heal --model smollm2-135m-q4 --dtype float32 --tasks arc_easy,openbookqa --budget 0.8 --out runs/healed
"""

import shlex
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import ROUTE_HELP, Parser, add_common, add_section
from drllm.core.errors import InputError
from drllm.core.route import Route

SHOWN = ("model", "tasks", "data", "prompts", "out", "budget", "route", "policy", "steps", "rank", "dtype")  # by --help


def run(job: Job) -> Lines:
    arguments, out, config = job.arguments, job.need("out"), job.config("heal")
    if arguments.route is not None and arguments.policy is not None:
        raise InputError("got both --route and --policy: one route is healed, leave one of them out")
    tasks = job.tasks() if job.common.tasks or job.data else ()
    if arguments.route is not None:
        Route.parse(arguments.route)  # before the model is loaded
    from drllm.healing.heal import POLICY, heal
    from drllm.healing.training import need_peft
    from drllm.runs.layout import RunFolder

    need_peft()
    if arguments.policy is not None:
        routed = job.load_policy()
        assert routed.policy is not None
        if (route := routed.policy.route) is None:
            raise InputError(f"a {routed.policy.name!r} policy decides each prompt's route: give one of its routes (--route)")
        route = route.bare
    else:
        routed = job.load(job.need("model"))
        route = None if arguments.route is None else Route.parse(arguments.route, routed.n_layers)
    _, found = heal(routed, out, route, tasks, job.data, arguments.prompts, config, job.argv)
    yield from found.lines()
    folder = shlex.quote(str(RunFolder(Path(out)).policy(POLICY)))
    yield f"policy: {folder}"
    yield f"merge it into a plain checkpoint: drllm export --policy {folder} --out {shlex.quote(str(Path(out) / 'merged'))}"


def add_flags(parser: Parser) -> None:
    parser.add_argument("--route", metavar="ROUTE", help=f"the route to heal, instead of --budget: {ROUTE_HELP}")
    parser.add_argument("--policy", metavar="FOLDER", help="a saved policy of one route to heal; it knows its own model")
    about = "a file of prompts: one a line, or .jsonl with messages or text; instead of --tasks, or beside them"
    parser.add_argument("--prompts", metavar="FILE", help=about)
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "heal")
