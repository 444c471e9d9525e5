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

SHOWN = ("model", "tasks", "data", "prompts", "out", "budget", "route", "steps", "calibrate", "epsilon", "dtype")  # by --help


def run(job: Job) -> Lines:
    arguments, out, config, promise = job.arguments, job.out, job.config("heal"), job.config("promise")
    job.check_route("one of them is healed")
    tasks = job.tasks() if job.common.tasks or job.data else ()
    from drllm.healing.heal import POLICY, heal
    from drllm.healing.training import need_peft
    from drllm.runs.layout import RunFolder

    need_peft()
    if promise.calibrate and not tasks:
        raise InputError("--calibrate counts right answers, and prompts have none: give --tasks, or --data with a question file")
    routed, route = job.load_routed()
    policy, found = heal(routed, out, route or routed.policy, tasks, job.data, arguments.prompts, config, job.argv)
    yield from (line for one in found for line in one.lines())
    folder = RunFolder(Path(out)).policy(POLICY)
    if promise.calibrate:
        from drllm.evaluation.calibrate import calibrate
        from drllm.policies.saved import save_policy
        from drllm.runs.card_facts import refresh_card

        promised, tested = calibrate(routed, Path(out), policy, promise, job.argv, as_it_is=True)
        if tested.point is not None:  # else it stays as it was saved, promising nothing
            save_policy(promised, routed.identity, folder)
            refresh_card(folder)
        yield f"promise: {tested.told('the policy promises nothing')}"
    place, merged = shlex.quote(str(folder)), shlex.quote(str(Path(out) / "merged"))
    yield f"policy: {place}"
    yield f"serve it: drllm serve {place}" if policy.route is None else f"merge it: drllm export --policy {place} --out {merged}"


def add_flags(parser: Parser) -> None:
    parser.add_argument("--route", metavar="ROUTE", help=f"the route to heal, instead of --budget: {ROUTE_HELP}")
    parser.add_argument("--policy", metavar="FOLDER", help="a saved policy to heal: of one route, or a codebook that reads text")
    about = "a file of prompts: one a line, or .jsonl with messages or text; instead of --tasks, or beside them"
    parser.add_argument("--prompts", metavar="FILE", help=about)
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "heal")
    add_section(parser, "promise", about="a promise of right answers, tested on the tasks' calibrate questions")
