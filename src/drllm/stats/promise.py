"""The promise: a policy is promised to be less than epsilon below the base, or the base is kept.

The null hypothesis of each operating point is "its accuracy is at least epsilon below the base's", on questions that served neither
training nor tuning. Points are tested in an order fixed beforehand up to the first that fails (fixed-sequence testing, as in Learn then
Test, arXiv 2110.01052): the chance that any point passes whose null is true stays delta. How often paired verdicts differ is not known, so
the test is unconditional: its p-value is the largest over all shares of differing verdicts in a confidence set, plus that set's error
(Berger and Boos 1994), computed exactly.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from drllm.core.errors import InputError
from drllm.core.text import points_lost

# That the confidence set of the share of differing verdicts leaves it out: part of every p-value, less for a small delta.
SHARE_ERROR = 1e-3
LESS = (0.02, 0.03, 0.05, 0.1)  # accuracy lost, of promises smaller than the default
N_SHARES = 24  # shares tried in that set
POWER_DRAWS = 200  # simulated calibration sets for each true gain that the power is asked of
POWER_LEVEL = 0.8


@dataclass(frozen=True)
class Promise:
    """What was tested, and what holds: with probability 1 - delta over calibration sets, the policy is less than epsilon below the base."""

    epsilon: float  # accuracy that may be lost, a fraction
    delta: float  # probability that the promise fails
    n: int  # calibration questions
    tasks: dict[str, int]  # how many of each; it holds for prompts exchangeable with these questions, in these shares
    split: str
    tested: tuple[dict[str, Any], ...] = ()  # each tested point in order: index, p-value, observed difference, mean passes, passed or not
    point: int | None = None  # the index of the chosen one; None where none passed and the base is kept
    would_pass: float | None = None  # see `smallest_gain`: of a point like the chosen one, else the last tested
    dtype: str = ""  # of the weights that answered
    judged: str = ""  # what counts as a right answer
    earlier: int = 0  # how many other policies were calibrated before on questions of these, as far as is known

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the sentence among them."""
        return asdict(self) | {"sentence": self.sentence}

    @property
    def sentence(self) -> str:
        return self.told("the base is kept")

    def told(self, otherwise: str) -> str:
        """The sentence; `otherwise` is what follows where the test failed."""
        each = ", ".join(f"{n} of {task}" for task, n in self.tasks.items())
        by_task = f" ({each})" if len(self.tasks) > 1 else "".join(f" of {task}" for task in self.tasks)
        where = f"{self.n} {self.split} questions{by_task}, judged by {self.judged}"
        power = ""
        if self.would_pass is not None:
            power = f" A true gain of {100 * self.would_pass:+.1f} points would have passed on 80 % of sets of as many questions."
        if tried := self.earlier:
            power += f" Other policies tried on these questions before: {tried}; this holds for each by itself, not for the best of them."
        lost = points_lost(self.epsilon)
        if self.point is None:
            if self.n < (least := fewest_questions(self.epsilon, self.delta, 0.0)):
                found = f"{where} are too few: a promise of at most {lost} lost needs {least:,}, or a larger gain"
                return f"{found}. {otherwise.capitalize()}.{power}"
            return f"the test failed on {where}: {otherwise}.{power}"
        promise = f"with {100 * (1 - self.delta):g} % confidence less than {lost} below the base"
        return f"{promise} on prompts like those it was calibrated on, {where}.{power}"


def exact_p(ours: ArrayLike, base: ArrayLike, epsilon: float, share_error: float = SHARE_ERROR) -> float:
    """p-value of "accuracy is at least epsilon below the base's" from paired verdicts (0 / 1) [N]; their order does not matter.

    P(better - worse is at least what was seen) at a true loss of just epsilon, maximised over the share of questions whose verdict differs.
    With that share fixed, a larger loss makes the event less likely, so the boundary is the worst of the null hypothesis.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    if differences.ndim != 1 or not len(differences) or not np.isin(differences, (-1, 0, 1)).all():
        raise ValueError(f"expected verdicts 0 or 1 of at least one question, got differences of shape {differences.shape}")
    if not 0 <= epsilon < 1:
        raise ValueError(f"expected an epsilon from 0 to below 1, got {epsilon}")
    return p_of_counts(len(differences), int((differences > 0).sum()), int((differences < 0).sum()), epsilon, share_error)


@lru_cache(maxsize=100_000)
def p_of_counts(n: int, better: int, worse: int, epsilon: float, share_error: float = SHARE_ERROR) -> float:
    """As `exact_p`, from the numbers of questions that only the policy, and only the base, has right."""
    changed = better + worse
    # Clopper and Pearson's upper limit of the share of differing verdicts.
    highest = 1.0 if changed == n else float(stats.beta.ppf(1 - share_error, changed + 1, n - changed))
    shares = np.linspace(min(epsilon, highest), highest, N_SHARES) if highest > epsilon else np.array([epsilon])
    return min(1.0, float(_tails(n, better - worse, shares, epsilon).max()) + share_error)


def _tails(n: int, seen: int, shares_S: np.ndarray, epsilon: float) -> np.ndarray:
    """(S,): P(sum of n steps is at least `seen`), each +1 with probability (share - epsilon) / 2, -1 with (share + epsilon) / 2, else 0.

    By the characteristic function of one step to the power n, and back by a Fourier transform over a window of sums around the mean that is
    12 standard deviations wide on either side, or over all of them: what lies outside is below 1e-20 (Bernstein).
    """
    reach = min(n + 1, math.ceil(12 * math.sqrt(n * float(shares_S.max())) + 50))
    size = 1 << (2 * reach).bit_length()
    start = -round(n * epsilon) - size // 2  # the lowest sum of the window
    turn = np.exp(2j * np.pi * np.arange(size) / size)
    up, down = (shares_S[:, None] - epsilon) / 2, (shares_S[:, None] + epsilon) / 2
    step = 1 - shares_S[:, None] + up * turn + down * turn.conj()
    power = np.zeros_like(step)  # where a step's value is 0, so is its power
    power[step != 0] = np.exp(n * np.log(step[step != 0]))
    mass = np.fft.fft(power, axis=1).real / size  # entry k is P(sum is k modulo the size)
    sums = start + (np.arange(size) - start) % size
    return np.clip(mass[:, sums >= seen].sum(1), 0, 1)


def find_promise(
    wanted: Promise, base: ArrayLike, points: Sequence[ArrayLike], passes: Sequence[float], n_layers: int, order: Sequence[int] = ()
) -> Promise:
    """Test operating points in an order and choose among those that passed the cheapest, or the best if none saves passes.

    Args:
        base, points: the base's verdicts (N,), and each point's on the same questions.
        passes, n_layers: mean passes of each point, and the base's.
        order: of the tests, as places in `points`; it must not depend on these verdicts. Default: as given.
    """
    epsilon, delta = wanted.epsilon, wanted.delta
    check(epsilon, delta)
    if not points or len(points) != len(passes):
        raise ValueError(f"expected one mean number of passes a point, got {len(passes)} for {len(points)}")
    verdicts = np.asarray(base, dtype=float)
    tested: list[dict[str, Any]] = []
    for index in order or range(len(points)):
        ours = np.asarray(points[index], dtype=float)
        p = exact_p(ours, verdicts, epsilon, share_error_for(delta))
        difference = float((ours - verdicts).mean())
        tested.append({"point": index, "p": p, "difference": difference, "mean_passes": float(passes[index]), "passed": p <= delta})
        if p > delta:
            break
    passed = [row for row in tested if row["passed"]]
    # The cheapest; where nothing that passed saves passes, the best here: the promise holds for all that passed, whichever is taken.
    cheapest = min(passed, key=lambda row: (row["mean_passes"], -row["point"]), default=None)
    saves = cheapest is not None and cheapest["mean_passes"] < n_layers
    best = max(passed, key=lambda row: (row["difference"], row["point"]), default=None)
    chosen = cheapest if saves else best
    like = np.asarray(points[(chosen or tested[-1])["point"]], dtype=float)
    gain = smallest_gain(len(verdicts), float((like != verdicts).mean()), epsilon, delta)
    point = None if chosen is None else chosen["point"]
    return replace(wanted, tested=tuple(tested), point=point, would_pass=gain)


def surest_first(base: ArrayLike, points: Sequence[ArrayLike], n: int, epsilon: float, delta: float) -> list[int]:
    """An order of tests from other questions' verdicts: by the p-value that n questions with the same rates would give.

    Points that change no verdict here are left out, since they promise what the base is already, but for the last of them if all do.
    """
    verdicts = np.asarray(base, dtype=float)
    differences = [np.asarray(point, dtype=float) - verdicts for point in points]
    expected = {
        place: p_of_counts(n, *(round(n * float((found == sign).mean())) for sign in (1, -1)), epsilon, share_error_for(delta))
        for place, found in enumerate(differences)
        if found.any()
    }
    return sorted(expected, key=lambda place: (expected[place], place)) or [len(points) - 1]


def smallest_gain(n: int, changed: float, epsilon: float, delta: float, seed: int = 0) -> float | None:
    """The smallest true gain, in half points to 10, that passes in 80 % of draws of n questions, a share `changed` differing; or None."""
    draw = np.random.default_rng(seed)
    gains = np.arange(round(-epsilon * 200) + 1, 21) / 200

    def passes(gain: float) -> bool:
        share = min(1.0, max(changed, abs(gain)))
        counts = draw.multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share], size=POWER_DRAWS)
        p = [p_of_counts(n, int(better), int(worse), epsilon, share_error_for(delta)) for better, worse, _ in counts]
        return sum(value <= delta for value in p) >= POWER_LEVEL * POWER_DRAWS

    place = bisect.bisect_left(gains, True, key=passes)  # a larger gain passes more often
    return float(gains[place]) if place < len(gains) else None


def fewest_questions(epsilon: float, delta: float, changed: float) -> int:
    """About how many questions pass the test where a share `changed` of the answers differs, as often for better as for worse.

    No fewer pass where nothing is gained; where the true accuracies are equal, half of such sets do.
    """
    check(epsilon, delta)

    def passes(n: int) -> bool:
        either = round(n * changed / 2)
        return p_of_counts(n, either, either, epsilon, share_error_for(delta)) <= delta

    enough = 1
    while not passes(enough):
        enough *= 2
    return bisect.bisect_left(range(enough), True, lo=enough // 2, key=passes)


def smaller_promise(epsilon: float, delta: float, n: int, better: int = 0, worse: int = 0) -> float | None:
    """The smallest larger loss of `LESS` that these verdicts rule out; None: they rule out none of them.

    It may be taken after looking: the tests of one policy are nested, so what they rule out is an upper confidence limit of its loss.
    """
    return next((more for more in LESS if more > epsilon and p_of_counts(n, better, worse, more, share_error_for(delta)) <= delta), None)


def share_error_for(delta: float) -> float:
    """The part of a p-value that the confidence set of the share may take."""
    return min(SHARE_ERROR, delta / 50)


def check(epsilon: float, delta: float) -> None:
    """Refuse what promises nothing or everything."""
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon is {epsilon}, expected more than 0 and less than 1: the accuracy that may be lost, 0.01 is one point")
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}, expected more than 0 and less than 1: the probability that the promise fails")
