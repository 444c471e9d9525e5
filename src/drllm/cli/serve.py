"""Serve a policy on vLLM behind an OpenAI-compatible API.

It may be one route, a codebook (a few routes and a selector) or routers; or requests name their routes.

example:
  drllm serve runs/a/codebook --port 8000
"""

import ipaddress
import os
import shlex
import sys
import warnings
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common, split_words
from drllm.core.errors import InputError
from drllm.core.progress import said_if_slow
from drllm.core.text import type_name
from drllm.deploy.serving.spec import ServeSpec

SHOWN = ("base", "host", "port", "name", "api_key", "repeatable", "any_format", "max_model_len", "vllm_args", "print")  # by --help


def run(job: Job) -> Lines:
    arguments = job.arguments
    base = arguments.base or job.common.model
    if not (arguments.policy or base):
        raise InputError("nothing to serve: give a saved policy's folder, or --base for a model along the routes that requests ask for")
    if arguments.any_format and not arguments.policy:
        raise InputError("--any-format is about what a policy was trained on, and none is served: give its folder, or leave it out")
    extra = split_words("--vllm-args", arguments.vllm_args)
    from drllm.deploy.serving import launch as launching

    if not 0 < arguments.port < 65536:
        raise InputError(f"--port is {arguments.port}, expected 1 to 65535")
    if not arguments.print:
        launching.check_installed()
        launching.check_address(arguments.host, arguments.port)
    if not (arguments.api_key or os.environ.get("VLLM_API_KEY") or is_this_machine(arguments.host)):
        who = f"whoever reaches {arguments.host or 'any address of this machine'}"
        warnings.warn(f"{who} can use this server without a key: give --api-key, or leave --host out for this machine alone", stacklevel=2)
    from drllm.model.routed import RoutedModel
    from drllm.policies.saved import open_policy

    saved = open_policy(arguments.policy) if arguments.policy else None
    folder = str(saved.folder.resolve()) if saved else ""
    with job.loading(base or (saved.config.base_id if saved else "")) as placement:
        routed = RoutedModel.from_pretrained(saved, base=base or None, **placement) if saved else RoutedModel.wrap(base, **placement)
    name = arguments.name or Path(routed.base_id).name
    cache = launching.cache_folder()
    with said_if_slow("writing the checkpoint that vLLM loads ..."):
        if routed.policy is not None and routed.policy.adapters and routed.policy.route is not None:
            routed, folder = launching.merged(routed, cache), ""
        arch = launching.check_supported(routed)
        spec = launching.make_spec(routed.policy, folder, routed, arguments.repeatable, arguments.any_format)
        checkpoint = launching.checkpoint_of(routed, cache, launching.stack_of(routed.policy))
    limit = getattr(routed.config, "max_position_embeddings", None) or 4096
    context = arguments.max_model_len or min(limit, 8192)
    if not 0 < context <= limit:
        raise InputError(f"--max-model-len is {context}, the model's context is {limit} tokens")
    flags = {"--model": checkpoint, "--served-model-name": name, "--dtype": type_name(routed.model.dtype)}
    flags |= {"--host": arguments.host, "--port": arguments.port, "--max-model-len": context}
    argv, env = launching.launch(spec, arch, routed.device.type, flags, arguments.api_key, extra)
    del routed
    yield f"serving {name}: {_said(spec)}"
    if arguments.print:
        try:
            launching.check_installed()
        except InputError as error:
            warnings.warn(f"this command cannot run as it is: {error}", stacklevel=2)
        shown = env | ({"VLLM_API_KEY": "..."} if arguments.api_key else {})
        yield shlex.join(["env", *(f"{key}={value}" for key, value in shown.items()), *argv])
        return
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    where = f"http://{host}:{arguments.port}"
    yield f"ready when {where}/health answers; API: {where}/v1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, os.environ | env)


def _said(spec: ServeSpec) -> str:
    if spec.mode == "static":
        return f"one route, {spec.route}"
    if spec.mode == "engine":
        sooner = "; a codebook trained with --read text decides before it, and keeps the prefix cache" if spec.routes else ""
        return f"the policy decides in the engine{sooner}"
    return "the policy chooses each prompt's route from its text" if spec.policy else "the base, or a request's own route"


def is_this_machine(host: str) -> bool:
    """Whether a server that listens on this address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("policy", nargs="?", default="", metavar="POLICY", help="a saved policy: a folder, or its id on the Hub")
    add("--base", default="", metavar="ID", help="the model, where the policy's own is elsewhere; alone: no policy, forced routes")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, metavar="N", help="port to listen on (default: 8000)")
    add("--name", default="", help="the model's name in requests (default: the base's)")
    add("--api-key", default="", metavar="KEY", help="refuse requests to /v1 without this bearer token")
    repeatable = "blocks with a cache for a second pass: all, or 3,17 (3:3 or all:3 for three passes; default: auto, the policy's)"
    add("--repeatable", default="auto", metavar="BLOCKS", help=repeatable)
    add("--any-format", action="store_true", help="take prompts of a format that the policy was not trained on")
    context = "longest prompt and answer together (default: the model's context, at most 8192)"
    add("--max-model-len", type=int, default=0, metavar="N", help=context)
    more = "more of vLLM's own flags, as one text: --vllm-args='--enforce-eager' starts sooner and decodes slower"
    add("--vllm-args", default="", metavar="'...'", help=more)
    shown = "print the command and its environment instead of starting it (writes a GGUF's plain checkpoint)"
    add("--print", action="store_true", help=shown)
    add_common(parser, "model", "dtype", "device")
