"""Answer prompts with the base, a saved policy or a given route.

Prints each answer, its route and its passes.

example:
  drllm generate "Why is the sky blue?" --policy runs/a/routers --any-format --chat
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from drllm.cli.job import Job, Lines
from drllm.cli.options import ROUTE_HELP, Namespace, Parser, add_common, number
from drllm.core.errors import InputError
from drllm.core.progress import said_if_slow
from drllm.core.route import Route

if TYPE_CHECKING:
    from drllm.model.prompts import Prompt
    from drllm.model.routed import RoutedModel

BATCH = 8  # prompts generated together
SHOWN = ("policy", "route", "model", "chat", "max_new_tokens", "beside_base", "control", "epsilon", "dtype", "any_format")


def run(job: Job) -> Lines:
    arguments = job.arguments
    job.check_route("a prompt has one route")
    if arguments.control is not None and arguments.policy is None:
        raise InputError("--control sets how readily trained routers skip or repeat: give --policy too")
    if arguments.epsilon is not None and arguments.policy is None:
        raise InputError("--epsilon asks for a policy's promise: give --policy too")
    prompts = read_prompts(arguments)
    if arguments.epsilon is not None and arguments.policy is not None:
        from drllm.model.generation import check_promise
        from drllm.policies.saved import open_policy

        check_promise(open_policy(arguments.policy).unchecked(), arguments.epsilon)
    routed, route = load_controlled(job)
    how: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    checked = {"epsilon": arguments.epsilon, "check_prompt_format": not arguments.any_format}
    full = Route.full(routed.n_layers)
    for start in range(0, len(prompts), BATCH):
        together = [as_prompt(text, arguments.chat) for text in prompts[start : start + BATCH]]
        with said_if_slow(f"answering {len(together)} of {len(prompts)} prompts, at most {arguments.max_new_tokens} tokens each ..."):
            outputs = routed.generate(together, policy=route, **checked, **how)
            base = routed.generate(together, policy=full, **how) if arguments.beside_base else []
        for place, output in enumerate(outputs):
            if base:
                yield from _answer(base[place], "base", routed.n_layers, arguments.chat)
            yield from _answer(output, f"route {output.route}", routed.n_layers, arguments.chat)


def _answer(output: Any, whose: str, n_layers: int, chat: bool) -> Lines:
    yield (output.text or "").strip() or f"(no text: the model ended at once{'' if chat else '; try --chat'})"
    yield f"[{whose}, {output.route.n_passes} passes of {n_layers}, {output.n_new_tokens} tokens]"


def add_flags(parser: Parser) -> None:
    add_prompt_flags(parser, n_tokens=64)
    parser.add_argument("--route", metavar="ROUTE", help=ROUTE_HELP)
    promised = "refuse a policy without the promise (`drllm train --calibrate`) to lose at most this accuracy"
    parser.add_argument("--epsilon", type=number, metavar="X", help=promised)
    parser.add_argument("--beside-base", action="store_true", help="above each answer, that of the base")
    add_common(parser, "model", "dtype", "device")


def add_prompt_flags(parser: Parser, n_tokens: int) -> None:
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="a prompt; without any, one a line from standard input")
    add("--policy", metavar="FOLDER", help="a saved policy; it knows its own model, which --model can override")
    control = "the control of routers (appendix C), from -1 (skip) to 1 (repeat); -0.5 is as trained"
    add("--control", type=number, metavar="P", help=control)
    add("--chat", action="store_true", help="put each prompt into the chat template as the user's message")
    add("--any-format", action="store_true", help="use the policy even on a prompt format it was not trained on")
    add("--max-new-tokens", type=int, default=n_tokens, metavar="N", help=f"longest answer, in tokens (default: {n_tokens})")


def load_controlled(job: Job) -> tuple[RoutedModel, Route | None]:
    """`Job.load_routed`, the policy under the control that --control gives."""
    from drllm.policies.routers import controlled

    routed, route = job.load_routed()
    if job.arguments.control is not None and routed.policy is not None:
        routed.policy = controlled(routed.policy, job.arguments.control)
    return routed, route


def as_prompt(text: str, chat: bool) -> Prompt:
    """The text as the model is asked: as it is, or as a user's message."""
    return [{"role": "user", "content": text}] if chat else text


def read_prompts(arguments: Namespace) -> list[str]:
    """Of the command line or standard input; `InputError` when there is none, one is empty, or no answer is wanted."""
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {arguments.max_new_tokens}, expected at least 1")
    try:
        piped = b"" if arguments.prompt or sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
        prompts = list(arguments.prompt) or [line for line in piped.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    if not prompts:
        raise InputError("no prompt: give it as an argument, or one a line on standard input")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise InputError(f"prompt {index} is empty: give it at least one token")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError(f"prompt {index} is not valid UTF-8 text: pass it on standard input, saved as UTF-8")
    return prompts
