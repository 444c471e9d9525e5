"""A healing of a tiny model, made once for the module that asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

import drllm
import runs
from drllm import RoutedModel
from drllm.healing.heal import Healed
from drllm.policies.healed import HealedPolicy
from healed import CONFIG


class Run(NamedTuple):
    """A run folder with a healing in it."""

    folder: Path
    data: Path
    routed: RoutedModel
    policy: HealedPolicy
    healed: Healed


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("healing")
    data = runs.write_rows(place / "sums.jsonl", runs.questions(160))
    routed = runs.model()
    policy, (healed,) = drllm.heal(routed, place / "run", tasks=[runs.TASK], data=data, config=CONFIG)
    return Run(place / "run", data, routed, policy, healed)
