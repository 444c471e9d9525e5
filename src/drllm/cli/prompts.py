"""`drllm generate` and `drllm inspect`: prompts answered, and one looked into."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.cli.job import Job, Lines, policy_model
from drllm.cli.options import common_flags, number
from drllm.core.errors import InputError

if TYPE_CHECKING:
    from drllm.model.prompts import Prompt
    from drllm.model.routed import RoutedModel

BATCH = 8  # prompts generated together
DEFAULT_NEW_TOKENS = 64
INSPECTED_TOKENS = 16


def generate(job: Job) -> Lines:
    """Run `drllm generate`."""
    arguments = job.arguments
    _check_length(arguments)
    if arguments.route is not None and arguments.policy is not None:
        raise InputError("got both --route and --policy: a prompt has one route, leave one of them out")
    if arguments.control is not None and arguments.policy is None:
        raise InputError("--control turns the knob of trained routers: give --policy too")
    if arguments.epsilon is not None and arguments.policy is None:
        raise InputError("--epsilon asks for a policy's promise: give --policy too")
    from drllm.core.route import Route

    route = None if arguments.route is None else Route.parse(arguments.route)
    prompts = _prompts(arguments)
    routed = _under_control(job) if arguments.policy is not None else job.load(job.need("model"))
    for start in range(0, len(prompts), BATCH):
        batch = [_as_prompt(text, arguments.chat) for text in prompts[start : start + BATCH]]
        outputs = routed.generate(
            batch, policy=route, max_new_tokens=arguments.max_new_tokens, check_prompt_format=not arguments.any_format,
            epsilon=arguments.epsilon, do_sample=False,
        )  # fmt: skip
        for output in outputs:
            yield (output.text or "").strip()
            yield f"[route {output.route}, {output.route.n_passes} passes of {routed.n_layers}, {output.n_new_tokens} tokens]"


def inspect_prompt(job: Job) -> Lines:
    """Run `drllm inspect`."""
    arguments = job.arguments
    _check_length(arguments)
    if arguments.policy is None:
        raise InputError("inspect looks into a policy: give --policy FOLDER")
    prompts = _prompts(arguments)
    if len(prompts) > 1:
        raise InputError(f"got {len(prompts)} prompts, expected one: quote it")
    routed = _under_control(job)
    from drllm.deploy.inspection import inspect, render

    found = inspect(
        routed, _as_prompt(prompts[0], arguments.chat), max_new_tokens=arguments.max_new_tokens,
        check_prompt_format=not arguments.any_format,
    )  # fmt: skip
    coloured = sys.__stdout__ is not None and sys.__stdout__.isatty() and not os.environ.get("NO_COLOR")
    yield render(found, shutil.get_terminal_size((100, 24)).columns, coloured)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """The flags of `drllm generate`."""
    _add_prompt_flags(parser, DEFAULT_NEW_TOKENS)
    parser.add_argument("--route", metavar="1102...", help="one digit a block: 0 skip, 1 execute, 2 repeat")
    parser.add_argument(
        "--epsilon",
        type=number,
        metavar="X",
        help="refuse a policy that is not promised (`drllm train --calibrate`) to lose less than this",
    )
    common_flags("model", "dtype", "device")(parser)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """The flags of `drllm inspect`."""
    _add_prompt_flags(parser, INSPECTED_TOKENS)
    common_flags("model", "dtype", "device")(parser)


def _add_prompt_flags(parser: argparse.ArgumentParser, n_tokens: int) -> None:
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="a prompt; without any, one a line from --file or standard input")
    parser.add_argument("--policy", metavar="FOLDER", help="a saved policy; it knows its own model, which --model can override")
    parser.add_argument(
        "--control", type=number, metavar="P", help="appendix C's knob of routers, -1 (skip) to 1 (repeat); -0.5 is the router"
    )
    parser.add_argument("--chat", action="store_true", help="put each prompt into the chat template as the user's message")
    parser.add_argument("--any-format", action="store_true", help="use the policy even on the prompt format it was not trained on")
    parser.add_argument("--file", metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument(
        "--max-new-tokens", type=int, default=n_tokens, metavar="N", help=f"longest answer, in tokens (default: {n_tokens})"
    )


def _check_length(arguments: argparse.Namespace) -> None:
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {arguments.max_new_tokens}, expected at least 1")


def _under_control(job: Job) -> RoutedModel:
    """The saved policy on its base, its knob turned as --control says."""
    routed = policy_model(job)
    if job.arguments.control is not None and routed.policy is not None:
        routed.policy = routed.policy.with_control(job.arguments.control)
    return routed


def _as_prompt(text: str, chat: bool) -> Prompt:
    return [{"role": "user", "content": text}] if chat else text


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """Prompts from the command line, --file or standard input; `InputError` when there is none or one is empty."""
    if arguments.prompt and arguments.file:
        raise InputError("got prompts both as arguments and by --file: give one of them")
    if arguments.prompt:
        prompts = list(arguments.prompt)
    else:
        try:
            text = Path(arguments.file).read_bytes() if arguments.file else _stdin()
            prompts = [line for line in text.decode("utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise InputError(
                f"cannot read {arguments.file!r} ({error.strerror}): --file expects a text file with one prompt a line"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(f"{arguments.file or 'standard input'} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    if not prompts:
        raise InputError("no prompt: give it as an argument, one a line in --file FILE, or on standard input")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise InputError(f"prompt {index} is empty: give it at least one token")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError(f"prompt {index} is not valid UTF-8 text: pass it through --file, saved as UTF-8")
    return prompts


def _stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return sys.stdin.buffer.read()
