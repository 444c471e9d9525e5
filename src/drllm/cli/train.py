"""Train a policy on a run's records and save it in OUT/METHOD.

METHOD is the name of --method, or --name where that is given.
The model is the searched one; --model says where it is now.

example:
  drllm train --out runs/a --method routers --epochs 10
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import add_common, add_section, section_class
from drllm.core.errors import InputError
from drllm.methods.base import get_method
from drllm.runs.names import check_name

DEFAULT = "routers"
SHOWN = ("method", "name", "out", "tasks", "calibrate", "epsilon", "model")  # by --help


def run(job: Job) -> Lines:
    out, method = Path(job.out), get_method(job.arguments.method)
    config, promise = job.config(job.arguments.method), job.config("promise")
    if job.arguments.name:
        check_name(job.arguments.name)
    model, dtype = job.searched_model(out)
    from drllm.evaluation.fit import fit_policy

    tasks = job.tasks() if job.common.tasks else ()
    folder = fit_policy(job.load(model, dtype), out, method.name, config, job.argv, promise, tasks, job.arguments.name)
    if promise.calibrate:
        from drllm.policies.saved_config import read_config

        found = read_config(folder).promise
        assert found is not None, "a calibrated policy is saved with its promise"
        for row in found["tested"]:
            measured = f"{100 * row['difference']:+.1f} points, {row['mean_passes']:.2f} passes, p {row['p']:.4f}"
            yield f"point {row['point']}: {measured}, {'passed' if row['passed'] else 'failed'}"
        yield f"promise: {found['sentence']}"
        if found["point"] is None:
            yield f"policy: {folder}, which is the base now; without --calibrate it is what was trained"
            return
    yield f"policy: {folder}"
    yield f"compare it: drllm evaluate --out {shlex.quote(str(out))} --methods base,{folder.name} --split tune --limit 100"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "out")
    how = f"how to train, see `drllm methods`; each has flags of its own (default: {DEFAULT})"
    parser.add_argument("--method", default=DEFAULT, metavar="NAME", help=how)
    called = "what to call the policy, to keep several of one method in a run (default: the method's name)"
    parser.add_argument("--name", default="", help=called)
    add_section(parser, "promise", about="a promise of the policy's accuracy")


def add_method_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--method", nargs="?", default=DEFAULT)
    name = finder.parse_known_args(arguments)[0].method or DEFAULT
    try:
        add_section(parser, name, about="options of the method")
        parser.shown = (*SHOWN, *(item.name for item in fields(section_class(name))[:4]))  # type: ignore[attr-defined]
    except argparse.ArgumentError as error:
        raise InputError(f"method {name!r} has an option that `drllm train` has itself ({error}): its author must rename it") from None
