"""What decides routes: a `Policy` is an artefact, and `start` gives the `Decider` of one prefill, asked once a block.

Shapes: B sequences, T tokens, D hidden size, W windows, K routes.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor

from drllm.core.errors import ArtifactError, InputError
from drllm.core.names import did_you_mean
from drllm.core.plugins import POLICIES, load_plugin, plugin_names
from drllm.core.route import Route, Visit
from drllm.policies.adapter import Adapter

POLICY_FILE = "policy.json"
# Imported, and so registered, when an artefact names them.
_MODULES = {
    "static": "drllm.policies.constant",
    "routers": "drllm.policies.routers",
    "codebook": "drllm.policies.codebook",
    "healed": "drllm.policies.healed",
}
_REGISTRY: dict[str, type[Policy]] = {}


class Decider(ABC):
    """The decisions of one prefill. It may hold what belongs to this batch of prompts; a policy holds none of it."""

    @abstractmethod
    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        """The actions (B,) of one block, from the states entering it; asked once a block, first block first.

        Or, of each sequence, what runs when the forward comes to this block (`Route.visits`): loops can be said only so.
        """

    @property
    def routes(self) -> list[Route] | None:
        """Each prompt's whole route, as soon as it is known; None before. Who wants routes alone need run no further block."""
        return None

    def probabilities(self, block: int, x_BTD: Tensor) -> Tensor | None:
        """Of skip, execute and repeat (B, 3) at one block, where the policy has them. For `drllm inspect`; changes no decision."""
        return None

    def values(self, block: int, x_BTD: Tensor) -> Tensor | None:
        """What each route but the base is worth (B, K - 1), at the block where one is chosen. As `probabilities`."""
        return None


class RouteSource:
    """Where the routes of a batch come from: a policy, routes that are given, or one of the two with a clock around it."""

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""  # what its card says it is
    n_layers: int
    prompt_format: str | None = None  # "raw" or "chat", what it was trained on; None, or one route for all, takes both
    promise: dict[str, Any] | None = None  # what `drllm train --calibrate` found (`drllm.stats.promise.Promise`), as plain values
    hidden_size: int = 0  # of the states it reads; 0 where any will do
    routes: Sequence[Route] = ()  # those it chooses from, where they are few, the base first
    adapters: Sequence[Adapter] = ()  # that its routes run under
    route: Route | None = None  # the one route of all prompts, where no prompt changes it; `start` is then not asked
    threshold: float = 0.0  # what a route's value must exceed to be chosen

    def start(self, prompt_mask_BT: Tensor) -> Decider:
        """The decider of one prefill, asked for before the first block where `routes_for` gives none.

        The mask (B, T) is true on the tokens it may read.
        """
        raise InputError(f"a {self.name!r} policy decides no route from a prompt's states: there is nothing to start")

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route] | None:
        """Each prompt's route from its token ids, where these alone decide it; None where hidden states do: then `start` is asked."""
        return None if self.route is None else [self.route] * len(prompts)

    def select(self, indices: Sequence[int]) -> RouteSource:
        """What decides for some sequences of the batch, in that order; only given routes belong to sequences."""
        return self

    def to(self, device: Any) -> RouteSource:
        """The same on a device; without tensors nothing changes."""
        return self

    def check_batch(self, n_sequences: int) -> None:
        """Refuse a batch of another size than the routes were given for."""

    def windows(self, prompt_mask_BT: Tensor) -> Tensor | None:
        """The tokens of each window that is pooled (B, W, T) bool; None where the whole prompt is pooled, or nothing."""
        return None

    def with_control(self, p: float) -> Self:
        """The policy under the control p of the paper's appendix C; only routers have one."""
        raise InputError(f"a {self.name!r} policy has no control; with_control works on routers")

    def check_model(self, n_layers: int, hidden_size: int) -> None:
        """Refuse a model of another shape than the routes are for."""
        if getattr(self, "n_layers", None) != n_layers:
            raise InputError(f"got a route or policy of {getattr(self, 'n_layers', None)} blocks, the model has {n_layers}")
        if self.hidden_size not in (0, hidden_size):
            size = f"states of size {self.hidden_size}, the model's have {hidden_size}"
            raise InputError(f"the {self.name!r} policy reads {size}: use one made for this model")


class Policy(RouteSource, ABC):
    """Maps a prompt's hidden states to one action a block, and can be saved.

    It holds no state of a request: `start` returns what a single prefill needs, so one policy may serve several threads.
    """

    def operating_points(self) -> list[Policy]:
        """Ways to run it, from the one nearest the base to the policy as it is; the promise's test takes them in this order."""
        return [self]

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
        else:
            found = load_plugin(POLICIES, name)
            if found is not None and name not in _REGISTRY:
                raise ArtifactError(f"{name!r} decides no route and can only be evaluated, by {found.__module__}: name a policy")
    if name not in _REGISTRY:
        meant = did_you_mean(name, sorted({*_REGISTRY, *_MODULES, *plugin_names(POLICIES)}))
        from_where = "the package that made it may not be installed here, or a newer drllm wrote it"
        raise ArtifactError(f"unknown policy {name!r}{meant}: {from_where}")
    return _REGISTRY[name]
