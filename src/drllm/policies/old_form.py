"""Policies of other packages in the form of before: `decide(block, x_BTD, prompt_mask_BT)` on the policy itself. For one version."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from drllm.policies.policy import Decider, Policy


class _OldDecider(Decider):
    """Hands the mask to a policy that still asks for it."""

    def __init__(self, policy: Any, prompt_mask_BT: Tensor):
        self._policy, self._prompt_mask_BT = policy, prompt_mask_BT

    def decide(self, block: int, x_BTD: Tensor) -> Tensor:
        return self._policy.decide(block, x_BTD, self._prompt_mask_BT)


def adapt(cls: type[Policy]) -> None:
    """Give an old class a `start` that returns a `Decider`: of itself, or of the policy that its own `start` returned."""
    warnings.warn(
        f"{cls.__module__}.{cls.__qualname__} decides by decide(block, x, prompt_mask): give it start(prompt_mask), which returns a "
        "Decider; the old form goes with the next version",
        FutureWarning,
        stacklevel=4,
    )
    begin = vars(cls).get("start")
    if begin is None and hasattr(cls.start, "is_adapted"):
        return  # the old class it inherits from asks its policy by name

    def start(self: Policy, prompt_mask_BT: Tensor) -> Decider:
        running = self if begin is None else begin(self, prompt_mask_BT)
        return running if isinstance(running, Decider) else _OldDecider(running, prompt_mask_BT)

    start.is_adapted = True  # type: ignore[attr-defined]
    cls.start = start  # type: ignore[method-assign]
