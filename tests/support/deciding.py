"""A test's policy in one function: `start` returns `ByFunction(self.actions, mask)`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from drllm.policies.policy import Decider


class ByFunction(Decider):
    """Hands block, states and the prompt's mask to a function."""

    def __init__(self, actions: Callable[[int, Tensor, Tensor], Tensor], prompt_mask_BT: Tensor):
        self._actions, self._prompt_mask_BT = actions, prompt_mask_BT

    def decide(self, block: int, x_BTD: Tensor) -> Tensor:
        return self._actions(block, x_BTD, self._prompt_mask_BT)
