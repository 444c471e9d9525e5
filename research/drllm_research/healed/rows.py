"""What the table of healed routes compares: finished healings, what a team would do instead, and controls. Adapters are trained here.

A right answer is learned as if the base were certain of it: of each token of the answer its "distribution" is that token, and the tokens
of the prompt have none. So cross-entropy on labels is the KL of healing, and one training serves both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drllm import HealConfig, Route, RoutedModel
from drllm.core.config import EvaluateConfig
from drllm.core.digest import digest, short_digest
from drllm.core.errors import ArtifactError
from drllm.core.files import read_json
from drllm.healing.heal import POLICY
from drllm.healing.prompts import Ids, fields_of, split_prompts, task_prompts, training_steps
from drllm.healing.teacher import Teacher, Text
from drllm.healing.training import train_adapter
from drllm.policies.adapter import Adapter
from drllm.policies.healed import HealedPolicy
from drllm.policies.saved import save_policy
from drllm.runs.layout import RunFolder
from drllm.runs.stages import Stages, key_of
from drllm.scoring.scorer import askable, scorer_of
from drllm.tasks import Example, Task, load_task

NEVER = -1e4  # log-probability of what does not occur: times its probability, which is 0, it is 0
PLAIN_TOKENS = 256  # of a plain text, at most
CONTROLS = {"without skipping": 1, "other text": 1, "half of the prompts": 2, "a tenth of the prompts": 10}  # prompts over
BLOCK = 32  # weights that share a scale and a minimum


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        kind: "base", "skip", "healed", "instead" or "control".
        route: of the base, with the adapter that it runs under.
        rounded: how the linear maps of its blocks are rounded (`rounded`); empty: not.
        is_shown: whether solved questions stand before each question.
        trained: what its training came to; empty where nothing was trained for it here.
    """

    name: str
    kind: str
    route: Route
    rounded: str = ""
    is_shown: bool = False
    trained: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Shown(Task):
    solved: str = ""

    def loglik_prompt(self, example: Example) -> tuple[str, list[str]]:
        context, continuations = super().loglik_prompt(example)
        return self.solved + context, continuations


def shown(task: Task, of: Task, examples: Sequence[Example]) -> Shown:
    """A task behind the solved `examples` of a task."""
    asked = [(*of.loglik_prompt(example), int(example.answer)) for example in examples]
    return Shown(**vars(task), solved="".join(f"{context}{answers[right]}\n\n" for context, answers, right in asked))


def plain_texts(routed: RoutedModel, data: Path) -> list[Ids]:
    """The passages of SQuAD v2, each once, their first tokens, in an order that their text decides."""
    examples = [one for part in load_task("squadv2", data).examples.values() for one in part]
    passages = sorted({example.context for example in examples}, key=digest)
    return [tuple(routed.tokenizer(text)["input_ids"][:PLAIN_TOKENS]) for text in passages]


def rounded(weight: Tensor, how: str) -> Tensor:
    """A matrix (O, I) with fewer bits a number: "q4_0" as gguf's own quantiser; else so many bits, in the layout of gguf's Q4_1.

    There 32 numbers of a row share a scale and a minimum in float16. Of six ranges, from all that a block spans to two thirds, that of the
    least squared error is taken.
    """
    if how == "q4_0":
        from gguf import GGMLQuantizationType, quants

        kind = GGMLQuantizationType.Q4_0
        return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), kind), kind)).to(weight.dtype)
    top, values = 2 ** int(how) - 1, weight.float().reshape(-1, BLOCK)
    low, high = values.aminmax(dim=1, keepdim=True)
    found, least = values, torch.full_like(low, torch.inf)
    for cut in np.linspace(0, 1 / 6, 6):
        start = (low + cut * (high - low)).half().float()
        step = ((1 - 2 * cut) * (high - low) / top).half().float().clamp(min=1e-7)
        near = start + step * ((values - start) / step).round().clamp(0, top)
        error = (near - values).square().sum(1, keepdim=True)
        found, least = torch.where(error < least, near, found), torch.minimum(error, least)
    return found.reshape(weight.shape).to(weight.dtype)


def bits_of(how: str) -> float:
    """A number, what its block shares counted."""
    return 4.5 if how == "q4_0" else int(how) + 32 / BLOCK


def round_all(routed: RoutedModel, how: str) -> None:
    for linear in (module for module in routed.blocks.modules() if isinstance(module, nn.Linear)):
        linear.weight.data.copy_(rounded(linear.weight.data, how))


@dataclass
class Trainer:
    """Trains adapters beside finished healings, of which the first gives route, prompts and settings.

    Attributes:
        config: the first healing's; out, fit: its prompts, held out and learned from; held_out, learned: what the base said of them.
        all: what it could have learned from.
        plain: texts that none is trained on, `other` those that one is.
    """

    routed: RoutedModel
    stages: Stages
    run: RunFolder
    healings: Sequence[RunFolder]
    data: Path
    steps: int
    n_plain: int

    def __post_init__(self) -> None:
        first = self.healings[0].healing
        settings = read_json(first.settings, "heal again", dict)
        asked: Any = {field.name: settings[field.name] for field in fields(HealConfig)}
        config = HealConfig(**(asked | {"targets": tuple(asked["targets"])}))
        self.tasks, self.config = settings["tasks"], replace(config, steps=self.steps or config.steps)
        self.out, self.all = split_prompts(self.routed, task_prompts(self.routed, self.tasks, self.data, config), config)
        if fields_of([*self.out, *self.all]) != settings["prompts"]:
            raise ArtifactError(f"{first.root} was healed on other prompts than the fit questions of its tasks in {self.data}")
        used = {index for step in training_steps([len(ids) + config.new_tokens for ids in self.all], config) for index in step}
        teacher = Teacher(self.routed, first.teacher, config.new_tokens, config.max_step_tokens, config.answer_share)
        self.fit = [self.all[index] for index in sorted(used)]
        self.held_out = teacher.texts(self.out, "what the base said of held-out prompts", "held-out")
        self.learned = teacher.texts(self.fit, "what the base said of prompts", "fit")
        texts = plain_texts(self.routed, self.data)
        self.plain, self.other = texts[: self.n_plain], texts[self.n_plain :]

    def healed(self) -> list[tuple[str, Adapter]]:
        budgets = [read_json(one.healing.settings, "heal again", dict)["budget"] for one in self.healings]
        policies = [self.routed.load_policy(one.policy(POLICY)) for one in self.healings]
        return [(f"{budget:g}", policy.adapters[0]) for budget, policy in zip(budgets, policies, strict=True)]

    def rows(self, rounding: Sequence[str], controls: Sequence[str]) -> list[Row]:
        full, healed = Route.full(self.routed.n_layers), self.healed()
        budget, route = healed[0][0], healed[0][1].route
        rows = [Row("base", "base", full)]
        for name, adapter in sorted(healed, key=lambda one: -float(one[0])):
            rows += [Row(f"skip {name}", "skip", adapter.route), Row(f"healed {name}", "healed", adapter.healed)]
        if all(load_task(name, self.data).task.reward_named(self.config.reward) == "loglik" for name in self.tasks):
            rows.append(Row("solved questions shown", "instead", full, is_shown=True))
        rows.append(self._trained("labels, every block", "instead", full, lambda: self._labelled))
        rows.append(self._trained(f"labels, skip {budget}", "instead", route, lambda: self._labelled))
        rows += [Row("weights as q4_0" if how == "q4_0" else f"weights of {how} bits", "instead", full, rounded=how) for how in rounding]
        for name in controls:
            some = self.learned[: max(1, len(self.learned) // CONTROLS[name])], self.held_out
            words, of = (f"healed {name}", full) if name == "without skipping" else (f"healed {budget}, {name}", route)
            rows.append(self._trained(words, "control", of, self._other if name == "other text" else lambda some=some: some))
        return rows

    def _trained(self, name: str, kind: str, route: Route, texts: Callable[[], tuple[list[Text], list[Text]]]) -> Row:
        """A row with an adapter of its own, trained once."""
        key = key_of([self.routed.fingerprint, name, str(route), vars(self.config), fields_of([text.ids for text in self.learned])])
        folder = self.run.policy(label := "-".join(name.replace(",", "").split()))

        def work() -> dict[str, Any]:
            learned, held_out = texts()
            numbers = training_steps([len(text.ids) for text in learned], self.config)
            steps = [[learned[index] for index in step] for step in numbers]
            state = self.run.training(f"{label}-{short_digest(key.encode())}")
            state.mkdir(parents=True, exist_ok=True)
            adapter, course = train_adapter(self.routed, route, steps, held_out, self.config, state)
            shutil.rmtree(folder, ignore_errors=True)
            save_policy(HealedPolicy(adapter), self.routed.identity, folder)
            seen = {text.ids for step in steps[: course.step] for text in step}
            return {"prompts": len(seen), "steps": course.step, "best at step": course.looks[course.best][0]}

        told = self.stages.once(f"train: {name}", key, [folder], work)
        return Row(name, kind, self.routed.load_policy(folder).adapters[0].healed, trained=told)

    @cached_property
    def _labelled(self) -> tuple[list[Text], list[Text]]:
        """All questions of the healing's tasks with their right answers, as they will be asked: not as a chat message too."""
        asked, answers = EvaluateConfig(reward=self.config.reward, prompts=self.config.wording), dict[Ids, list[int]]()
        for name in self.tasks:
            loaded = load_task(name, self.data)
            scorer = scorer_of(self.routed, loaded.task, asked)
            questions, _ = askable(scorer, loaded.task, loaded.select("fit"))
            answers |= {question.context_ids: scorer.right_answer(question) for question in questions}
        learned, out = ([labelled(ids, answers[ids]) for ids in part if ids in answers] for part in (self.all, self.out))
        return learned, out

    def _other(self) -> tuple[list[Text], list[Text]]:
        """Plain texts, as many as the steps take, and what the base says of them."""
        config = self.config
        held_out, rest = self.other[: config.held_out], self.other[config.held_out :]
        used = {index for step in training_steps([len(ids) + config.new_tokens for ids in rest], config) for index in step}
        teacher = Teacher(self.routed, self.run.training("other"), config.new_tokens, config.max_step_tokens, config.answer_share)
        parts = ([rest[index] for index in sorted(used)], held_out)
        learned, out = (teacher.texts(part, "the base on other text", fields_of(part)["digest"]) for part in parts)
        return learned, out


def labelled(prompt: Ids, answer: Sequence[int]) -> Text:
    ids = (*prompt, *answer)
    is_told = torch.arange(len(ids) - 1) >= len(prompt) - 1
    logs = torch.where(is_told, 0.0, NEVER)
    rest = torch.full_like(logs, NEVER)
    return Text(ids[:-1], torch.tensor(ids[1:], dtype=torch.int32)[:, None], logs[:, None], rest, torch.ones_like(rest))
