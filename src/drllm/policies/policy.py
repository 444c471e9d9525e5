"""What decides a route: a `Policy`, asked once a block, at prefill, for every row of the batch, unless its route is known.

Shapes: B rows, T tokens, D hidden size, L blocks.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from drllm.core.errors import ArtifactError, InputError
from drllm.core.names import did_you_mean
from drllm.core.route import Route

POLICY_FILE = "policy.json"
# Policies that live in modules of their own: imported, and so registered, when an artefact names them.
_MODULES = {
    "routers": "drllm.policies.routers",
    "codebook": "drllm.policies.codebook",
    "mindskip": "drllm.methods.rivals.gates",
    "flexidepth": "drllm.methods.rivals.gates",
    "oracle": "drllm.policies.oracle",
}
_REGISTRY: dict[str, type[Policy]] = {}


class Policy(ABC):
    """Maps a prompt's hidden states to one action a block.

    A policy holds no state of a request: `start` returns what a single prefill needs, so one policy may serve several threads.
    """

    name: ClassVar[str] = ""
    n_layers: int
    prompt_format: str | None = None  # "raw" or "chat", what it was trained on; None, or one route for all, takes both
    guarantee: dict[str, Any] | None = None  # what `drllm train --calibrate` found (`drllm.stats.guarantee.Guarantee`), as plain values
    evaluate_only: ClassVar[bool] = False  # compared, but no route to generate along

    @abstractmethod
    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        """The actions (B,) of one block, from the states entering it; `prompt_mask_BT` is true on the tokens it may read."""

    def start(self, prompt_mask_BT: Tensor) -> Policy:
        """The policy for one prefill, asked before the first block; a place to compute once what depends on the mask alone."""
        return self

    def with_control(self, p: float) -> Policy:
        """The policy under the control knob p of appendix C; only routers have one."""
        raise InputError(f"a {self.name!r} policy has no control knob; with_control works on routers")

    def operating_points(self) -> list[Policy]:
        """Ways to run it, from the one nearest the base to the policy as it is; a gate tests them."""
        return [self]

    @property
    def route(self) -> Route | None:
        """The one route of a policy that does not look at the prompt, else None; where there is one, `decide` is not asked."""
        return None

    def check_model(self, n_layers: int, hidden_size: int) -> None:
        """Refuse a model of another shape than the policy is for."""
        if getattr(self, "n_layers", None) != n_layers:
            raise InputError(f"got a route or policy of {getattr(self, 'n_layers', None)} blocks, the model has {n_layers}")

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Write everything `load` needs into an existing folder, atomically; the names of the files."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Policy:
        """Read back what `save` wrote; `ArtifactError` on anything corrupt or foreign."""


AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def register_policy(name: str) -> Callable[[type[AnyPolicy]], type[AnyPolicy]]:
    """Class decorator: artefacts that name this policy load with this class."""

    def register(cls: type[AnyPolicy]) -> type[AnyPolicy]:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def policy_class(name: str) -> type[Policy]:
    """The class a saved policy's name stands for."""
    if name not in _REGISTRY:
        if name in _MODULES:
            importlib.import_module(_MODULES[name])
        else:  # another package's: methods know where their policies are
            importlib.import_module("drllm.methods.base").import_policies()
    if name not in _REGISTRY:
        raise ArtifactError(
            f"unknown policy {name!r}{did_you_mean(name, sorted({*_REGISTRY, *_MODULES}))}; a newer drllm may have written this artefact"
        )
    return _REGISTRY[name]


class EvaluateOnlyPolicy(Policy):
    """Answers questions in its own way and decides no route: it is evaluated and compared, and refuses all else."""

    evaluate_only: ClassVar[bool] = True

    @abstractmethod
    def answer(self, scorer: Any, questions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """(verdicts, routes or depths) of a scorer's questions."""

    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        """Refused."""
        raise InputError(f"a {self.name!r} policy is for evaluation only: it decides no route to run or generate along")
