"""Prompts without labels, as token ids: a task's fit questions as they are asked, or a file of plain lines or JSONL chats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drllm.core.config import EvaluateConfig, HealConfig
from drllm.core.digest import digest
from drllm.core.errors import InputError
from drllm.core.progress import say
from drllm.model.prompts import Prompt, encode_prompts
from drllm.model.routed import RoutedModel
from drllm.scoring.scorer import askable, said_left_out, scorer_of
from drllm.tasks import load_task, question_key

Ids = tuple[int, ...]
PARTS = {"heal": 0.5, "select": 0.25, "calibrate": 0.25}  # of the prompts of a file: who learns from them


class FilePrompt(NamedTuple):
    """A prompt of a file."""

    ids: Ids
    kind: str  # what its line calls "task" or "kind", else empty
    form: str  # "raw" or "chat"


_FRAME = re.compile(r"^(?:question|q)\s*:\s*|\s*\b(?:answer|a)\s*:$", re.IGNORECASE)  # around a question
_LINES = 'expected lines like {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}'


def task_prompts(routed: RoutedModel, tasks: Sequence[str], data: str | Path | None, config: HealConfig) -> list[Ids]:
    """The prompts of all fit questions that the model can be asked, without choices that are not part of the question, without answers.

    With `config.chat` each question stands there twice: as it is judged, and by itself as a user's message.
    """
    judged = EvaluateConfig(reward=config.reward, prompts=config.wording)
    found: list[Ids] = []
    for name in tasks:
        loaded = load_task(name, data)
        questions, reasons = askable(scorer_of(routed, loaded.task, judged), loaded.task, loaded.select("fit"))
        for line in said_left_out(name, reasons.values()):
            say(line)
        found += [question.context_ids for question in questions]
        if config.chat:
            asked = ["\n\n".join(filter(None, (one.example.context, one.example.question))) for one in questions]
            found += [tuple(ids) for ids in encode_prompts(routed.tokenizer, [[{"role": "user", "content": text}] for text in asked])[0]]
    return found


def file_prompts(routed: RoutedModel, path: str | Path) -> list[FilePrompt]:
    """The prompts of a file: of a `.jsonl` file one a JSON line, chat messages or text; of any other each line that is not blank."""
    read = _read(Path(path))
    encoded, form = encode_prompts(routed.tokenizer, [prompt for prompt, _ in read])
    return [FilePrompt(tuple(ids), kind, form) for ids, (_, kind) in zip(encoded, read, strict=True)]


def file_keys(path: str | Path) -> list[str]:
    """Keys of whatever may be a question in a file of prompts, so that it judges nothing: each text, and each paragraph and line of it."""
    prompts = [prompt for prompt, _ in _read(Path(path))]
    texts = [text for one in prompts for text in ([one] if isinstance(one, str) else [part["content"] for part in one])]
    parts = {part.strip() for text in texts if isinstance(text, str) for part in (text, *text.split("\n\n"), *text.split("\n"))}
    bare = {_FRAME.sub("", part) for part in parts} - {""}
    return sorted({question_key(one) for part in bare for one in (part, part.removesuffix("?"))})  # BoolQ's have no mark of their own


def _read(path: Path) -> list[tuple[Prompt, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): give a text file with one prompt a line, or .jsonl") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text: give a text file with one prompt a line, or .jsonl") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompt: give one a line")
    return [_of_json(path, *one) for one in lines] if path.suffix == ".jsonl" else [(line.rstrip("\r"), "") for _, line in lines]


def _of_json(path: Path, number: int, line: str) -> tuple[Prompt, str]:
    """One line's text or messages, without the answer that a log may have behind them, and its kind. A log may keep them in a request."""
    try:
        value = json.loads(line)
    except ValueError:
        raise InputError(f"{path}, line {number} is no JSON: {_LINES}") from None
    kind = ""
    if isinstance(value, dict):
        kind = str(value.get("task") or value.get("kind") or "")
        value = next((value[key] for key in ("request", "body") if isinstance(value.get(key), dict)), value)
        value = next((value[key] for key in ("messages", "prompt", "text") if key in value), None)
    if isinstance(value, str) and value.strip():
        return value, kind
    if not isinstance(value, list) or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value):
        raise InputError(f"{path}, line {number} holds no prompt: {_LINES}")
    while value and value[-1]["role"] == "assistant":
        value = value[:-1]
    if not value:
        raise InputError(f"{path}, line {number} holds no prompt but answers alone: {_LINES}")
    return value, kind


def split_prompts(routed: RoutedModel, prompts: Iterable[Ids], config: HealConfig) -> tuple[list[Ids], list[Ids]]:
    """(held out, to learn from), as `in_order` has them; `InputError` where none is left to learn from."""
    ranked = in_order(routed, prompts, config)
    if len(ranked) <= config.held_out:
        found = f"{len(ranked)} different prompts of at most {most_tokens(routed, config)} tokens, and {config.held_out} are held out"
        raise InputError(f"got {found}: give more, or lower --held-out")
    return ranked[: config.held_out], ranked[config.held_out :]


def parted(prompts: Sequence[Ids]) -> dict[str, list[Ids]]:
    """The prompts by `PARTS`, in their order: whoever learns from one part sees nothing of the others."""
    ends = [round(len(prompts) * sum(list(PARTS.values())[:place])) for place in range(len(PARTS) + 1)]
    return {name: list(prompts[start:end]) for name, start, end in zip(PARTS, ends, ends[1:], strict=False)}


def in_order(routed: RoutedModel, prompts: Iterable[Ids], config: HealConfig) -> list[Ids]:
    """Each prompt that a training step has room for once, in an order that the seed and their tokens alone decide."""
    limit = most_tokens(routed, config)
    distinct = dict.fromkeys(prompts)
    fit = [ids for ids in distinct if len(ids) <= limit]
    if len(fit) < len(distinct):
        say(f"heal: {len(distinct) - len(fit)} prompts of more than {limit} tokens left out: raise --step-tokens to keep them")
    return sorted(fit, key=lambda ids: digest(f"{config.seed} {ids}"))


def most_tokens(routed: RoutedModel, config: HealConfig) -> int:
    """Of a prompt that a training step has room for."""
    return min(config.step_tokens, getattr(routed.config, "max_position_embeddings", None) or config.step_tokens) - config.new_tokens


def training_steps(lengths: Sequence[int], config: HealConfig) -> list[list[int]]:
    """Which prompts each training step learns from: about `step_tokens` padded tokens, of similar length, all once before any again.

    Prompts are taken in the order given; a window of them is sorted by length and cut into steps, which come in that order's turns.
    """
    window = 16 * max(1, config.step_tokens // max(1, round(sum(lengths) / len(lengths))))
    steps: list[list[int]] = []
    turn = 0
    while len(steps) < config.steps:
        order = sorted(range(len(lengths)), key=lambda index: digest(f"{config.seed} {turn} {index}")) if turn else range(len(lengths))
        for start in range(0, len(lengths), window):
            found = _cut(sorted(order[start : start + window], key=lambda index: (lengths[index], index)), lengths, config.step_tokens)
            steps += sorted(found, key=lambda step: digest(f"{config.seed} {turn} {step}"))
        turn += 1
    return steps[: config.steps]


def _cut(indices: Sequence[int], lengths: Sequence[int], step_tokens: int) -> list[list[int]]:
    """Prompts, the shortest first, in steps whose padded tokens come to at most `step_tokens`."""
    steps: list[list[int]] = []
    for index in indices:
        if not steps or (len(steps[-1]) + 1) * lengths[index] > step_tokens:
            steps.append([])
        steps[-1].append(index)
    return steps


def fields_of(ids: Iterable[Ids]) -> Any:
    """What identifies some prompts, for a manifest: how many, and a digest of their tokens."""
    ids = list(ids)
    return {"n": len(ids), "digest": digest(repr(sorted(ids)))[:16]}
