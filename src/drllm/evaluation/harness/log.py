"""What routing cost and did during a harness run: one entry a prompt, seconds a task, and the summary that stands beside the metrics."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drllm.core.route import Route


@dataclass(frozen=True)
class Routed:
    """One prompt and its route."""

    task: str
    doc_id: int  # of the question it belongs to; -1 where the harness does not say
    route: Route
    n_prompt_tokens: int  # that the policy read
    n_new_tokens: int = 0  # generated up to the sequence's own end; 0 where continuations were scored


class RoutingLog:
    """Collects routes and seconds; `summary` is what results carry."""

    def __init__(self, n_layers: int):
        self.n_layers = n_layers
        self.prompts: list[Routed] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._router_seconds: defaultdict[str, float] = defaultdict(float)

    def add_seconds(self, weights: Mapping[str, int], seconds: float, router_seconds: float) -> None:
        """Share some seconds among tasks by what each had in them."""
        for task, weight in weights.items():
            share = weight / sum(weights.values())
            self._seconds[task] += seconds * share
            self._router_seconds[task] += router_seconds * share

    def summary(self) -> dict[str, dict[str, Any]]:
        """Figures of each task; see `docs/harness.md` for what each one is."""
        by_task: defaultdict[str, list[Routed]] = defaultdict(list)
        for prompt in self.prompts:
            by_task[prompt.task].append(prompt)
        return {task: self._summarize(task, prompts) for task, prompts in by_task.items()}

    def _summarize(self, task: str, prompts: list[Routed]) -> dict[str, Any]:
        passes = np.array([prompt.route.n_passes for prompt in prompts])
        steps = np.array([max(1, prompt.n_new_tokens) for prompt in prompts])  # one, and one more for each new token but the last
        counts = Counter(str(prompt.route) for prompt in prompts)
        found: dict[str, Any] = {"prompts": len(prompts), "mean_passes": float(passes.mean()), "n_layers": self.n_layers}
        found["passes"] = {str(value): int(n) for value, n in sorted(Counter(passes.tolist()).items())}
        layers, base_layers = float(np.mean(passes * steps)), float(np.mean(self.n_layers * steps))
        found |= {"layers_per_prompt": layers, "base_layers_per_prompt": base_layers}
        found["new_tokens"] = sum(prompt.n_new_tokens for prompt in prompts)
        found |= {"identity_share": counts[str(Route.full(self.n_layers))] / len(prompts), "distinct_routes": len(counts)}
        found["consensus"] = consensus([prompt.route for prompt in prompts])
        return found | {"seconds": self._seconds[task], "router_seconds": self._router_seconds[task]}


def consensus(routes: Sequence[Route]) -> float | None:
    """Mean share of blocks at which two different prompts' routes agree (Dr.LLM, table 8), over all pairs; None for a single prompt."""
    n = len(routes)
    if n < 2:
        return None
    columns = list(zip(*(route.visits for route in routes), strict=True))
    agreeing = sum(count * (count - 1) for column in columns for count in Counter(column).values())
    return float(agreeing / (n * (n - 1) * len(columns)))
