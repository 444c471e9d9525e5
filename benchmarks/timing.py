"""How benchmarks take time, in turns, since a machine's speed drifts within seconds by more than what they measure, and what is said of it.

Nothing happens when this is imported: `serve_http.py` starts servers as users do.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy import stats
from transformers import StoppingCriteria, StoppingCriteriaList

ONLY_HELP = "how the names of arms begin that run, with ; between; default: all"
MIN_VALUES = 6  # of which the lowest and the highest hold the true median with 95 %


def now(device: torch.device) -> float:
    """The clock, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(StoppingCriteria):
    """Reads the clock after each token and stops nobody."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(now(input_ids.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Turns(StoppingCriteria):
    """One arm's answer, in a thread of its own that runs only while it has its turn: a step each."""

    def __init__(self, answer: Callable[[StoppingCriteriaList], Any]):
        self.seconds: list[float] = []  # of each step, the prefill first
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(answer,), daemon=True).start()  # a daemon: it may wait for its turn when all ends

    def _run(self, answer: Callable[[StoppingCriteriaList], Any]) -> None:
        try:
            torch.set_num_threads(1)
            self._begin()
            answer(StoppingCriteriaList([self]))
        except BaseException as error:  # noqa: BLE001 - raised where the turns are dealt
            self._error = error
        finally:
            self._over = True
            self._others.release()

    def _begin(self) -> None:
        self._mine.acquire()
        self._started = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seconds.append(now(input_ids.device) - self._started)
        self._others.release()
        self._begin()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def take(self) -> bool:
        """One turn; whether there are more."""
        self._mine.release()
        self._others.acquire()
        if self._error is not None:
            raise self._error
        return not self._over


def median_interval(values: Sequence[float]) -> list[float]:
    """(median, low, high): order statistics that hold the true median with at least 95 %; `ValueError` for fewer than six values."""
    if len(values) < MIN_VALUES:
        raise ValueError(f"{len(values)} values have no 95 % interval by order statistics: at least {MIN_VALUES}")
    ordered = sorted(values)
    rank = max(int(stats.binom.ppf(0.025, len(ordered), 0.5)), 1)
    return [statistics.median(ordered), ordered[rank - 1], ordered[len(ordered) - rank]]


def shown(value: Sequence[float], digits: int = 3) -> str:
    """A median and its interval."""
    return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"


def check_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    """End the command where so few rounds have no interval."""
    if rounds < MIN_VALUES:
        parser.error(f"--rounds is {rounds}, expected {MIN_VALUES} or more, or there is no 95 % interval")


def wanted_arms(parser: argparse.ArgumentParser, only: str, arms: Sequence[str]) -> tuple[str, ...]:
    """How the names of those begin that `--only` names, for `str.startswith`; a beginning that no arm has ends the command."""
    wanted = tuple(name.strip() for name in only.split(";") if name.strip())
    if idle := [name for name in wanted if not any(arm.startswith(name) for arm in arms)]:
        parser.error(f"--only: no arm begins with {idle[0]!r}; arms are {'; '.join(arms)}")
    return wanted or ("",)
