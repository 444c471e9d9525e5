"""What answers questions by itself and decides no route: trained, saved and compared as policies are, but never one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import ArtifactError
from drllm.methods.base import Method, get_method
from drllm_research.rivals.fit import FLEXIDEPTH, MINDSKIP

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel

EVALUATORS = {method.name: method for method in (MINDSKIP, FLEXIDEPTH)}


def method_named(name: str) -> Method:
    return EVALUATORS.get(name) or get_method(name)


def fit_evaluator(
    routed: RoutedModel, run: Path, method: str, config: Any, argv: Sequence[str] | None, tasks: Sequence[str], folder: Path
) -> None:
    """Train one on a run's records and save it, bound to the base's weights."""
    from drllm.core.digest import file_digest
    from drllm.methods.fitting import train
    from drllm.policies.saved_config import SavedConfig

    made: Any = train(routed, run, EVALUATORS[method], config, argv, tasks, folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: file_digest(folder / name) for name in made.save(folder)}
    SavedConfig(method, *astuple(routed.identity), prompt_format=made.prompt_format, files=files).write(folder)


def load_evaluator(folder: Path, routed: RoutedModel) -> Any:
    """One that was saved, after checking its files and that it was made for these very weights."""
    from drllm.policies.saved import open_folder
    from drllm_research.rivals.gates import FlexiDepth, MindSkip

    saved = open_folder(folder)
    if saved.config.fingerprint != routed.fingerprint:
        raise ArtifactError(f"the gates in {folder} were made for {saved.config.base}, this is {routed.identity}: train them again")
    kind: Any = {"mindskip": MindSkip, "flexidepth": FlexiDepth}[saved.config.policy]
    return kind.load(folder)
