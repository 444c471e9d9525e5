"""Some sequences of an engine step, gathered: where their tokens lie in the step, and what their attention needs.

A sequence is a request of the step; vLLM lays the tokens of all sequences end to end. Shapes: N tokens of the step, S sequences.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_KEPT = 512  # places remembered; then all are forgotten


@dataclass(eq=False)
class Gathered:
    """Some sequences of a step: the places of their tokens (None: all of them), and what their attention needs."""

    tokens: Tensor | None
    metadata: Any
    slot_mapping: Tensor


@dataclass(eq=False)
class Place:
    """Where the tokens of some sequences lie in a step.

    Attributes:
        sequences, sequences_on: their numbers; `_on` is on the engine's device, here and below.
        tokens_on: the places of their tokens.
        ends, ends_on: where each sequence's tokens end once gathered, after a 0.
        longest: tokens of the longest sequence.
    """

    sequences: Tensor
    sequences_on: Tensor
    tokens_on: Tensor
    ends: Tensor
    ends_on: Tensor
    longest: int


class Places:
    """Remembers places from step to step: while the same requests decode, they stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Place] = {}

    def find(self, chosen_S: np.ndarray, starts: np.ndarray, device: torch.device) -> Place:
        """Of the sequences that are chosen; `starts` (S + 1,) is where each sequence's tokens begin."""
        key = (chosen_S.tobytes(), starts.tobytes())
        if key not in self._known:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            sequences = np.flatnonzero(chosen_S)
            lengths = starts[sequences + 1] - starts[sequences]
            ends = np.append(0, np.cumsum(lengths)).astype(np.int32)
            # Gathered token j is token j - (where its sequence begins there) + (where it begins here).
            tokens = torch.from_numpy(np.repeat(starts[sequences] - ends[:-1], lengths) + np.arange(ends[-1])).long()
            on_cpu, ends_on_cpu = torch.from_numpy(sequences), torch.from_numpy(ends)
            on_device = on_cpu.to(device), tokens.to(device), ends_on_cpu, ends_on_cpu.to(device)
            self._known[key] = Place(on_cpu, *on_device, int(lengths.max()))
        return self._known[key]
