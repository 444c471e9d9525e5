"""One question answered along several policies, for a reader to see what a policy does to the text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import SearchConfig
from drllm.model.routed import RoutedModel
from drllm.scoring.scorer import scorer_of
from drllm.tasks import drop_overlaps, load_task

ANSWER_TOKENS = 48


def one_answer(
    routed: RoutedModel, tasks: Sequence[str], data: str | Path | None, config: SearchConfig, split: str, policies: Mapping[str, Any]
) -> dict[str, Any]:
    """The first question of a split of the first task, from the very prompt that the search showed the model.

    Returns:
        prompt, and by the names of `policies` (policies or routes): text, route, n_passes.
    """
    loaded = drop_overlaps({name: load_task(name, data) for name in tasks})[tasks[0]]
    prompt_ids = scorer_of(routed, loaded.task, config).question(loaded.task, loaded.select(split, 1)[0]).context_ids
    input_ids = torch.tensor([prompt_ids], dtype=torch.long, device=routed.device)
    given: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "min_new_tokens": 1, "do_sample": False}
    found: dict[str, Any] = {"prompt": routed.tokenizer.decode(prompt_ids, skip_special_tokens=True)}
    for name, policy in policies.items():
        [output] = routed.generate(input_ids=input_ids, policy=policy, **given)
        found[name] = {"text": output.text, "route": str(output.route), "n_passes": output.route.n_passes}
    return found
