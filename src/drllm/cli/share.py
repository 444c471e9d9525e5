"""`drllm evaluate --harness`, `compare`, `export`, `info` and `push`: figures and models for where other people work."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.cli.job import Job, Lines, policy_model, searched_model
from drllm.cli.options import common_flags
from drllm.core.errors import InputError
from drllm.core.files import write_json

if TYPE_CHECKING:
    from drllm.core.config import EvaluateConfig


def evaluate_on_harness(job: Job, out: Path, config: EvaluateConfig) -> Lines:
    """Run `drllm evaluate --harness`."""
    if controls := {name for name in job.common.methods if name.partition("-")[0] in ("random", "shuffled")}:
        raise InputError(f"control {min(controls)!r} cannot run under --harness: `drllm evaluate` without it has the controls")
    tasks = job.common.tasks or job.need("tasks")
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-evaluation-harness is not installed: pip install '.[eval]' in a clone of drllm")
    try:
        harness_args = shlex.split(job.arguments.harness_args)
    except ValueError as error:
        raise InputError(f"--harness-args {job.arguments.harness_args!r} cannot be split into words ({error})") from None
    model, dtype = searched_model(job, out) if out.is_dir() else (job.need("model"), "")
    from drllm.evaluation.harness.compare import render
    from drllm.evaluation.harness.run import evaluate_harness, harness_folder, render_routing

    summary = evaluate_harness(
        job.load(model, dtype), job.common.methods, tasks, out, config, job.common.data or None, harness_args, job.argv
    )
    yield render_routing(summary)
    if summary["rows"]:
        yield render(summary["rows"], summary["reference"])
    yield f"summary: {harness_folder(out, tasks, config, harness_args) / 'summary.json'}"


def compare_logs(job: Job) -> Lines:
    """Run `drllm compare`."""
    from drllm.evaluation.harness.compare import compare, read_scores, render

    folders = {}
    for given in job.arguments.folders:
        name, separator, folder = given.partition("=")
        if not separator or not name or not folder:
            raise InputError(f"{given!r} names no method: write NAME=FOLDER, for example base=runs/a/harness/tune/base")
        if name in folders:
            raise InputError(f"method {name!r} is given twice: give each folder its own name")
        folders[name] = folder
    rows = compare({name: read_scores(folder) for name, folder in folders.items()}, job.arguments.resamples, job.arguments.seed)
    yield render(rows, next(iter(folders)))
    if job.common.out:
        write_json(Path(job.common.out), rows)
        yield f"rows: {job.common.out}"


def export_route(job: Job) -> Lines:
    """Run `drllm export`."""
    arguments, out = job.arguments, job.need("out")
    if arguments.route is not None and arguments.policy is not None:
        raise InputError("got both --route and --policy: an export has one route, leave one of them out")
    if arguments.route is None and arguments.policy is None:
        raise InputError("no route to export: give --route or --policy")
    from drllm.core.route import Route

    route = None if arguments.route is None else Route.parse(arguments.route)
    routed = policy_model(job) if route is None else job.load(job.need("model"))
    if route is None:
        assert routed.policy is not None
        route = routed.policy.route
        if routed.policy is not None and routed.policy.evaluate_only:
            raise InputError(f"a {routed.policy.name!r} policy is for evaluation only: export a static one")
        if route is None:
            raise InputError(
                f"a {routed.policy.name!r} policy decides each prompt's route, which no plain checkpoint can: export a static one"
            )
    from drllm.deploy.export import export

    done = export(routed, route, out)
    yield f"route {done.route}: {done.n_blocks} blocks instead of {routed.n_layers}"
    yield f"weights: {done.n_bytes / 1e6:.1f} MB, of which {done.copied_bytes / 1e6:.1f} MB are second copies of repeated blocks"
    yield f"checked: logits of {done.n_checked} tokens within {done.difference:.1e} of the routed model's"
    yield f"checkpoint: {done.folder}"


def show_card(job: Job) -> Lines:
    """Run `drllm info`."""
    from drllm.policies import saved as artifact
    from drllm.policies.card import CARD_FILE

    place = Path(job.arguments.name)
    if (place / "drllm_export.json").is_file():
        from drllm.deploy.export import check_export

        check_export(place)
    else:
        place = artifact.locate(job.arguments.name, job.arguments.revision)
        artifact.check_files(place, artifact.read(place))
        if not (place / CARD_FILE).is_file():  # saved before there were cards
            yield artifact.card(place).rstrip()
            return
    yield (place / CARD_FILE).read_text(encoding="utf-8").rstrip()


def push_policy(job: Job) -> Lines:
    """Run `drllm push`."""
    from drllm.policies import saved as artifact

    arguments = job.arguments
    yield artifact.push(Path(arguments.folder), arguments.repo, arguments.revision, arguments.private or None)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `drllm compare`."""
    parser.add_argument(
        "folders", nargs="+", metavar="NAME=FOLDER", help="sample logs of lm-evaluation-harness; the first is the reference"
    )
    parser.add_argument("--out", metavar="FILE.json", help="write the rows there too")
    parser.add_argument("--resamples", type=int, default=10_000, metavar="N", help="bootstrap resamples (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    common_flags()(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `drllm export`."""
    parser.add_argument("--policy", metavar="FOLDER", help="a saved static policy; it knows its own model, which --model can override")
    parser.add_argument("--route", metavar="1102...", help="one digit a block: 0 skip, 1 execute, 2 repeat")
    common_flags("model", "dtype", "device", "out")(parser)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `drllm info`."""
    parser.add_argument("name", metavar="FOLDER|ID", help="a saved policy, or an exported checkpoint; a folder, or a policy's Hub id")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id")
    common_flags()(parser)


def add_push(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `drllm push`."""
    parser.add_argument("folder", metavar="FOLDER", help="a saved policy")
    parser.add_argument("repo", metavar="ID", help="Hub id, such as someone/smollm2-routers; made if there is none")
    parser.add_argument("--revision", metavar="NAME", help="branch to commit to; made if there is none")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    common_flags()(parser)
