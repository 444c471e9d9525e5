"""A selector by KL beside its baselines at equal passes, with 95 % intervals: give the finished `drllm retrofit --prompts` again.

    python benchmarks/selector_intervals.py -- retrofit --model ID --prompts requests.jsonl --minutes 60 --out runs/agree

Prompts are drawn with replacement, and in each draw every baseline has the selector's mean passes in that draw. Predictions are out of fold
and stay as they are: the intervals are of these prompts, not of learning again.
"""

import argparse
from typing import Any

import numpy as np

from drllm.cli.main import main as drllm
from drllm.methods.nearest import Nearest
from drllm.retrofitting import by_prompts
from drllm.stats.spending import by_group, dealt_loss, least_loss


def recorded(arguments: list[str]) -> tuple[dict[tuple[int, ...], str], Any, np.ndarray, Nearest]:
    """(kind of each prompt, select prompts, their KLs (N, K), the selector) of a run that is finished and is asked for again."""
    seen: dict[str, Any] = {}
    read, fit = by_prompts.file_prompts, by_prompts.fit_nearest

    def kept_prompts(*given: Any) -> Any:
        seen["asked"] = read(*given)
        return seen["asked"]

    def kept_fit(prompts: Any, kls_NK: np.ndarray, *given: Any) -> Nearest:
        seen["fit"] = prompts, kls_NK, fit(prompts, kls_NK, *given)
        return seen["fit"][-1]

    by_prompts.file_prompts, by_prompts.fit_nearest = kept_prompts, kept_fit
    if status := drllm(arguments):
        raise SystemExit(status)
    return {one.ids: one.kind for one in seen["asked"]}, *seen["fit"]


def compared(losses: np.ndarray, passes: np.ndarray, kinds: np.ndarray, taken: np.ndarray) -> tuple[float, ...]:
    """(passes, selector, one, told, dealt, own) of these prompts."""
    mean = float(passes[taken].mean())
    groups = (np.zeros(len(kinds)), kinds)
    one, told = (least_loss(*by_group(losses, of), passes, mean) for of in groups)
    own = least_loss(losses, np.full(len(losses), 1 / len(losses)), passes, mean)
    return mean, float(losses[np.arange(len(taken)), taken].mean()), one, told, dealt_loss(losses, taken), own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("command", nargs="+", help="after --, without `drllm`")
    args = parser.parse_args()
    kind_of, prompts, kls_NK, nearest = recorded(args.command)
    losses = np.concatenate([np.zeros((len(prompts), 1)), kls_NK], 1)
    passes = np.array([float(route.n_passes) for route in nearest.policy.routes])
    kinds, rng = np.array([kind_of[ids] for ids in prompts]), np.random.default_rng(0)
    for taken in nearest.taken:
        found = compared(losses, passes, kinds, taken)
        drawn = rng.integers(0, len(taken), (args.draws, len(taken)))
        draws = np.array([compared(losses[rows], passes, kinds[rows], taken[rows]) for rows in drawn])
        named = ", ".join(f"{name} {kl:.4f}" for name, kl in zip(("selector", "one", "told", "dealt", "own"), found[1:], strict=True))
        print(f"{found[0]:.2f} passes, KL: {named}")
        for place, name in enumerate(("one", "told", "dealt"), 2):
            less = draws[:, place] - draws[:, 1]
            low, high = np.quantile(less, (0.025, 0.975))
            print(f"    nats less than {name}: {found[place] - found[1]:+.4f} ({low:+.4f} to {high:+.4f})")
        closed = (draws[:, 2] - draws[:, 1]) / (draws[:, 2] - draws[:, 5])
        low, high = np.quantile(closed, (0.025, 0.975))
        print(f"    way closed: {(found[2] - found[1]) / (found[2] - found[5]):.0%} ({low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
