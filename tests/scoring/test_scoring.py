"""Verdicts: packed, resumed and batched scoring equals a plain loop over choices on the base model's own code."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from byte_tokens import byte_tokenizer
from drllm import EvaluateConfig, Route, RoutedModel
from drllm.core.errors import InputError
from drllm.policies.constant import RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.store import Verdict
from drllm.scoring.generated import GeneratedScorer
from drllm.scoring.loglik import LoglikScorer, loglik_verdict
from drllm.scoring.packing import PackedPrompt, encode_choice, make_batch, pack_choices, separate_choices, split_steps
from drllm.scoring.scorer import questions_digest, scorer_of
from drllm.tasks import Example, Task, get_task
from reference import path_model, plain_logliks
from scored import score_policy

L = families.N_BLOCKS
ARC = get_task("arc_easy")
FAMILIES = ["llama", "qwen3", "gpt2", "gemma2", "opt", "mixtral"]
ROUTES = [
    Route.parse(text)
    for text in ("0111", "1110", "2111", "1112", "1021", "0000", "2222", "1101", "0120", "0-2,1-3", "0-2,(0-2)*0.5,3", "3,0-1")
]

EXAMPLES = [
    Example("a", "What melts ice?", ("heat", "the cold of night", "sand"), 0, "arc_easy"),
    Example("b", "How many legs does a spider have?", ("six", "eight"), 1, "arc_easy"),
    Example("c", "Red?", ("a", "bb", "ccc", "dddd", "e"), 4, "arc_easy"),
    Example("d", "Which of these is a gas at the temperature of a room?", ("iron", "oxygen", "salt", "wood"), 1, "arc_easy"),
    Example("e", "Two and two?", ("four", "five"), 0, "arc_easy", context="Numbers are added."),
]


@functools.cache
def base_and_routed(family: str) -> tuple[torch.nn.Module, RoutedModel]:
    """(an untouched copy, the wrapped model), both reading bytes."""
    base = families.build(family, vocab_size=300, max_position_embeddings=256)
    untouched = copy.deepcopy(base)
    return untouched, RoutedModel.wrap(base, byte_tokenizer())


@functools.cache
def expected_logliks(family: str, route: Route, example: Example, task: Task = ARC) -> list[float]:
    untouched, _ = base_and_routed(family)
    return plain_logliks(path_model(untouched, route.spans), byte_tokenizer(), *task.loglik_prompt(example))


def assert_logliks(got: Verdict, question: Any, expected: list[float]) -> None:
    """The verdict is that of these log-likelihoods, by both metrics."""
    wanted = loglik_verdict(expected, question, "acc_norm")
    for ours, plain in ((got.margin_acc, wanted.margin_acc), (got.margin_acc_norm, wanted.margin_acc_norm)):
        assert ours == pytest.approx(plain, abs=1e-4 * max(1.0, *map(abs, expected)))
    assert (got.acc, got.acc_norm) == (wanted.acc, wanted.acc_norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_pack_where_a_tree_shaped_mask_is_possible(family):
    _, routed = base_and_routed(family)
    assert LoglikScorer(routed).packed == (family != "gemma2"), "a sliding window cannot follow a tree"


@pytest.mark.parametrize("max_step_tokens", [1, 150, 4096])
@pytest.mark.parametrize(
    ("family", "packed"),
    [
        pytest.param(name, packed, marks=() if name in ("llama", "gemma2") else pytest.mark.long)
        for name in FAMILIES
        for packed in (True, False)
        if not packed or name != "gemma2"
    ],
)
def test_scores_equal_a_plain_loop(family, packed, max_step_tokens):
    """The base pass, then routes that resume from its states at every first edit, mixed in one step; twice the same question too."""
    _, routed = base_and_routed(family)
    scorer = LoglikScorer(routed, max_step_tokens, packed=packed)
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    assert {len(question.sequences) for question in questions} == ({1} if packed else {2, 3, 4, 5})
    scorer.load(questions)
    base = Route.full(L)
    for got, question in zip(scorer.score([(index, base) for index in range(len(EXAMPLES))]), questions, strict=True):
        assert_logliks(got, question, expected_logliks(family, base, question.example))
    pairs = [(index % len(EXAMPLES), route) for index, route in enumerate(ROUTES)]
    assert {route.first_edit() for _, route in pairs} == {0, 1, 2, 3}
    for got, (index, route) in zip(scorer.score(pairs), pairs, strict=True):
        assert_logliks(got, questions[index], expected_logliks(family, route, EXAMPLES[index]))
    # The routes matter: a scorer that ignored them would be far off.
    base_score = expected_logliks(family, base, EXAMPLES[0])
    assert max(abs(a - b) for a, b in zip(base_score, expected_logliks(family, ROUTES[0], EXAMPLES[0]), strict=True)) > 0.1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_routers_decide_from_the_context_alone(family):
    """The route of a question is the one its context gets in `generate`, whatever its choices are and whoever shares its step."""
    _, routed = base_and_routed(family)
    routers = Routers(RouterConfig(L, routed.hidden_size, n_windows=4, width=16), seed=3)
    routers.tensors["w2"] = routers.tensors["w2"] * 30
    scorer = LoglikScorer(routed, 300)
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    _, routes = score_policy(scorer, questions, routers)
    assert len(set(routes)) > 1
    others = [scorer.question(ARC, replace(example, choices=("zzzz", "?", "qqq"), answer=0)) for example in EXAMPLES]
    assert score_policy(scorer, others, routers)[1] == routes
    for example, question, route in zip(EXAMPLES, questions, routes, strict=True):
        assert score_policy(scorer, [question], routers)[1] == [route]
        assert routed.generate([ARC.loglik_prompt(example)[0]], policy=routers, max_new_tokens=1)[0].route == route


@settings(deadline=None, max_examples=8, derandomize=True)
@given(order=st.permutations(range(4)), route=st.sampled_from(ROUTES))
def test_permuting_the_choices_permutes_their_scores(order, route):
    """The tree-shaped mask: a choice sees the context and itself, never the choices before it in the row."""
    scorer = LoglikScorer(base_and_routed("llama")[1], packed=True)
    example = EXAMPLES[3]
    choices = tuple(example.choices[place] for place in order)
    asked = [replace(example, choices=of, answer=of.index(right)) for of in (example.choices, choices) for right in example.choices]
    found, _ = score_policy(scorer, [scorer.question(ARC, one) for one in asked], RoutePolicy(route))
    margins = [verdict.margin_acc for verdict in found]
    assert margins[:4] == pytest.approx(margins[4:], abs=1e-2)
    assert len({round(margin, 3) for margin in margins[:4]}) == 4


def test_a_context_that_ends_in_a_blank_gives_it_to_the_choices():
    task = replace(ARC, loglik_template="{question} So: ")
    _, routed = base_and_routed("llama")
    scorer = LoglikScorer(routed)
    question = scorer.question(task, EXAMPLES[0])
    assert byte_tokenizer().decode(list(question.context_ids)) == "What melts ice? So:"
    got = score_policy(scorer, [question], RoutePolicy(ROUTES[4]))[0][0]
    assert_logliks(got, question, expected_logliks("llama", ROUTES[4], EXAMPLES[0], task))


MERGES = ((":", "Ġ"), (":Ġ", "a"))  # of ": " and ": a", which no prompt that ends in a colon can hold


def test_choices_that_merge_with_the_context_are_cut_as_in_lm_eval():
    """The context is tokenised alone, so that the choice cannot reach a policy; the choice is what the whole has beyond its length."""
    tokenizer = byte_tokenizer(MERGES)
    assert len(tokenizer("Answer: abc")["input_ids"]) == len("Answer: abc") - 2
    head, tail = encode_choice(tokenizer, "Answer:", " abc", False)
    assert tokenizer.convert_ids_to_tokens(head) == list("Answer:")
    assert tokenizer.convert_ids_to_tokens(tail) == ["b", "c"]
    assert tokenizer.convert_ids_to_tokens(encode_choice(tokenizer, "Answer:", " xyz", False)[1]) == ["x", "y", "z"]

    base = families.build("llama", vocab_size=300)
    twin = path_model(base, ROUTES[4].spans)
    routed = RoutedModel.wrap(base, tokenizer)
    example = Example("m", "Which?", ("abc", "xyz", "aaa"), 0, "arc_easy")
    for packed in (True, False):
        scorer = LoglikScorer(routed, packed=packed)
        question = scorer.question(ARC, example)
        assert tokenizer.decode(list(question.context_ids)) == "Question: Which?\nAnswer:"
        assert all(sequence.n_context == len(question.context_ids) for sequence in question.sequences)
        got = score_policy(scorer, [question], RoutePolicy(ROUTES[4]))[0][0]
        assert_logliks(got, question, plain_logliks(twin, tokenizer, *ARC.loglik_prompt(example)))


def test_a_choice_that_vanishes_in_the_context_is_refused():
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300), byte_tokenizer(MERGES))
    with pytest.raises(InputError, match="'m' of arc_easy has an empty prompt or choice"):
        LoglikScorer(routed).question(ARC, Example("m", "Which?", ("a", "xyz"), 0, "arc_easy"))


def test_scoring_without_a_tokenizer_is_refused():
    routed = RoutedModel.wrap(families.build("llama"))
    for make in (LoglikScorer, lambda model: GeneratedScorer(model, "letter")):
        with pytest.raises(InputError, match="needs a tokenizer"):
            make(routed)


@dataclass(frozen=True)
class Choices:
    """As much of a question as a verdict reads."""

    example: Example
    n_chars: tuple[int, ...]
    task: Task = ARC


def test_acc_and_acc_norm_by_hand():
    """-6 over 10 characters beats -4 over 4; without normalisation it is the other way round."""
    asked = Choices(Example("v", "?", ("long choice", "four"), 0, "arc_easy"), (10, 4))
    normal = loglik_verdict([-6.0, -4.0], asked, "acc_norm")
    assert (normal.correct, normal.acc_norm, normal.acc) == (True, True, False)
    assert normal.margin == pytest.approx(-0.6 + 1.0)
    plain = loglik_verdict([-6.0, -4.0], asked, "acc")
    assert (plain.correct, plain.acc_norm, plain.acc) == (False, True, False)
    assert plain.margin == pytest.approx(-2.0)
    # The margin is to the best of the others; equal scores go to the first choice, as argmax does.
    three = Choices(Example("v", "?", ("a", "b", "c"), 1, "arc_easy"), (1, 1, 1))
    assert loglik_verdict([-3.0, -1.0, -2.5], three, "acc").margin == pytest.approx(1.5)
    assert loglik_verdict([-1.0, -1.0, -2.0], three, "acc").correct is False
    assert loglik_verdict([-1.0, -1.0, -2.0], three, "acc").margin == 0
    # TruthfulQA has raw log-likelihoods alone, whatever the metric.
    raw = loglik_verdict([-6.0, -4.0], replace(asked, task=get_task("truthfulqa")), "acc_norm")
    assert (raw.correct, raw.margin) == (plain.correct, plain.margin)


def test_log_likelihoods_are_divided_by_the_characters_of_what_is_scored():
    """A listed option is scored by its letter: long texts behind short letters must not win (lm-eval's acc_norm)."""
    scorer = LoglikScorer(base_and_routed("llama")[1])
    example = Example("m", "Which?", ("a very long option indeed", "no"), 1, "mmlu")
    question = scorer.question(get_task("mmlu"), example)
    assert question.n_chars == (1, 1)
    scorer.load([question])
    [verdict] = scorer.score([(0, Route.full(L))])
    assert (verdict.acc, verdict.margin_acc) == (verdict.acc_norm, verdict.margin_acc_norm)
    assert scorer.question(get_task("agieval"), Example("a", "Which?", ("one", "three"), 0, "agieval")).n_chars == (6, 8)


def test_a_task_gets_the_scorer_that_can_judge_it():
    _, routed = base_and_routed("llama")
    assert isinstance(scorer_of(routed, ARC, EvaluateConfig()), LoglikScorer)
    assert scorer_of(routed, ARC, EvaluateConfig(reward="letter")).max_new_tokens == 10
    assert scorer_of(routed, get_task("gsm8k"), EvaluateConfig()).max_new_tokens == 15
    assert scorer_of(routed, get_task("gsm8k"), EvaluateConfig(reward="boxed", max_new_tokens=7)).max_new_tokens == 7
    for task, reward in (("arc_easy", "boxed"), ("gsm8k", "loglik"), ("gsm8k", "letter")):
        with pytest.raises(InputError, match=f"which reward '{reward}' cannot judge"):
            scorer_of(routed, get_task(task), EvaluateConfig(reward=reward))


def test_the_digest_follows_the_content_not_the_order_of_scoring():
    _, routed = base_and_routed("llama")
    scorer = LoglikScorer(routed)
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    assert questions_digest(questions) == questions_digest([LoglikScorer(routed, packed=False).question(ARC, e) for e in EXAMPLES])
    for change in ({"question": "Else?"}, {"answer": 1}, {"choices": ("heat", "cold", "sand")}, {"context": "Ice."}, {"id": "z"}):
        assert questions_digest([scorer.question(ARC, replace(EXAMPLES[0], **change)), *questions[1:]]) != questions_digest(questions)


ODD = {
    "empty question": replace(EXAMPLES[0], question=""),
    "blank question": replace(EXAMPLES[0], question=" \n "),
    "empty choice": replace(EXAMPLES[0], choices=("", "b", "cc")),
    "twenty choices": replace(EXAMPLES[0], choices=tuple(f"choice {place}" for place in range(20)), answer=19),
    "equal choices": replace(EXAMPLES[0], choices=("same", "same", "other"), answer=1),
    "unicode": replace(EXAMPLES[0], question="👩‍👩‍👧 e\u0301 \u202bמה?", choices=("مرحبا", "漢字", "e\u0301", "\u0000")),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("example", ODD.values(), ids=ODD)
def test_odd_questions_get_the_verdict_of_their_log_likelihoods(example, packed):
    _, routed = base_and_routed("llama")
    scorer = LoglikScorer(routed, 300, packed=packed)
    verdict = score_policy(scorer, [scorer.question(ARC, example)], RoutePolicy(ROUTES[4]))[0][0]
    totals = expected_logliks("llama", ROUTES[4], example)
    per_char = [total / max(len(choice), 1) for total, choice in zip(totals, example.choices, strict=True)]
    for scores, margin, correct in ((totals, verdict.margin_acc, verdict.acc), (per_char, verdict.margin_acc_norm, verdict.acc_norm)):
        gold, best_other = scores[example.answer], max(scores[: example.answer] + scores[example.answer + 1 :])
        assert margin == pytest.approx(gold - best_other, abs=1e-3)
        assert correct == (scores.index(max(scores)) == example.answer)
    assert not verdict.broken


BOOK = get_task("openbookqa")
REFUSED = {
    "empty prompt": (BOOK, {"question": ""}, "has an empty prompt or choice"),
    "blank prompt": (BOOK, {"question": " \n"}, "has an empty prompt or choice"),
    "long choice": (ARC, {"choices": ("heat", "why " * 60)}, "exceeds the context of 256 tokens"),
    "one choice": (ARC, {"choices": ("only",)}, "'a' of arc_easy has 1 choice"),
    "no choice": (ARC, {"choices": ()}, "'a' of arc_easy has 0 choices"),
    "half a character": (ARC, {"question": "half \ud83d"}, "'a' of arc_easy cannot be tokenised"),
    "half a character in a choice": (ARC, {"choices": ("heat", "\udfff")}, "'a' of arc_easy cannot be tokenised"),
}


@pytest.mark.parametrize(("task", "changed", "message"), REFUSED.values(), ids=REFUSED)
def test_questions_that_cannot_be_scored_are_one_line(task, changed, message):
    _, routed = base_and_routed("llama")
    with pytest.raises(InputError, match=message) as caught:
        LoglikScorer(routed).question(task, replace(EXAMPLES[0], **changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "packed", "limit"), [("llama", False, 59), ("gpt2", True, 59), ("opt", False, 59), ("gpt2", False, 64), ("gpt2", False, 59)]
)
def test_a_question_that_just_fits_is_scored(family, packed, limit):
    """To the token, also where positions are learned and their number is no multiple of what rows are padded to."""
    routed = RoutedModel.wrap(families.build(family, vocab_size=300, max_position_embeddings=limit), byte_tokenizer())
    scorer = LoglikScorer(routed, packed=packed)
    n_fixed = len("Question: \nAnswer:") + len(" abc")
    fits = replace(EXAMPLES[0], question="w" * (limit - n_fixed), choices=("abc", "x"))
    assert len(score_policy(scorer, [scorer.question(ARC, fits)], RoutePolicy(ROUTES[4]))[0]) == 1
    with pytest.raises(InputError, match=f"a prompt of {limit + 1} tokens"):
        scorer.question(ARC, replace(fits, question=fits.question + "w"))


PAIRS = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([5, 6, 7], [11, 12, 13])]


def test_packed_rows_by_hand():
    assert pack_choices(PAIRS) == PackedPrompt(
        tokens=(5, 6, 7, 8, 11, 12),
        positions=(0, 1, 2, 3, 3, 4),
        branches=(0, 0, 0, 1, 3, 3),
        n_context=3,
        sources=(2, 3, 2, 2, 4, 5),
        targets=(8, 9, 10, 11, 12, 13),
        choices=(0, 0, 1, 2, 2, 2),
    )


def test_separate_rows_by_hand():
    first, second, third = separate_choices(PAIRS)
    assert first == PackedPrompt((5, 6, 7, 8), (0, 1, 2, 3), (0, 0, 0, 0), 3, (2, 3), (8, 9), (0, 0))
    assert second == PackedPrompt((5, 6, 7), (0, 1, 2), (0, 0, 0), 3, (2,), (10,), (1,))
    assert third == PackedPrompt((5, 6, 7, 11, 12), (0, 1, 2, 3, 4), (0,) * 5, 3, (2, 3, 4), (11, 12, 13), (2, 2, 2))


def test_the_tree_shaped_mask_by_hand():
    batch = make_batch([pack_choices(PAIRS), PackedPrompt((5,), (0,), (0,), 1, (0,), (6,), (0,))], True, torch.float32, torch.device("cpu"))
    sees = (batch.inputs["attention_mask"] == 0)[:, 0].int().tolist()
    assert sees[0] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    assert [[row[place] for row in sees[1]] for place in range(1, 6)] == torch.eye(6).int().tolist()[1:], "a pad is seen by itself alone"
    assert batch.prompt_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.scored.tolist() == [2, 3, 2, 2, 4, 5, 6]
    assert batch.inputs["attention_mask"].min() == torch.finfo(torch.float32).min
    assert make_batch([pack_choices(PAIRS)], False, torch.float32, torch.device("cpu")).inputs["attention_mask"].tolist() == [[1] * 6]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 150))
def test_steps_hold_every_row_once_in_order_and_keep_the_bound(lengths, max_tokens):
    steps = split_steps(lengths, max_tokens)
    assert [index for step in steps for index in step] == list(range(len(lengths)))

    def padded(step: list[int]) -> int:
        return len(step) * max(lengths[index] for index in step)

    assert all(step and (len(step) == 1 or padded(step) <= max_tokens) for step in steps)
    # Greedy: no step could have taken the next one's first row.
    assert all(padded([*step, following[0]]) > max_tokens for step, following in pairwise(steps))
