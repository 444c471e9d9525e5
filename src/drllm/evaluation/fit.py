"""Train a policy, let it be promised if asked to, and save it into its run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drllm.core.config import PromiseConfig
from drllm.evaluation.calibrate import calibrate
from drllm.methods.fitting import train
from drllm.model.routed import RoutedModel
from drllm.policies.policy import RouteSource
from drllm.policies.saved import save_policy
from drllm.runs.card_facts import refresh_card
from drllm.runs.layout import RunFolder


def fit_policy(
    routed: RoutedModel,
    run: Path,
    method: str,
    config: Any = None,
    argv: Sequence[str] | None = None,
    promise: PromiseConfig | None = None,
    tasks: Sequence[str] = (),
    name: str = "",
) -> Path:
    """Train one method on `tasks` (none: all of the run), calibrate it if `promise` names a split, and save it as `run/<name>`.

    `name` is the method's by default. The model's own policy stays what it was.
    """
    policy = train(routed, run, method, config, argv, tasks, name)
    if promise is not None and promise.calibrate:
        policy, _ = calibrate(routed, run, policy, promise, argv, tasks)
    return save_as(routed, policy, RunFolder(run).policy(name or method))


def save_as(routed: RoutedModel, policy: RouteSource, folder: Path) -> Path:
    save_policy(policy, routed.identity, folder)
    return refresh_card(folder).folder


@contextmanager
def under_policy(routed: RoutedModel, policy: RouteSource | None) -> Iterator[None]:
    """The model under another policy, for a while."""
    before, routed.policy = routed.policy, policy
    try:
        yield
    finally:
        routed.policy = before
