"""`drllm serve`: a policy behind an OpenAI-compatible server, on vLLM."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shlex
import sys
import warnings
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import common_flags
from drllm.core.errors import InputError


def serve(job: Job) -> Lines:
    """Check everything that can be checked, then become the server."""
    arguments = job.arguments
    base = arguments.base or job.common.model
    check_flags(arguments, base)
    extra = words_of(arguments.vllm_args)
    from drllm.deploy.serving import launch as launching

    launching.check_port(arguments.port)
    if not arguments.print:
        launching.check_installed()
        launching.check_address(arguments.host, arguments.port)
    warn_if_open(arguments.host, arguments.api_key or os.environ.get("VLLM_API_KEY", ""))
    from drllm.model.routed import RoutedModel
    from drllm.policies import saved as artifact

    placement = job.placement()
    placement["device"] = placement["device"] or engine_device()
    folder = ""
    if arguments.policy:
        place = artifact.locate(arguments.policy)
        artifact.read(place)
        folder = str(place.resolve())
        routed = RoutedModel.from_pretrained(place, base=base or None, **placement)
    else:
        routed = RoutedModel.wrap(base, **placement)
    arch = launching.check_supported(routed)
    spec = launching.make_spec(routed.policy, folder, routed, arguments.decide, arguments.repeatable, arguments.any_format)
    launching.check_extra(extra, spec.mode)
    checkpoint = launching.checkpoint_of(routed, launching.cache_folder())
    limit = getattr(routed.config, "max_position_embeddings", None) or 4096
    context = arguments.max_model_len or min(limit, 8192)
    if not 0 < context <= limit:
        raise InputError(f"--max-model-len is {context}, the model's context is {limit} tokens")
    name = arguments.name or Path(routed.base_id).name
    dtype, device = str(routed.model.dtype).removeprefix("torch."), routed.device.type
    server = launching.Server(
        checkpoint, arch, name, dtype, device, arguments.host, arguments.port, context, arguments.eager, arguments.api_key, extra
    )
    started = launching.launch(spec, server)
    del routed
    decided = {"static": f"one route, {spec.route}", "book": "a codebook decides before the engine",
               "engine": "the policy decides in the engine", "forced": "the base, or a request's own route"}[spec.mode]  # fmt: skip
    yield f"serving {name}: {decided}"
    if arguments.print:
        warn_if_it_cannot_run()
        shown = started.env | ({"VLLM_API_KEY": "..."} if arguments.api_key else {})
        yield shlex.join(["env", *(f"{key}={value}" for key, value in shown.items()), *started.argv])
        return
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    where = f"http://{host}:{arguments.port}"
    yield f"ready when {where}/health answers; playground: {where}/drllm; API: {where}/v1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(started.argv[0], started.argv, os.environ | started.env)


def check_flags(arguments: argparse.Namespace, base: str) -> None:
    """`InputError` where there is nothing to serve, and for flags that say something of a policy where none is served."""
    if arguments.policy:
        return
    if not base:
        raise InputError(
            "nothing to serve: give a saved policy's folder, or --base to serve a model along the routes that requests ask for"
        )
    if arguments.decide != "auto":
        raise InputError(f"--decide {arguments.decide} says where a policy decides, and none is served: give its folder, or leave it out")
    if arguments.any_format:
        raise InputError("--any-format is about what a policy was trained on, and none is served: give its folder, or leave it out")


def words_of(text: str) -> list[str]:
    """vLLM's own flags, split as a shell would."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"--vllm-args {text!r} cannot be split into words ({error})") from None


def warn_if_it_cannot_run() -> None:
    """Warn where the Python of a printed command has no vLLM to start."""
    from drllm.deploy.serving.launch import check_installed

    try:
        check_installed()
    except InputError as error:
        warnings.warn(f"this command cannot run as it is: {error}", stacklevel=2)


def warn_if_open(host: str, key: str) -> None:
    """Warn of a server that others than this machine can ask without a key."""
    if not key and (who := who_reaches(host)):
        warnings.warn(f"{who} can use this server without a key: give --api-key, or leave --host out for this machine alone", stacklevel=2)


def who_reaches(host: str) -> str:
    """Who can reach a server that listens on this address; "" for this machine alone."""
    if host == "localhost":
        return ""
    try:
        address = ipaddress.ip_address(host or "0.0.0.0")  # as sockets read an empty one
    except ValueError:  # a name
        return f"whoever reaches {host}"
    if address.is_loopback:
        return ""
    return "whoever reaches any address of this machine" if address.is_unspecified else f"whoever reaches {host}"


def engine_device() -> str:
    """Where vLLM runs unless told: a GPU where torch sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def add_serve(parser: argparse.ArgumentParser) -> None:
    """The flags of `drllm serve`."""
    parser.add_argument("policy", nargs="?", default="", metavar="POLICY", help="a saved policy: a folder, or its id on the Hub")
    parser.add_argument(
        "--base", default="", metavar="ID", help="the model, where the policy's own is elsewhere; alone: no policy, forced routes"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (default: 8000)")
    parser.add_argument("--name", default="", help="the model's name in requests (default: the base's)")
    parser.add_argument("--api-key", default="", metavar="KEY", help="refuse requests to /v1 without this bearer token")
    parser.add_argument("--decide", choices=("auto", "front", "engine"), default="auto",
                        help="where the policy decides: before the engine (codebooks) or in it, at prefill (default: auto)")  # fmt: skip
    parser.add_argument("--repeatable", default="auto", metavar="BLOCKS",
                        help="blocks with a cache for a second pass: all, none, or 3,17 (default: auto, those it repeats)")  # fmt: skip
    parser.add_argument("--any-format", action="store_true", help="take prompts of a format that the policy was not trained on")
    parser.add_argument("--max-model-len", type=int, default=0, metavar="N",
                        help="longest prompt and answer together (default: the model's context, at most 8192)")  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="do not compile: starts in seconds, decodes slower")
    parser.add_argument("--vllm-args", default="", metavar="'...'", help="more of vLLM's own flags, as one text: --vllm-args='--seed 1'")
    parser.add_argument("--print", action="store_true",
                        help="print the command and its environment instead of starting it (writes a GGUF's plain checkpoint)")  # fmt: skip
    common_flags("model", "dtype", "device")(parser)
