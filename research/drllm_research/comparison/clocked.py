"""Ratios of seconds and their intervals."""

import numpy as np


def median_ratio(ratios: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The median over prompts (N,) with its 95 % interval by a bootstrap of prompts."""
    middle = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(middle, [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "prompts": len(ratios)}
