"""What is measured of each row: right answers, how near its next tokens and its texts are to the base's, seconds, and size."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from drllm import Route, RoutedModel
from drllm.core.config import EvaluateConfig, Resources
from drllm.core.progress import Progress
from drllm.healing.measuring import distance
from drllm.healing.prompts import Ids, fields_of
from drllm.healing.teacher import Teacher, Text, greedy
from drllm.model.copies import block_list, shortened
from drllm.model.load import gguf_path
from drllm.runs.manifest import load_unseen
from drllm.runs.stages import key_of
from drllm.scoring.asking import Ask, asking
from drllm.scoring.route_prediction import prompt_steps
from drllm.scoring.scorer import askable, scorer_of
from drllm.tasks import load_task
from drllm_research.comparison.clocked import median_ratio
from drllm_research.healed.rows import Row, Trainer, bits_of, round_all, shown

STEP_TOKENS = 512
TEXT_TOKENS = 32  # of a greedy answer
TOGETHER = 16  # greedy answers decoded at once


@dataclass
class Measured:
    """The rows of a trainer, measured as the command line says; all but the verdicts, which the run's store keeps, by stages."""

    trainer: Trainer
    rows: Sequence[Row]
    given: argparse.Namespace

    def __post_init__(self) -> None:
        trainer, given = self.trainer, self.given
        self.routed, self.stages, self.run = trainer.routed, trainer.stages, trainer.run
        self.config = EvaluateConfig(split=given.split, reward=trainer.config.reward, prompts=trainer.config.wording)
        others = [name for name in given.asked.split(",") if name and name not in trainer.tasks]
        self.tasks = {name: of for name, of in (("in", trainer.tasks), ("out", others)) if of}
        self.loaded = load_unseen(given.healing[0], dict.fromkeys([*trainer.tasks, *others], given.data), given.split)
        first, *_ = solved = {name: load_task(name, given.data) for name in trainer.tasks}
        self.shown = {
            name: shown(one.task, of.task, of.select("fit", given.shots))
            for name, one in self.loaded.items()
            for of in [solved.get(name, solved[first])]
        }
        self.prompts = {part: self._prompts(of) for part, of in self.tasks.items()}
        self.asked = [ids for of in self.prompts.values() for ids in of]

    def _prompts(self, tasks: Sequence[str]) -> list[Ids]:
        found: list[Ids] = []
        for one in (self.loaded[name] for name in tasks):
            questions, _ = askable(scorer_of(self.routed, one.task, self.config), one.task, one.select(self.given.split, self.given.texts))
            found += [question.context_ids for question in questions[: self.given.texts // len(tasks)]]
        return found

    @cached_property
    def texts(self) -> dict[str, list[Text]]:
        teacher = Teacher(self.routed, self.run.training("said"), self.trainer.config.new_tokens, STEP_TOKENS)
        return {part: teacher.texts(of, "the base on held-out prompts", fields_of(of)["digest"]) for part, of in self.prompts.items()}

    def all(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """By row: whether each question of each task is answered rightly; and what `nearness` says. Rows of other weights come last."""
        right, near = dict[str, Any](), dict[str, Any]()
        key = [self.routed.fingerprint, self.given.dtype, self.trainer.config.new_tokens, self.asked, self.trainer.plain]
        for how in dict.fromkeys(row.rounded for row in self.rows):
            routed, mine = self.routed, [row for row in self.rows if row.rounded == how]
            if how:
                routed = RoutedModel.wrap(self.given.model, dtype=self.given.dtype)
                round_all(routed, how)
            right |= self._right(routed, [row for row in mine if not row.is_shown], False)
            right |= self._right(routed, [row for row in mine if row.is_shown], True)
            for row in (row for row in mine if not row.is_shown):

                def work(routed: RoutedModel = routed, route: Route = row.route) -> Any:
                    return nearness(routed, route, self.texts, self.asked, self.trainer.plain)

                near[row.name] = self.stages.once(f"texts: {row.name}", key_of([*key, how, str(row.route)]), [], work)
        return right, near

    def _right(self, routed: RoutedModel, rows: Sequence[Row], is_shown: bool) -> dict[str, Any]:
        found, asks = {row.name: dict[str, dict[str, bool]]() for row in rows}, []
        for one in self.loaded.values() if rows else ():
            task = self.shown[one.task.name] if is_shown else one.task
            scorer = scorer_of(routed, task, self.config)
            questions, _ = askable(scorer, task, one.select(self.given.split, self.given.limit))
            questions.sort(key=lambda question: (question.n_tokens, question.example.id))
            routes = tuple(dict.fromkeys(row.route for row in rows))
            asks.append(Ask(scorer, task, self.config, self.given.split, questions, [routes] * len(questions)))
        with asking(routed, self.run.root, Resources(executor="local", threads=self.given.threads)) as bench:
            for ask, verdicts in zip(asks, bench.ensure(asks, f"{len(rows)} rows on {self.given.split}"), strict=True):
                ids = [question.example.id for question in ask.questions]
                for row in rows:
                    found[row.name][ask.task.name] = {one: of[row.route].correct for one, of in zip(ids, verdicts, strict=True)}
        return found

    def clock(self) -> dict[str, Any]:
        """Ratios of seconds, by row: solved questions shown, and bare and healed routes, a budget at a time to spare memory."""
        given, by_name = self.given, {row.name: row for row in self.rows}
        front = self.routed.tokenizer(next(iter(self.shown.values())).solved)["input_ids"]
        prefill = [ids[: given.tokens] for ids in self.trainer.plain if len(ids) >= given.tokens][: given.clocked]
        groups = [[row] for row in self.rows if row.is_shown]
        groups += [[row, by_name[row.name.replace("skip", "healed")]] for row in self.rows if row.kind == "skip"]
        found: dict[str, Any] = {}
        for group in groups:

            def turns(group: list[Row] = group) -> Any:
                base = [(name, by_name["base"]) for name in ("base", "base again")]
                rows = [*base, *((row.name, row) for row in group)]
                models = {name: (merged(self.routed, row.route), front if row.is_shown else ()) for name, row in rows}
                return ratios(models, prefill, given.rounds)

            about = [self.routed.fingerprint, [str(row.route) for row in group], front, prefill, given.rounds, given.threads]
            found |= self.stages.once(f"seconds: {group[-1].name}", key_of(about), [], turns)
        return found

    def megabytes(self, row: Row) -> dict[str, float]:
        """What a row takes: stored (the base's own bits, and the adapter in float16), and as a merged checkpoint in bfloat16."""
        of_block = [sum(part.numel() for part in block.parameters()) for block in self.routed.blocks]
        rest = sum(part.numel() for part in self.routed.model.parameters()) - sum(of_block)
        size = self.routed.model.dtype.itemsize
        other, *blocks = stored_bytes(self.given.model, self.routed.n_layers) or [rest * size, *(n * size for n in of_block)]
        if row.rounded:
            linear = [sum(one.weight.numel() for one in block.modules() if isinstance(one, nn.Linear)) for block in self.routed.blocks]
            blocks = [n * bits_of(row.rounded) / 8 + 4 * (every - n) for n, every in zip(linear, of_block, strict=True)]
        adapter = self.routed.adapters[row.route.adapter].n_weights if row.route.adapter else 0
        stored = other + sum(blocks[block] for block in set(row.route.path)) + 2 * adapter
        return {"stored": stored / 1e6, "in bfloat16": 2 * (rest + sum(of_block[block] for block in row.route.path)) / 1e6}


@cache
def stored_bytes(name: str, n_layers: int) -> list[int]:
    """Of the tensors of a GGUF file: all but its blocks, then each block; empty for a base that is none."""
    if (path := gguf_path(name)) is None:
        return []
    from gguf import GGUFReader

    tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    blocks = [sum(n for name, n in tensors.items() if name.startswith(f"blk.{block}.")) for block in range(n_layers)]
    return [sum(tensors.values()) - sum(blocks), *blocks]


def nearness(routed: RoutedModel, route: Route, texts: Mapping[str, Sequence[Text]], prompts: Sequence[Ids], plain: Sequence[Ids]) -> Any:
    """KL and same next token on each part of the texts, nats of each plain text, and the greedy answers to the prompts; as JSON has it."""

    def forward(**inputs: Any) -> Any:
        return routed(**inputs, routes=route)

    with Progress(f"texts along {str(route)[:60]}", len(prompts)) as progress:
        parts = {name: distance(routed, part, STEP_TOKENS, forward) for name, part in texts.items()}
        answers: list[list[int]] = []
        for start in range(0, len(prompts), TOGETHER):
            answers += greedy(routed, prompts[start : start + TOGETHER], route, TEXT_TOKENS)
            progress.advance(len(prompts[start : start + TOGETHER]))
        nats = nats_of(routed, plain, forward)
    kept = {"kl": {name: part.kl for name, part in parts.items()}, "same": {name: part.same for name, part in parts.items()}}
    return kept | {"nats": nats, "answers": answers}


@torch.no_grad()
def nats_of(routed: RoutedModel, plain: Sequence[Ids], forward: Callable[..., Any]) -> list[float]:
    """Of each text, the mean over its tokens but the first of minus the log-likelihood."""
    found = [0.0] * len(plain)
    for members, inputs in prompt_steps(routed, plain, STEP_TOKENS, by_length=True):
        for row, member in zip(forward(**inputs).logits, members, strict=True):
            ids = torch.tensor(plain[member], device=row.device)
            logs = row[-len(ids) : -1].float().log_softmax(-1)
            found[member] = -float(logs.gather(1, ids[1:, None]).double().mean())
    return found


def agreement(answers: Sequence[Sequence[int]], of_base: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of the base's answers that are the same to the end, and of their tokens that come before the first other one."""
    same = [
        next((at for at, (a, b) in enumerate(zip(one, base, strict=False)) if a != b), min(len(one), len(base)))
        for one, base in zip(answers, of_base, strict=True)
    ]
    whole = [list(one) == list(base) for one, base in zip(answers, of_base, strict=True)]
    return {"whole": float(np.mean(whole)), "tokens": sum(same) / sum(map(len, of_base))}


def merged(routed: RoutedModel, route: Route) -> Any:
    """The route as a plain model of transformers, its adapter merged; else the base's own weights."""
    model = shortened(routed, route.bare)
    adapter, blocks = routed.adapters.get(route.adapter), model.get_submodule(block_list(routed))
    if adapter is None:
        return model
    for block, name in adapter.weights:
        linear = blocks[route.path.index(block)].get_submodule(name)
        linear.weight = nn.Parameter(adapter.merged((block, name), linear.weight), False)
    return model


@torch.no_grad()
def ratios(models: Mapping[str, tuple[Any, Sequence[int]]], prompts: Sequence[Ids], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a prompt's forward as a ratio to the first model's, in turns, in an order drawn anew; 95 % intervals over prompts.

    Of each model (name: model, tokens that stand before the prompt).
    """
    rng, names = np.random.default_rng(0), list(models)
    spent = np.zeros((len(prompts), rounds, len(names)))
    with Progress(f"seconds of {', '.join(names[1:])}", len(prompts)) as progress:
        for at, prompt in enumerate(prompts):
            for round_ in range(-1, rounds):  # the first warms up
                for place in rng.permutation(len(names)):
                    model, before = models[names[place]]
                    ids = torch.tensor([[*before, *prompt]], device=model.device)
                    started = perf_counter()
                    model(input_ids=ids, use_cache=False, logits_to_keep=1)
                    spent[at, round_, place] = perf_counter() - started
            progress.advance(1)
    found = np.median(spent / spent[:, :, :1], axis=1)
    return {name: median_ratio(found[:, place], rng) for place, name in enumerate(names) if place}
