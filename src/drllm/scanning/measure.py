"""Winners and random spans beside the base on the same questions: paired differences with their intervals. No torch, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drllm.core.config import ScanConfig
from drllm.runs.scan_result import LEAD, RANDOM, WINNER, Difference, Measured
from drllm.scanning.race import first_and_of_kinds, scores
from drllm.scanning.spans import Candidate
from drllm.stats.paired import discordant, mcnemar, paired_bootstrap

Verdicts = Mapping[tuple[str, bool], np.ndarray]  # (group, on new questions) -> (Q, 1 + R), the base first
Tasks = Mapping[bool, Sequence[str]]  # of the questions that chose (False), and of the new ones (True)


def measured(group: str, chosen: Sequence[Candidate], verdicts: Verdicts, tasks: Tasks, config: ScanConfig) -> list[Measured]:
    rows = []
    for place, one in enumerate(chosen, 1):
        found = {
            fresh: _against_base(verdicts[group, fresh][:, place], verdicts[group, fresh][:, 0], tasks[fresh], config)
            for fresh in (False, True)
            if (group, fresh) in verdicts
        }
        told = {"kind": one.kind, "first": one.first, "last": one.last, "route": str(one.route), "passes": one.route.n_passes}
        rows.append(Measured(group=group, **told, raced=found.get(False), fresh=found.get(True)))
    return rows


def means(groups: Mapping[str, Sequence[Candidate]], verdicts: Verdicts, tasks: Tasks, config: ScanConfig) -> list[Measured]:
    """The mean over the winners, over the random spans, and of the first minus the second; question by question."""
    rows = []
    for name, ours, base in ((WINNER, WINNER, ""), (RANDOM, RANDOM, ""), (LEAD, WINNER, RANDOM)):
        found: dict[bool, Difference] = {}
        for fresh in (False, True):
            parts = [verdicts[group, fresh].astype(float) for group in (ours, base or ours) if (group, fresh) in verdicts]
            if len(parts) == 2 and all(part.shape[1] > 1 for part in parts):
                ours_QR, base_QR = parts
                against_Q = base_QR[:, 1:].mean(1) if base else base_QR[:, 0]
                found[fresh] = difference(ours_QR[:, 1:].mean(1), against_Q, tasks[fresh], config)
        if found:
            passes = [one.route.n_passes for one in groups[ours]]
            rows.append(Measured(group=name, passes=float(np.mean(passes)), raced=found.get(False), fresh=found.get(True)))
    return rows


def by_chance(verdicts_QR: np.ndarray, margins_QR: np.ndarray, kinds: Sequence[str], config: ScanConfig) -> Difference:
    """What the winners would seem to gain on the questions that chose them if no candidate differed from the base: the winner's curse.

    Each question's differences to the base keep their size, and a coin gives their sign, the same for all candidates; then the winners are
    named anew, as the race names them. It is of the last round's candidates alone, so the curse of the whole race is larger, if anything.

    `verdicts_QR`, `margins_QR`: of the last round, the base first; `kinds`: of its candidates.
    """
    found_QR = scores(verdicts_QR, margins_QR)
    score_QC, right_QC = found_QR[:, 1:] - found_QR[:, :1], verdicts_QR[:, 1:].astype(float) - verdicts_QR[:, :1]
    generator, kinds_C, gains = np.random.default_rng(config.seed), np.array(kinds), []
    for _ in range(config.n_resamples):
        signs_Q = generator.choice((-1.0, 1.0), size=len(score_QC))
        order = np.argsort(-(signs_Q @ score_QC), kind="stable")
        best = order[first_and_of_kinds(kinds_C[order].tolist(), config.winners)]
        gains.append(float((signs_Q @ right_QC[:, best]).mean() / len(signs_Q)))
    low, high = np.quantile(gains, (0.025, 0.975))
    return Difference(n=len(score_QC), mean=float(np.mean(gains)), low=float(low), high=float(high))


def difference(ours: np.ndarray, base: np.ndarray, tasks: Sequence[str], config: ScanConfig) -> Difference:
    """The mean of two series on the same questions (Q,), with its paired interval; `tasks`: of the questions."""
    mean, low, high = paired_bootstrap(ours, base, config.n_resamples, config.seed, list(tasks))
    return Difference(n=len(base), mean=mean, low=low, high=high)


def _against_base(ours: np.ndarray, base: np.ndarray, tasks: Sequence[str], config: ScanConfig) -> Difference:
    better, worse = discordant(ours, base)
    return difference(ours, base, tasks, config).changed(better=better, worse=worse, p=mcnemar(ours, base))
