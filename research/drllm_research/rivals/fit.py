"""Two methods for evaluation only, and what they share: options, texts to learn from, and a threshold chosen on tune.

MindSkip (Router-Tuning, arXiv 2410.13184): a gate a block decides whether a prompt runs its attention.
FlexiDepth (arXiv 2503.23798): a gate a block and token, and an adapter for the tokens that skip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.options import MAX_SEED, Options, option
from drllm.methods.base import Method
from drllm.methods.routers import choose_point
from drllm.runs.layout import LOSSES_FILE

if TYPE_CHECKING:
    from drllm.methods.base import RoutedModel, TrainingData


@dataclass(frozen=True)
class MindSkipConfig(Options):
    """Gates on attention, learned from hundreds of questions through the frozen model; the papers have hundreds of thousands of texts."""

    first_block: int = option(0, "gates stand from this block on", ge=0)
    penalty: float = option(0.1, "weight of what the gates spend, beside the next-token loss", ge=0)
    steps: int = option(150, "training steps", ge=1)
    batch_size: int = option(8, "questions with their right answers a step", ge=1)
    lr: float = option(1e-2, "AdamW learning rate", ge=0)
    budget: float = option(1.0, "mean passes on tune, as a share of the base's, that the threshold may leave; 1: any", ge=0.1, le=1)
    tune_questions: int = option(100, "tune questions a task that the threshold is set on; 0: a gate is open above 0.5", ge=0)
    seed: int = option(0, "seed of batches and first weights", ge=0, le=MAX_SEED)


@dataclass(frozen=True)
class FlexiDepthConfig(MindSkipConfig):
    """Gates on tokens of the later half of the blocks, and adapters."""

    first_block: int = option(0, "gates stand from this block on; 0: from the middle, as published")
    penalty: float = option(1e-3, "weight of the squared number of open gates a token (published: 1e-3)")
    lr: float = option(1e-3, "AdamW learning rate")
    adapter: int = option(96, "hidden units of an adapter (published: a sixteenth of the feed-forward's)", ge=1)


def fit_flexidepth(routed: RoutedModel, training_data: TrainingData, config: FlexiDepthConfig, folder: Path) -> Any:
    config = replace(config, first_block=config.first_block or routed.n_layers // 2)
    return fit_gates(routed, training_data, config, folder, "flexidepth", config.adapter)


def fit_gates(
    routed: RoutedModel, training_data: TrainingData, config: MindSkipConfig, folder: Path, name: str = "mindskip", adapter_size: int = 1
) -> Any:
    """Train the gates of this name and set its threshold on tune; losses go to `folder/metrics.json`."""
    from drllm_research.rivals.gates import FlexiDepth, MindSkip, check_parts, train_gates

    if config.first_block >= routed.n_layers:
        raise InputError(f"{type(config).__name__}.first_block is {config.first_block}, expected less than {routed.n_layers} blocks")
    check_parts(routed)
    texts = []
    for task in training_data.fit_tasks:
        texts += [(question.context_ids, task.scorer.right_answer(question)) for question in task.questions]
    if not texts:
        raise InputError(f"{training_data.run} holds no fit question to learn from: search with fit among --splits")
    kind: Any = {"mindskip": MindSkip, "flexidepth": FlexiDepth}[name]
    made = kind.new(routed.n_layers, routed.hidden_size, config.first_block, adapter_size, config.seed)
    made.tensors = {name: tensor.to(routed.device) for name, tensor in made.tensors.items()}
    steps = train_gates(routed, made, texts, config)
    write_json(folder / LOSSES_FILE, {"questions": len(texts), "steps": steps})
    made.prompt_format = training_data.prompt_format
    points = made.operating_points()

    def answer(ask: Any) -> Any:
        return [point.evaluate(ask.scorer, ask.questions) for point in points]

    return choose_point(made, points, answer, training_data, config.tune_questions, config.budget, folder)


_BY_PROMPT = "a gate a block on attention, by prompt; for evaluation only"
_BY_TOKEN = "a gate a block and token, with adapters; for evaluation only"
MINDSKIP = Method("mindskip", _BY_PROMPT, "Router-Tuning, arXiv 2410.13184", MindSkipConfig, fit_gates)
FLEXIDEPTH = Method("flexidepth", _BY_TOKEN, "FlexiDepth, arXiv 2503.23798", FlexiDepthConfig, fit_flexidepth)
