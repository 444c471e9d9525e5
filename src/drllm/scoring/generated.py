"""Rewards of generated answers: the paper's letter, a boxed answer or a number, one out of a passage. Shapes: B sequences, V vocabulary."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from drllm.core.route import Route
from drllm.model.cache import PrefilledCache, new_slots
from drllm.model.families import has_hidden_window
from drllm.model.generation import GreedyChoice
from drllm.model.prompts import CHAT, RAW, check_context, encode_prompts
from drllm.model.routed import RoutedModel
from drllm.model.transformers_private import is_plain
from drllm.runs.store import Verdict
from drllm.scoring.base import ModelScorer, Question
from drllm.scoring.packing import sample_token
from drllm.scoring.prefixes import Node, PrefixRunner, padded_width
from drllm.scoring.route_prediction import prompt_inputs
from drllm.tasks import Example, Task, f1_score
from drllm.tasks.grading import BOX
from drllm.tasks.wording import wording_of

# Of rewards that have one prompt alone, text; for the others a wording says. Answers out of SQuAD's passages rarely have more words.
NEW_TOKENS = {"number": 8, "exact": 32}
FIRST_ANSWERS = 8  # last prompt tokens that go through the output head together
# What chat templates are told: a question reads the same on every day (Llama's write the date), and there is no room to think (Qwen3's).
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
DECODED_ANSWERS = 256  # answers decoded together
COMPACT_BELOW = 0.75  # share of answers still running below which the others leave the batch

FEWEST = 8  # tokens, below which nothing is won
OPENINGS = ("What", "a", "17", "\\frac", "$x$", '"')  # of questions and passages that share no beginning
# Positions that depend on how long the whole sequence is: what ran before would have run otherwise.
LENGTH_ROPES = ("dynamic", "longrope")


@dataclass(eq=False)
class Answer:
    """One evaluation under way."""

    handle: int
    route: Route
    question: Question
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    done: bool = False
    broken: bool = False


class GeneratedScorer(ModelScorer):
    """Generates each answer under its route and grades the text.

    Prompts run through `PrefixRunner`, which keeps each application's keys and values; an answer's cache is put together from those of its
    path. Answers are then decoded together, greedily, and leave the batch when no further token can change the verdict.

    In float32 the tokens that all prompts of a task begin with (system prompt, template, instruction) run once a path, and steps are not
    filled up. What comes of it is that of the whole prompt up to rounding, which in 16 bits flips verdicts.
    """

    _filler = (0,)
    shares_across_groups = False  # decoding rounds by the batch in bfloat16, so what is decoded together must be fixed
    at_once = sys.maxsize  # only `DECODED_ANSWERS` of them hold states

    def __init__(
        self,
        routed: RoutedModel,
        reward: str,
        max_step_tokens: int = 512,
        max_new_tokens: int = 0,
        cache_bytes: int = 2**30,
        prompts: str = "ours",
        reader: str = "auto",
        to_the_end: bool = False,
    ):
        """`prompts` and `reader`: as in the configurations, settled; `max_new_tokens` 0 takes the wording's own.

        `to_the_end`: answers are followed to their end and their tokens counted, also where their verdict is settled before.
        """
        super().__init__(routed, max_step_tokens, cache_bytes, keep_keys_values=True)
        self.runner.fills = routed.model.dtype != torch.float32
        self._beginnings: dict[tuple[str, bool], tuple[int, ...]] = {}  # by task, and whether a passage comes first
        self.stems: dict[tuple[int, ...], Node] = {}  # by their tokens, while questions are open
        self.reward, self.to_the_end = reward, to_the_end
        has_template = bool(routed.tokenizer.chat_template)
        named = prompts, routed.base_id, routed.config.model_type, has_template
        self.wording = None if reward in NEW_TOKENS else wording_of(*named)
        self.reader = "" if self.wording is None else self.wording.reader[reward] if reader == "auto" else reader
        new_tokens = NEW_TOKENS if self.wording is None else self.wording.new_tokens
        self.max_new_tokens = max_new_tokens or new_tokens[reward]
        self.prompt_format = CHAT if has_template and self.wording is not None and not self.wording.is_text else RAW
        self._choose = GreedyChoice(routed.model, 0 if self.wording is None else self.wording.min_new_tokens)
        self._queue: list[Answer] = []

    def right_answer(self, question: Question) -> list[int]:
        """Token ids of the right answer in the form that is asked for: the letter, the number, or the box (what is left of it)."""
        task, example = question.task, question.example
        if self.reward == "letter":
            text = task.right_letter(example)
        elif self.reward == "boxed":
            text = f"{example.answer}}}" if self.wording and self.wording.opens_box else f"{BOX}{{{example.answer}}}"
        else:
            text = f" {example.answer}"
        return list(self.routed.tokenizer(text, add_special_tokens=False)["input_ids"])

    def question(self, task: Task, example: Example) -> Question:
        """Tokenise an example's prompt: a chat message, or text for a model or a wording without a template, for a number or a passage."""
        ids, kind = self._encode(task, example), (task.name, bool(example.context))
        check_context(len(ids), self.max_new_tokens, self.routed.config)
        if kind not in self._beginnings:
            self._beginnings[kind] = common_beginning(partial(self._encode, task), example)
        n_shared = len(self._beginnings[kind])
        begins_so = len(ids) > n_shared and ids[:n_shared] == self._beginnings[kind]
        return Question(task, example, (ids,), ids, n_shared=n_shared if begins_so else 0)

    def _encode(self, task: Task, example: Example) -> tuple[int, ...]:
        (ids,), _ = encode_prompts(self.routed.tokenizer, [self._prompt(task, example)], **TEMPLATE)
        return tuple(ids)

    def _prompt(self, task: Task, example: Example) -> Any:
        if self.wording is None:
            return task.number_prompt(example) if self.reward == "number" else task.passage_prompt(example)
        text = (task.letter_prompt if self.reward == "letter" else task.boxed_prompt)(example, self.wording)
        return [{"role": "user", "content": text}] if self.prompt_format == CHAT else text + self.wording.text_end

    def _inputs(self, sequences: list[Sequence[int]], width: int) -> dict[str, Tensor]:
        return prompt_inputs(self.routed, sequences, width)

    def _roots(self, asked: Sequence[tuple[Question, Any]]) -> list[Node]:
        by_beginning: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (question, _) in enumerate(asked):
            by_beginning[question.context_ids[: question.n_shared] if self._shares else ()].append(place)
        roots: dict[int, Node] = {}
        for tokens, places in by_beginning.items():
            if tokens and tokens not in self.stems:
                self.stems[tokens] = self.runner.open_stem(tokens, self._inputs, self._filler)
            own = [asked[place][1][len(tokens) :] for place in places]
            found = self.runner.open_all(own, self._inputs, self._filler, self._width, self.stems.get(tokens))
            roots |= zip(places, found, strict=True)
        return [roots[place] for place in range(len(asked))]

    @cached_property
    def _shares(self) -> bool:
        return can_begin_alike(self.routed)

    def submit(self, handle: int, route: Route) -> None:
        self._queue.append(Answer(handle, route, self.opened[handle][0]))

    def close(self, handles: Iterable[int]) -> None:
        super().close(handles)
        if not self.opened:
            self.runner.close(self.stems.values())
            self.stems.clear()

    @torch.no_grad()
    def collect(self) -> list[tuple[int, Route, Verdict]]:
        """Answer the first submitted, as many as are decoded together: (handle, route, verdict) in order; empty when nothing is left."""
        together, self._queue = self._queue[:DECODED_ANSWERS], self._queue[DECODED_ANSWERS:]
        # Prompts of similar width lie together: least padding of their caches.
        self._answer(sorted(together, key=lambda answer: -answer.question.n_tokens))
        return [(answer.handle, answer.route, self.verdict(answer)) for answer in together]

    def verdict(self, answer: Answer) -> Verdict:
        example, n_new = answer.question.example, len(answer.tokens) if self.to_the_end else 0
        f1 = float("nan")
        if self.reward == "exact":
            f1 = 0.0 if answer.broken else f1_score(answer.text, example.choices)
        if answer.broken:
            read = None if self.wording is None else False
            return Verdict(False, text=answer.text, f1=f1, strict=read, lenient=read, broken=True)
        reading = answer.question.task.read(example, answer.text, self.reward, self.wording is not None and self.wording.opens_box)
        if self.wording is None:
            return Verdict(reading.strict, text=answer.text, f1=f1, n_new=n_new)
        right = reading.strict if self.reader == "strict" else reading.lenient
        return Verdict(right, text=answer.text, strict=reading.strict, lenient=reading.lenient, form=reading.form, n_new=n_new)

    def _answer(self, answers: list[Answer]) -> None:
        for index, answer in enumerate(answers):
            self.runner.submit(self.opened[answer.handle][1][0], answer.route, index)
        nodes: Any = dict(self.runner.ends(len(answers)))
        states = [nodes[index].state[-1] for index in range(len(answers))]
        for start in range(0, len(answers), FIRST_ANSWERS):
            step = states[start : start + FIRST_ANSWERS]
            logits_BV = self.runner.finish(torch.stack(step + [step[-1]] * (FIRST_ANSWERS - len(step))))[: len(step)]
            self.extend(answers[start : start + FIRST_ANSWERS], logits_BV)
        running = [index for index, answer in enumerate(answers) if not answer.done]
        if running:
            self._decode([answers[index] for index in running], [nodes[index] for index in running])
        for node in nodes.values():
            self.runner.release(node)

    def _decode(self, answers: list[Answer], nodes: Sequence[Node]) -> None:
        width, routes = max(node.bucket.n_before + node.bucket.width for node in nodes), [answer.route for answer in answers]
        lines = [[pair for node in last.line for pair in node.keys_values] for last in nodes]
        cache = PrefilledCache(self.routed.config, self.routed.n_layers, routes, lines, width, self.routed.device)
        mask = torch.zeros((len(answers), width), dtype=torch.long, device=self.routed.device)
        for row, answer, node in zip(mask, answers, nodes, strict=True):
            n_before = node.bucket.n_before  # the pads of its own tokens lie between
            row[width - node.bucket.width - n_before :][:n_before] = 1
            row[width - answer.question.n_tokens + n_before :] = 1
        while True:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            inputs = {"input_ids": torch.tensor([answer.tokens[-1:] for answer in answers], device=mask.device), "attention_mask": mask}
            if self.routed.takes_position_ids:
                inputs["position_ids"] = mask.sum(1, keepdim=True) - 1
            logits_BV = self.routed.forward(cache, **inputs).logits[:, -1]
            self.extend(answers, logits_BV)
            running = [index for index, answer in enumerate(answers) if not answer.done]
            if not running:
                return
            if len(running) < COMPACT_BELOW * len(answers):
                answers = [answers[index] for index in running]
                cache.select(running)
                mask = mask[running]

    def extend(self, answers: Sequence[Answer], logits_BV: Tensor) -> None:
        """One more token for each running answer; those whose verdict is settled, or whose logits are NaN or infinite, are done."""
        finite = logits_BV.amax(-1).isfinite().tolist()
        sequences = [(*answer.question.context_ids, *answer.tokens) for answer in answers]
        tokens = self._choose(sequences, logits_BV, [len(answer.tokens) for answer in answers])
        for answer, token, is_finite in zip(answers, tokens, finite, strict=True):
            if answer.done:
                continue
            if not is_finite:
                answer.done = answer.broken = True
                continue
            answer.tokens.append(token)
            answer.text = self.routed.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            answer.done = token in self._choose.end_ids or len(answer.tokens) == self.max_new_tokens or self._is_settled(answer)

    def _is_settled(self, answer: Answer) -> bool:
        """Whether no continuation can change the verdict; never where half of a character stands at the end, which may become any."""
        return not self.to_the_end and not answer.text.endswith("\ufffd") and answer.question.task.settled(answer.text, self.reward)


def common_beginning(encode: Callable[[Example], tuple[int, ...]], example: Example) -> tuple[int, ...]:
    """The tokens with which prompts like this example's begin, whatever they ask; none where they are fewer than `FEWEST`."""
    others = [replace(example, question=text, context=text if example.context else "") for text in OPENINGS]
    columns = zip(*(encode(other) for other in others), strict=False)
    shared = tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if len(shared) >= FEWEST else ()


@torch.no_grad()
def can_begin_alike(routed: RoutedModel) -> bool:
    """Whether prompts may run behind a beginning that ran before: asked of the base model itself, with pads between."""
    if routed.model.dtype != torch.float32 or not all(map(is_plain, new_slots(routed.config, routed.n_layers))):
        return False  # slots of a sliding window keep no whole beginning
    ropes = {getattr(module, "rope_type", None) for module in routed.model.modules()}
    if has_hidden_window(routed.config) or ropes.intersection(LENGTH_ROPES):
        return False
    n_vocab = routed.model.get_input_embeddings().num_embeddings
    tokens = [sample_token(seed, n_vocab) for seed in range(13)]
    runner, inputs = PrefixRunner(routed, 1, 2**30, keep_keys_values=True, fills=False), partial(prompt_inputs, routed)
    try:
        stem = runner.open_stem(tokens[:8], inputs, (0,))
        roots = [*runner.open_all([tokens], inputs, (0,), padded_width), *runner.open_all([tokens[8:]], inputs, (0,), padded_width, stem)]
        for tag, root in enumerate(roots):
            runner.submit(root, Route.full(routed.n_layers), tag)
        ended: Any = dict(runner.ends(len(roots)))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False  # the family's forward does not take a mask of another width than its tokens
    whole, behind = (ended[tag].state[-1] for tag in range(2))
    return bool(((whole - behind).abs() <= 1e-3 * whole.std()).all())
