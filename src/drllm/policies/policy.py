"""What decides routes: a `Policy` is an artefact, and `start` gives the `Decider` of one prefill, asked once a block.

Shapes: B sequences, T tokens, D hidden size, W windows, K routes.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from drllm.core.errors import ArtifactError, InputError
from drllm.core.names import POLICIES, did_you_mean, load_plugin, plugin_names
from drllm.core.route import Route, Visit
from drllm.policies.adapter import Adapter

NOT_FINITE = "the states entering block {} are not finite on a prompt: load the base in bfloat16 or float32"
BUILT_IN = {  # imported when an artefact names them
    "static": "drllm.policies.constant:RoutePolicy",
    "routers": "drllm.policies.routers:Routers",
    "codebook": "drllm.policies.codebook:Codebook",
    "healed": "drllm.policies.healed:HealedPolicy",
}


class Decider(ABC):
    """The decisions of one prefill. It may hold what belongs to this batch of prompts; a policy holds none of it."""

    @abstractmethod
    def decide(self, block: int, x_BTD: Tensor) -> Tensor | list[Visit]:
        """The actions (B,) of one block, from the states entering it; asked once a block, first block first.

        Or each sequence's visit of this block (`Route.visits`): loops can be said only so.
        """

    @property
    def routes(self) -> list[Route] | None:
        """Each prompt's whole route, as soon as it is known; None before."""
        return None

    def probabilities(self, block: int, x_BTD: Tensor) -> Tensor | None:
        """Of skip, execute and repeat (B, 3) at one block, where the policy has them. For `drllm inspect`."""
        return None

    def values(self, block: int, x_BTD: Tensor) -> Tensor | None:
        """What each route but the base is worth (B, K - 1), at the block where one is chosen. As `probabilities`."""
        return None


class RouteSource:
    """Where the routes of a batch come from: a policy, routes that are given, or one of the two with a clock around it."""

    name: ClassVar[str] = ""  # what artefacts call it
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
        """The decider of one prefill, where `routes_for` gives none; the mask (B, T) is true on the tokens it may read."""
        raise InputError(f"a {self.name!r} policy decides no route from a prompt's states: there is nothing to start")

    def routes_for(self, prompts: Sequence[Sequence[int]]) -> list[Route] | None:
        """Each prompt's route from its token ids, where these alone decide it; None where hidden states do: then `start` is asked."""
        return None if self.route is None else [self.route] * len(prompts)


def check_fits(source: RouteSource, n_layers: int, hidden_size: int) -> None:
    """`InputError` where a policy or routes are of a model of another shape."""
    if getattr(source, "n_layers", None) != n_layers:
        raise InputError(f"got a route or policy of {getattr(source, 'n_layers', None)} blocks, the model has {n_layers}")
    if source.hidden_size not in (0, hidden_size):
        size = f"states of size {source.hidden_size}, the model's have {hidden_size}"
        raise InputError(f"the {source.name!r} policy reads {size}: use one made for this model")


class Policy(RouteSource, ABC):
    """Decides routes, and can be saved; it holds no state of a request, so one may serve several threads."""

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


def policy_class(name: str) -> type[Policy]:
    """The class a saved policy's name stands for: one of ours, or what another package's entry point of that name gives."""
    found = pkgutil.resolve_name(BUILT_IN[name]) if name in BUILT_IN else load_plugin(POLICIES, name)
    if found is None:
        meant = did_you_mean(name, sorted({*BUILT_IN, *plugin_names(POLICIES)}))
        from_where = "the package that made it may not be installed here, or a newer drllm wrote it"
        raise ArtifactError(f"unknown policy {name!r}{meant}: {from_where}")
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ArtifactError(f"{name!r} decides no route and can only be evaluated, by {getattr(found, '__module__', found)}: name a policy")
    return found
