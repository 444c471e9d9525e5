"""How far prompts lie from those that a codebook learned from, in the distance that `--unfamiliar` cuts: quartiles by task.

python -m drllm_research.studies.unfamiliar --model ID --policy POLICY --data DATA --tasks arc_easy,mmlu --reward letter --split tune
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from drllm import RoutedModel, show_progress
from drllm.core.config import EvaluateConfig
from drllm.policies.codebook import Codebook, StateSelector, distance
from drllm.scoring.route_prediction import read_prompts
from drllm.scoring.scorer import askable, scorer_of
from drllm.tasks import load_task


def main() -> None:
    """Print a table."""
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--policy", type=Path, required=True, help="folder of a trained codebook")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--reward", default="auto", help="as which the prompts are asked")
    parser.add_argument("--split", default="tune", choices=("fit", "tune"))
    parser.add_argument("--limit", type=int, default=50, help="questions a task")
    parser.add_argument("--data")
    given = parser.parse_args()
    routed = RoutedModel.wrap(given.model)
    codebook = routed.load_policy(given.policy)
    if not isinstance(codebook, Codebook) or not isinstance(codebook.selector, StateSelector):
        parser.error(f"{given.policy} holds no codebook that reads states")
    selector = codebook.selector
    print(f"reach: {selector.reach:.2f}\n\n| task | least | first quarter | median | third quarter | most | beyond |")
    print("|---|---|---|---|---|---|---|")
    for name in given.tasks.split(","):
        loaded = load_task(name, given.data)
        scorer = scorer_of(routed, loaded.task, EvaluateConfig(reward=given.reward))
        questions, _ = askable(scorer, loaded.task, loaded.select(given.split, given.limit))
        read = read_prompts(routed, [question.context_ids for question in questions], [selector.block], 512, lambda _: None)
        found = distance(selector.standardised(torch.as_tensor(read[selector.block]).float())).numpy()
        cells = [f"{value:.2f}" for value in np.quantile(found, [0, 0.25, 0.5, 0.75, 1])]
        print(f"| {name} | {' | '.join(cells)} | {(found > selector.reach).mean():.0%} |", flush=True)


if __name__ == "__main__":
    main()
