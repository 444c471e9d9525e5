"""Show what a policy sees of one prompt and what it decides.

Prints the windows, each block's probabilities or each route's predicted gain, and the answer.

example:
  drllm inspect "Why is the sky blue?" --policy runs/a/routers --any-format --chat
"""

from drllm.cli.generate import add_prompt_flags, as_prompt, load_controlled, read_prompts
from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common
from drllm.core.errors import InputError


def run(job: Job) -> Lines:
    arguments = job.arguments
    if arguments.policy is None:
        raise InputError("inspect looks into a policy: give --policy FOLDER")
    prompts = read_prompts(arguments)
    if len(prompts) > 1:
        raise InputError(f"got {len(prompts)} prompts, expected one: quote it")
    routed, _ = load_controlled(job)
    from drllm.deploy.inspection import inspect, render

    prompt = as_prompt(prompts[0], arguments.chat)
    found = inspect(routed, prompt, max_new_tokens=arguments.max_new_tokens, check_prompt_format=not arguments.any_format)
    yield render(found)


def add_flags(parser: Parser) -> None:
    add_prompt_flags(parser, n_tokens=16)
    add_common(parser, "model", "dtype", "device")
