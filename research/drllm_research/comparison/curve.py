"""Would more fit questions help? What a codebook and a static route are worth on tune, by the number of fit questions they learned from.

    python -m drllm_research.comparison.curve --run runs/policies --out results/policies-smollm2-135m-q4 --settings in-domain,mixed

Of each size several draws of fit questions. A policy is chosen on one half of the tune questions and measured on the other, and the other
way round, so that the curve holds no choice's luck. Verdicts come from the dense matrix; `make table-methods` writes the table.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from drllm_research.comparison.rows import SETTINGS
from drllm_research.comparison.stored import Results

SIZES = (150, 300, 600, 1200, 2400, 4800)
DRAWS = 3


def of_questions(matrix: Any, places: np.ndarray) -> Any:
    """Some questions of a matrix, in that order."""
    named = {name: tuple(getattr(matrix, name)[place] for place in places) for name in ("tasks", "ids", "prompts")}
    return replace(matrix, **named, correct=matrix.correct[places], margins=matrix.margins[places])


def codebook_value(matrix: Any, tune: Any, features: Any, halves: list[np.ndarray], n_layers: int, seed: int) -> np.ndarray:
    """(N,) gains on tune of the chosen codebook, chosen on each half and measured on the other; the base is among the choices."""
    from drllm.methods.codebook import CodebookConfig, choices, choose, choose_routes, fit_candidates

    found = list(fit_candidates(matrix, tune, features, CodebookConfig(seed=seed), choose_routes))
    measured = np.zeros(len(tune))
    for here, there in (halves, halves[::-1]):
        gains = {}
        for place, candidate in enumerate(found):
            columns = [tune.routes.index(route) for route in candidate.routes]
            picked = choices(candidate, features["tune"][candidate.block])
            gains[place] = tune.at(columns).gains[np.arange(len(tune)), picked]
        judged = [replace(candidate, tune_gain=float(gains[place][here].mean())) for place, candidate in enumerate(found)]
        best = choose(judged, n_layers, 1.0)
        place = next(place for place, candidate in enumerate(judged) if candidate is best)
        measured[there] = gains[place][there] if best.tune_gain > 0 else 0.0
    return measured


def static_value(matrix: Any, tune: Any) -> float:
    """Gain on tune of the route of the matrix that fit questions choose and confirm, as method `static` with one step."""
    from drllm.methods.static import StaticConfig, confirmed, is_held_back, lower_mean

    gains = matrix.mixed_gains(StaticConfig().margin_weight)
    held_back = np.array([is_held_back(prompt) for prompt in matrix.prompts])
    best = max(range(1, len(matrix.routes)), key=lambda place: lower_mean(gains[~held_back, place]))
    confirmed = confirmed(gains[~held_back, best], gains[held_back, best], 0.9)
    return float(tune.gains[:, best].mean()) if confirmed else 0.0


def main() -> None:
    from drllm import RoutedModel
    from drllm.methods.prompt_reading import Read, read_states, reading_blocks
    from drllm.methods.training_data import TrainingData
    from drllm.stats.paired import paired_bootstrap

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--settings", default="in-domain")
    arguments = parser.parse_args()
    routed = RoutedModel.wrap(arguments.model)
    blocks = reading_blocks(routed.n_layers)
    for setting in arguments.settings.split(","):
        training_data = TrainingData(routed, arguments.run, SETTINGS[setting].learned)
        fit, tune = training_data.matrix("fit"), training_data.matrix("tune")
        whole = read_states(routed, arguments.run / "train", fit, tune, blocks)
        order = np.random.default_rng(0).permutation(len(tune))
        parts = [np.sort(order[::2]), np.sort(order[1::2])]
        rows, measured = [], []
        for size in [size for size in SIZES if size < len(fit)] + [len(fit)]:
            codebooks, statics = [], []
            for draw in range(DRAWS):
                places = np.sort(np.random.default_rng([size, draw]).permutation(len(fit))[:size])
                matrix = of_questions(fit, places)
                features = {"fit": {block: Read(*(one[places] for one in whole["fit"][block])) for block in blocks}, "tune": whole["tune"]}
                codebooks.append(codebook_value(matrix, tune, features, parts, routed.n_layers, draw))
                statics.append(static_value(matrix, tune))
            measured.append(np.mean(codebooks, axis=0))
            codebooks = [float(codebook.mean()) for codebook in codebooks]
            rows.append({"questions": size, "codebook": codebooks, "static": statics if size < len(fit) else statics[:1]})
            print(f"{setting}: {size} fit questions: codebook {np.mean(codebooks):+.4f}, static {np.mean(statics):+.4f}", flush=True)
        rise = paired_bootstrap(measured[-1], measured[-3], strata=tune.tasks)
        about = {"tune": len(tune), "rows": rows, "rise": {"from": rows[-3]["questions"], "to": rows[-1]["questions"], "points": rise}}
        Results(arguments.out).tell(about, "curve", setting)


if __name__ == "__main__":
    main()
