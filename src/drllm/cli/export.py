"""Write a static route for other tools: a checkpoint, a PEFT adapter or a GGUF file.

example:
  drllm export --policy runs/a/static --out runs/a/checkpoint
  drllm export --model smollm2-135m --route 0-14,12-29 --format peft --out looped
"""

from pathlib import Path
from typing import Any

from drllm.cli.job import Job, Lines
from drllm.cli.options import ROUTE_HELP, Parser, add_common
from drllm.core.errors import InputError
from drllm.core.progress import said_if_slow
from drllm.core.text import of_the_seconds, type_name

CLOCK_PROMPT, CLOCK_TOKENS, CLOCK_ROUNDS = 64, 32, 10
FORMATS = ("checkpoint", "peft", "gguf")


def run(job: Job) -> Lines:
    arguments, out = job.arguments, job.out
    if not job.check_route("an export has one route") and arguments.policy is None:
        raise InputError("no route to export: give --route or --policy")
    if arguments.clock and arguments.format != "checkpoint":
        raise InputError(f"--clock runs a checkpoint in transformers, and this is {arguments.format}: leave --clock out")
    if arguments.format == "peft":
        from drllm.deploy.formats.adapter import need_peft

        need_peft()  # before the model is loaded
    from drllm.core.route import Route
    from drllm.deploy.export import check_route, export
    from drllm.model.load import is_gguf
    from drllm.policies.saved import open_policy

    # What cannot be written is refused before the model is loaded.
    route = Route.parse(arguments.route) if arguments.policy is None else open_policy(arguments.policy).unchecked().route
    if route is None:
        raise InputError("this policy decides each prompt's route, which no export can: export a static one")
    check_route(route, arguments.format)
    routed, of_model = job.load_routed(keeps_type=True)
    route = of_model or route  # of a text as the model's blocks have it
    in_type = f" in {type_name(routed.model.dtype)}" if arguments.format == "checkpoint" else ""
    in_type += ", which the GGUF's packed weights were unpacked to" if in_type and is_gguf(routed.base_id) else ""
    with said_if_slow(f"writing {out}, and checking that it computes the same ..."):
        done = export(routed, route, out, arguments.format)
    if route.is_full:
        yield "this route is the base's: the export is the base model"
    else:
        yield f"route {done.route}: {done.n_blocks} blocks instead of {routed.n_layers}"
    yield f"weights{in_type}: {done.size}"
    yield f"checked: logits of {done.n_checked} tokens within {done.difference:.1e} of the routed model's"
    if arguments.clock:
        yield _clocked(routed, done.folder)
    yield f"{done.format}: {done.folder}"
    if arguments.format == "peft" and is_gguf(routed.base_id):
        yield "PEFT loads it onto the base as a plain checkpoint: its README.md has the command that writes one"


def _clocked(routed: Any, folder: Path) -> str:
    from drllm.deploy.formats.checkpoint import load_written
    from drllm.evaluation.clock import model_ratio
    from drllm.model.copies import plain_twin, random_ids

    with said_if_slow("loading the checkpoint and the base, to time them in turn ..."):
        models = load_written(routed, folder), plain_twin(routed).eval()
    found = model_ratio(*models, random_ids(routed, CLOCK_PROMPT), CLOCK_TOKENS, CLOCK_ROUNDS)
    seconds = of_the_seconds(found["ratio"], found["ratio_low"], found["ratio_high"])
    return f"clock: {seconds} for {CLOCK_TOKENS} tokens behind {CLOCK_PROMPT}, in transformers, {CLOCK_ROUNDS} times in turn"


def add_flags(parser: Parser) -> None:
    parser.add_argument("--policy", metavar="FOLDER", help="a saved policy of one route (static, healed), which knows its model")
    parser.add_argument("--route", metavar="ROUTE", help=ROUTE_HELP)
    parser.add_argument("--format", choices=FORMATS, default="checkpoint", help="what to write (default: checkpoint); see docs/export.md")
    parser.add_argument("--clock", action="store_true", help="checkpoint: time it against the base in transformers, here and now")
    parser.add_argument("--out", metavar="OUT", help="new folder for the export; an earlier export there is replaced")
    add_common(parser, "model", "dtype", "device")
