"""The commands around methods: train a policy, list what can train one."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from drllm.cli.job import Job, Lines, searched_model
from drllm.cli.options import add_flags, common_flags
from drllm.core.config import SECTIONS
from drllm.core.errors import InputError
from drllm.methods.base import get_method, method_names
from drllm.runs.names import check_name

RETROFITTED = ("static", "routers")  # what `drllm retrofit` trains, in this order
DEFAULT = "routers"


def add_train(parser: argparse.ArgumentParser) -> None:
    """Flags of `drllm train` that every method has."""
    common_flags("model", "dtype", "device", "tasks", "out")(parser)
    parser.add_argument(
        "--method", default=DEFAULT, metavar="NAME", help=f"what to fit, see `drllm methods`; each has its own flags (default: {DEFAULT})"
    )
    parser.add_argument("--name", default="", help="what to call the policy, for several of one method in a run (default: as the method)")
    add_flags(parser, SECTIONS["gate"], title="a promise (section `gate` of the YAML file)")


def add_method_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """The flags of the method that the command line names."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--method", nargs="?", default=DEFAULT)
    name = finder.parse_known_args(arguments)[0].method or DEFAULT
    try:
        add_flags(parser, get_method(name).config, title=f"method {name} (section `{name}` of the YAML file)")
    except argparse.ArgumentError as error:
        raise InputError(f"method {name!r} has an option that `drllm train` has itself ({error}): its author must rename it") from None


def train_policy(job: Job) -> Lines:
    """`drllm train`."""
    out, method = Path(job.need("out")), get_method(job.arguments.method)
    config, promise = job.options(method), job.config("gate")
    if job.arguments.name:
        check_name(job.arguments.name)
    model, dtype = searched_model(job, out)
    from drllm.evaluation.fit import fit_policy

    tasks = job.tasks() if job.common.tasks else ()
    folder = fit_policy(job.load(model, dtype), out, method.name, config, job.argv, promise, tasks, job.arguments.name)
    if promise.calibrate:
        from drllm.policies import saved as artifact

        guarantee = artifact.read(folder).guarantee
        assert guarantee is not None, "the gate writes what it found"
        for row in guarantee["tested"]:
            yield (
                f"point {row['point']}: {100 * row['difference']:+.1f} points, {row['mean_passes']:.2f} passes, p {row['p']:.4f}, "
                f"{'passed' if row['passed'] else 'failed'}"
            )
        yield f"guarantee: {guarantee['sentence']}"
    yield f"policy: {folder}"


def list_methods(job: Job) -> Lines:
    """`drllm methods`."""
    for name in method_names():
        method = get_method(name)
        yield f"{name:16} {method.about}"
        yield textwrap.indent(f"{method.paper}; drllm train --method {name}", " " * 17)
