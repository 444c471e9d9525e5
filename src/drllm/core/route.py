"""What a policy decides: one action a block, one route a prompt. No torch in this module."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from drllm.core.errors import InputError


class Action(IntEnum):
    """What happens at one block. The value is the number of passes through it."""

    SKIP = 0
    EXECUTE = 1
    REPEAT = 2


@dataclass(frozen=True, slots=True)
class Route:
    """The actions of all L blocks of one prompt, first block first; the only form a route has anywhere.

    `str(route)` is one digit a block ("1102": execute, execute, skip, repeat) and `Route.parse` its inverse.
    """

    actions: tuple[Action, ...]

    def __init__(self, actions: Iterable[int]):
        try:
            parsed = tuple(Action(action) for action in actions)
        except (ValueError, TypeError) as error:
            raise InputError(f"a route holds one action a block, 0 (skip), 1 (execute) or 2 (repeat): {error}") from None
        object.__setattr__(self, "actions", parsed)

    @classmethod
    def parse(cls, text: str) -> Route:
        """The route written as one digit a block; `InputError` on anything but the digits 0, 1 and 2."""
        if not isinstance(text, str) or not text or set(text) - set("012"):
            raise InputError(f"cannot read route {text!r}: write one digit a block, 0 (skip), 1 (execute) or 2 (repeat)")
        return _parsed(text)

    @classmethod
    def full(cls, n_layers: int) -> Route:
        """The identity: every block executed once, which is the base model."""
        return cls((Action.EXECUTE,) * n_layers)

    @property
    def path(self) -> tuple[int, ...]:
        """Indices of the blocks in the order they run; `len(route.path) == route.n_passes`."""
        return tuple(block for block, action in enumerate(self.actions) for _ in range(action))

    @property
    def n_passes(self) -> int:
        """How many block passes a token costs."""
        return sum(self.actions)

    @property
    def is_full(self) -> bool:
        """Whether this is the identity."""
        return all(action == Action.EXECUTE for action in self.actions)

    def edit(self, start: int, *actions: int) -> Route:
        """This route with the actions from block `start` on replaced."""
        if not 0 <= start <= len(self) - len(actions):
            raise InputError(f"cannot edit blocks {start} to {start + len(actions) - 1} of a route of {len(self)} blocks")
        return Route((*self.actions[:start], *actions, *self.actions[start + len(actions) :]))

    def first_edit(self) -> int:
        """The first block that is not executed exactly once; L for the identity."""
        return next((block for block, action in enumerate(self.actions) if action != 1), len(self))

    def __len__(self) -> int:
        return len(self.actions)

    def __iter__(self) -> Iterator[Action]:
        return iter(self.actions)

    def __getitem__(self, block: int) -> Action:
        return self.actions[block]

    def __str__(self) -> str:
        return "".join(str(int(action)) for action in self.actions)

    def __repr__(self) -> str:
        return f"Route.parse({str(self)!r})"


@dataclass(frozen=True, slots=True)
class GatedDepth:
    """Stands where a route would for a policy that runs parts of blocks: passes of whole blocks that its multiplications come to."""

    n_passes: float
    is_full = False  # never the base's route

    def __str__(self) -> str:
        return ""


@functools.lru_cache(maxsize=1 << 16)
def _parsed(text: str) -> Route:
    """One object a route: records of many questions hold the same ones, those of a blind baseline or a list of routes above all."""
    return Route(int(digit) for digit in text)
