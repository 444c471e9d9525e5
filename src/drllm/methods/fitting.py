"""`train()`: read a run's records, hand them to a method, get a policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drllm.core.config import to_dict
from drllm.core.errors import InputError
from drllm.methods.base import Method, get_method, method_of
from drllm.methods.training_data import TrainingData
from drllm.model.routed import RoutedModel
from drllm.policies.policy import Policy
from drllm.runs.layout import RunFolder
from drllm.runs.provenance import running


def train(
    routed: RoutedModel,
    run: str | Path,
    method: str | Any = "routers",
    config: Any = None,
    argv: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    name: str = "",
) -> Policy:
    """Fit a policy on the records of a run folder.

    Args:
        routed: the model the records were made with; its base weights are only read.
        run: the run folder given to `search`; metrics go to `run/train/<name>/`.
        method: a method, its name (`drllm methods`), or its options, which name it.
        config: its options.
        tasks: learn from these tasks of the run only; none: from all.
        name: what the policy is called in the run; default the method's name.

    `ArtifactError` for no records, an unfinished search, or records of other weights; `InputError` for an unknown method or other options.
    """
    is_named = isinstance(method, str | Method)
    chosen: Method = method if isinstance(method, Method) else get_method(method) if isinstance(method, str) else method_of(method)
    config = config if config is not None else chosen.config() if is_named else method
    if type(config) is not chosen.config:
        raise InputError(f"method {chosen.name!r} takes a {chosen.config.__name__}, got a {type(config).__name__}")
    run = Path(run)
    folder = RunFolder(run).training(name or chosen.name)
    folder.mkdir(parents=True, exist_ok=True)
    training_data = TrainingData(routed, run, tasks)
    with running(run, "train", {"method": chosen.name, "name": name or chosen.name, "tasks": list(tasks)} | to_dict(config), argv):
        policy = chosen.fit(routed, training_data, config, folder)
    return policy
