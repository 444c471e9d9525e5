"""Questions for the offline tasks: drllm's own sources and splits, with the prompts of the stock tasks."""

import dataclasses
import logging
from typing import Any

from datasets import Dataset
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import ConfigurableTask

from drllm.evaluation.harness import SPLITS_READ
from drllm.evaluation.harness.lm_eval_private import shots_sorted
from drllm.tasks import Example, Task, load_task

logger = logging.getLogger("lm_eval.drllm")


def documents(drllm_task: str, data: str | None = None, split: str = "tune", **_: Any) -> dict[str, Dataset]:
    """{"fewshot": the fit split (tune where fit is asked), "eval": the wanted one}; called with `--metadata`."""
    loaded = load_task(drllm_task, data)
    questions = loaded.select(split)
    logger.info("%s: %d questions of split %s from %s", drllm_task, len(questions), split, loaded.source)
    if split == "test":
        logger.warning("%s: reading the test split, which is for final tables only", drllm_task)
    SPLITS_READ[f"drllm_{drllm_task}"] = split
    # Shots never come from the questions that are asked: where there are no others there are none, for the harness would take those.
    shots = loaded.examples["fit" if split != "fit" else "tune"]
    return {"eval": _dataset(loaded.task, questions), "fewshot": _dataset(loaded.task, shots)}


def aime_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    from lm_eval.tasks.aime.utils import process_results

    return process_results(doc, results)


class ChoiceTask(ConfigurableTask):
    """A multiple-choice task whose shots are of the question's own kind.

    The harness tells its samplers which question they draw for only where questions and shots are of one split.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.sampler.about = doc["description"]  # type: ignore[attr-defined]
        return super().fewshot_context(doc, *args, **kwargs)


class AlikeFirst(FirstNSampler):
    """The first n shots under the question's own description, as MMLU's five a subject; then those of others, where it has fewer."""

    about: str | None = None

    def sample(self, n: int, eval_doc: dict[str, Any] | None = None, df: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        with shots_sorted(self, lambda document: document["description"] != self.about):  # stable
            return list(super().sample(n, eval_doc, df, **kwargs))


def _dataset(task: Task, examples: list[Example]) -> Dataset:
    return Dataset.from_list([_document(task, example) for example in examples])


def _document(task: Task, example: Example) -> dict[str, Any]:
    """What the harness renders: a description (once, above the shots), the prompt, the continuations without their space, the answer."""
    about = {"id": example.id, "description": "", "question": example.question, "answer": example.answer}
    if task.kind == "math":
        return about | {"prompt": f"Question: {example.question}\nAnswer:", "target": example.solution or example.answer}
    if task.description and example.context:
        about["description"] = f"{example.context}\n"
        example = dataclasses.replace(example, context="")
    prompt, continuations = task.loglik_prompt(example)
    return about | {"prompt": prompt, "choices": [text.removeprefix(" ") for text in continuations]}
