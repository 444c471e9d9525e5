"""Generated answers: in mixed batches, stopped early and from shared prefixes, each is what its prompt alone generates."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import families
from byte_tokens import byte_tokenizer
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.model.generation import CHANGE_GREEDY, GreedyChoice
from drllm.model.transformers_private import RoomySlot
from drllm.policies.constant import GivenRoutes, RoutePolicy
from drllm.scoring import generated
from drllm.scoring.generated import GeneratedScorer
from drllm.scoring.prefixes import Node, bytes_of
from drllm.tasks import Example, f1_score, get_task
from drllm.tasks.wording import WORDINGS
from rote import answering, by_rote, rote_example
from scored import score_policy
from standings import NOT_WRITTEN

pytestmark = pytest.mark.long

OURS = WORDINGS["ours"]
L = families.N_BLOCKS
ARC, GSM = get_task("arc_easy"), get_task("gsm8k")
FAMILIES = ["llama", "gpt2", "opt", "gemma2", "mistral-sliding", "mixtral"]
MORE_FAMILIES = ["llama4_text", "deepseek_v3", "falcon", "qwen3-sliding", "modernbert-decoder"]
INDEXED = [name for name in NOT_WRITTEN if name in families.FAMILIES]
ROUTES = [
    Route.parse(text)
    for text in ("1111", "0111", "1110", "2111", "1112", "1021", "0000", "2222", "1101", "0120", "0-2,1-3", "0-2,(0-2)*0.5,3", "3,0-1")
]
EXAMPLES = [
    Example("a", "What melts ice?", ("heat", "the cold of night", "sand"), 0, "arc_easy"),
    Example("b", "How many legs does a spider have?", ("six", "eight"), 1, "arc_easy"),
    Example("c", "Red?", ("a", "bb", "ccc", "dddd"), 3, "arc_easy"),
    Example("d", "Which of these is a gas at the temperature of a room?", ("iron", "oxygen", "salt", "wood"), 1, "arc_easy"),
]
SUMS = [Example(name, text, (), "5", "gsm8k") for name, text in (("s", "One?"), ("t", "Two and three, and how many are they?"), ("u", "x"))]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def mixed_pairs(n: int, seed: int = 0) -> list[tuple[int, Route]]:
    rng = random.Random(seed)
    return [(rng.randrange(len(EXAMPLES)), Route([rng.choice((0, 1, 1, 2)) for _ in range(L)])) for _ in range(n)]


def texts_of(routed: RoutedModel, pairs: list[tuple[int, Route]], n_new: int = 10, cache_bytes: int = 2**30) -> list[str | None]:
    scorer = GeneratedScorer(routed, "letter", 600, n_new, cache_bytes)
    scorer.load([scorer.question(ARC, example) for example in EXAMPLES])
    return [verdict.text for verdict in scorer.score(pairs)]


def alone(routed: RoutedModel, example: Example, route: Route, n_new: int = 10) -> str:
    """The whole answer to one prompt in a batch of its own."""
    return routed.generate([asked(ARC.letter_prompt(example, OURS))], policy=route, max_new_tokens=n_new, do_sample=False)[0].text or ""


@pytest.mark.parametrize("family", FAMILIES)
def test_letters_are_settled_by_the_beginning_of_what_each_prompt_generates(family):
    routed = answering(family)
    pairs = mixed_pairs(24)
    scorer = GeneratedScorer(routed, "letter", 600)
    scorer.load([scorer.question(ARC, example) for example in EXAMPLES])
    n_cut = 0
    verdicts = scorer.score(pairs)
    for (index, route), verdict in zip(pairs, verdicts, strict=True):
        whole = alone(routed, EXAMPLES[index], route)
        assert verdict.text is not None
        assert whole.startswith(verdict.text)
        assert verdict.correct == ARC.read(EXAMPLES[index], whole, "letter").lenient
        assert verdict.text == whole or ARC.settled(verdict.text, "letter")
        assert (verdict.strict, verdict.lenient, verdict.form) == ARC.read(EXAMPLES[index], whole, "letter")
        assert math.isnan(verdict.margin)
        assert (verdict.acc, verdict.broken) == (None, False)
        n_cut += verdict.text != whole
    assert 0 < n_cut < len(pairs), "some answers must settle early and some must not"
    assert len({verdict.text for verdict in verdicts}) > 5


@pytest.mark.parametrize(
    "family",
    [*FAMILIES, *MORE_FAMILIES]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(families.FAMILIES)
        if name not in {*FAMILIES, *MORE_FAMILIES, *INDEXED}
    ],
)
def test_boxed_answers_are_those_of_each_prompt_alone(family):
    """To the last token, past a sliding window of 6, over left pads, from blocks run twice and blocks never run."""
    routed = RoutedModel.wrap(families.build(family, vocab_size=300), byte_tokenizer())
    routed.model.generation_config.eos_token_id = None
    scorer = GeneratedScorer(routed, "boxed", 256, max_new_tokens=8)
    scorer.load([scorer.question(GSM, example) for example in SUMS])
    pairs = [(index, route) for index in range(len(SUMS)) for route in (ROUTES[index], ROUTES[index + 5], ROUTES[9])]
    for (index, route), verdict in zip(pairs, scorer.score(pairs), strict=True):
        (output,) = routed.generate([asked(GSM.boxed_prompt(SUMS[index], OURS))], policy=route, max_new_tokens=8, do_sample=False)
        assert output.n_new_tokens == 8
        assert verdict.text == output.text, route
        assert not verdict.correct


def test_answers_out_of_passages_end_with_their_line_and_are_counted():
    """Each is the first line of what its prompt alone generates, with SQuAD's F1; a broken one would have 0."""
    task, routed = get_task("squadv2"), answering("llama")
    examples = [Example(name, "Who?", accepted, "", "squadv2", f"Background: {name}") for name, accepted in (("a", ("B", "A.")), ("b", ()))]
    scorer = GeneratedScorer(routed, "exact", 600, max_new_tokens=10)
    assert (scorer.prompt_format, GeneratedScorer(routed, "exact").max_new_tokens) == ("raw", 32)
    scorer.load([scorer.question(task, example) for example in examples])
    pairs = [(index, route) for index in range(2) for route in ROUTES]
    lines = set()
    for (index, route), verdict in zip(pairs, scorer.score(pairs), strict=True):
        prompt = task.passage_prompt(examples[index])
        whole = routed.generate([prompt], policy=route, max_new_tokens=10, do_sample=False)[0].text or ""
        assert verdict.text is not None
        assert whole.startswith(verdict.text)
        assert verdict.text == whole or verdict.text.count("\n") == 1
        assert verdict.correct == task.read(examples[index], whole, "exact").strict
        assert verdict.f1 == f1_score(whole, examples[index].choices)
        lines.add(verdict.text)
    assert len(lines) > 5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_base_models_without_a_template_get_the_text_of_the_messages(family):
    routed = answering(family, None)
    scorer = GeneratedScorer(routed, "letter", 600, max_new_tokens=6)
    assert (scorer.prompt_format, GeneratedScorer(answering(family), "letter").prompt_format) == ("raw", "chat")
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    verdicts, routes = score_policy(scorer, questions, GivenRoutes(ROUTES[:4]))
    assert routes == ROUTES[:4]
    for example, route, verdict in zip(EXAMPLES, routes, verdicts, strict=True):
        prompt = ARC.letter_prompt(example, OURS) + "\n\n"
        whole = routed.generate([prompt], policy=route, max_new_tokens=6, do_sample=False)[0].text or ""
        assert whole.startswith(str(verdict.text))
    assert score_policy(scorer, questions, None)[0] == score_policy(scorer, questions, RoutePolicy(ROUTES[0]))[0]


def test_a_question_reads_the_same_on_every_day_and_leaves_no_room_to_think():
    """Templates as Llama's, which write the date, and Qwen3's, which think unless they are told not to."""
    day = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}Today is {{ date_string }}. "
    thought = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    routed = answering("llama", day + "{{ messages[0]['content'] }}" + thought)
    text = routed.tokenizer.decode(GeneratedScorer(routed, "letter").question(ARC, EXAMPLES[0]).context_ids)
    assert text.startswith("Today is 26 Jul 2024. ")
    assert text.endswith("<think></think>")


# Each token is followed by one other, whatever stood before. A prompt ends in its question's first character.
def test_generated_verdicts_are_those_of_the_right_question():
    """Questions of several lengths, asked out of order and twice; answers that end, settle, or run on to the limit."""
    scorer = GeneratedScorer(by_rote(), "letter", 600, max_new_tokens=6)
    examples = [rote_example("1", 0), rote_example("2", 1, "and more"), rote_example("3", 0), rote_example("4", 3, "m" * 30)]
    examples.append(rote_example("2", 0, "again"))
    scorer.load([scorer.question(ARC, example) for example in examples])
    order = [4, 3, 0, 2, 1, 3]
    verdicts = scorer.score([(index, ROUTES[place]) for place, index in enumerate(order)])
    assert [verdict.text for verdict in verdicts] == ["B", "D\nv", "A. v", "Cuvuvu", "B", "D\nv"]
    assert [verdict.correct for verdict in verdicts] == [False, True, True, False, True, True]


def test_half_a_character_settles_nothing():
    """After one byte of a digit of two the text ends in a replacement character, which is not what will stand there."""
    routed = by_rote()
    example = replace(rote_example("5", 4), choices=("v", "w", "x", "y", "z"))
    scorer = GeneratedScorer(routed, "letter", 600, max_new_tokens=5)
    (verdict,), _ = score_policy(scorer, [scorer.question(ARC, example)], None)
    whole = alone(routed, example, ROUTES[0], n_new=5)
    assert whole == "E)٣ "
    assert ARC.read(example, whole, "letter").lenient is False
    assert (verdict.text, verdict.correct) == (whole, False)


def decode_sizes(routed: RoutedModel, run) -> list[int]:
    """Rows of each decoding step that `run` makes."""
    sizes: list[int] = []

    def look(_module, args) -> None:
        if args[0].shape[1] == 1 and len(args[0]) != generated.FIRST_ANSWERS:  # the head alone gets that many rows of one token
            sizes.append(len(args[0]))

    handle = routed.model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        run()
    finally:
        handle.remove()
    return sizes


def test_answers_leave_the_batch_when_they_are_settled():
    """Of ten answers two run on; the rest is done after two, three or four tokens, so the steps get narrower and end with the two."""
    scorer = GeneratedScorer(by_rote(), "letter", 600, max_new_tokens=8)
    examples = [rote_example(first, 0, str(place)) for place, first in enumerate("1231423442")]
    scorer.load([scorer.question(ARC, example) for example in examples])
    pairs = [(index, ROUTES[index]) for index in range(10)]
    sizes = decode_sizes(by_rote(), lambda: scorer.score(pairs))
    # First tokens come from the prefill. Second: all ten, then "B" has ended. Third: "D\nv" is settled. Fourth: "A. v" is.
    assert sizes == [10, 7, 4, 2, 2, 2, 2]
    scorer = GeneratedScorer(by_rote(), "letter", 600, max_new_tokens=1)
    scorer.load([scorer.question(ARC, example) for example in examples])
    assert decode_sizes(by_rote(), lambda: scorer.score(pairs)) == [], "one new token needs no decoding"


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "mistral-sliding"))]
)
def test_rows_that_leave_change_no_other_answer(family, monkeypatch):
    """Never compacted, always compacted, decoded by twos, heads by threes: the same texts, fp32."""
    routed, pairs = answering(family), mixed_pairs(30, seed=4)
    expected = texts_of(routed, pairs)
    assert len({len(str(text)) for text in expected}) > 3, "answers must end at different steps"
    changes = [(generated, "COMPACT_BELOW", 0.0), (generated, "COMPACT_BELOW", 1.01), (generated, "DECODED_ANSWERS", 2)]
    for holder, name, value in (*changes, (generated, "FIRST_ANSWERS", 3), (RoomySlot, "ROOM", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            assert texts_of(routed, pairs) == expected, (name, value)


@settings(deadline=None, max_examples=4, derandomize=True)
@given(cache_bytes=st.sampled_from([0, 30_000, 300_000, 2**30]), seed=st.integers(0, 5), n_calls=st.integers(1, 3))
def test_answers_depend_neither_on_memory_nor_on_order(cache_bytes, seed, n_calls):
    routed, pairs = answering("mistral-sliding"), mixed_pairs(18, seed=9)
    expected = texts_of(routed, pairs)
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    scorer = GeneratedScorer(routed, "letter", 600, cache_bytes=cache_bytes)
    handles = scorer.open([scorer.question(ARC, example) for example in EXAMPLES])
    got: dict[int, str | None] = {}
    for call in range(n_calls):
        part = order[call::n_calls]
        for place in part:
            scorer.submit(handles[pairs[place][0]], pairs[place][1])
        collected = scorer.collect()
        assert [(handle, route) for handle, route, _ in collected] == [(handles[pairs[place][0]], pairs[place][1]) for place in part]
        got |= {place: verdict.text for place, (_, _, verdict) in zip(part, collected, strict=True)}
        assert scorer.collect() == []
    assert [got[place] for place in range(len(pairs))] == expected
    scorer.close(handles)
    assert scorer.runner.n_bytes == 0


def test_prompts_share_prefixes_within_the_memory_given():
    """One application a distinct prefix, of each question and of what all begin with; one path at a time, its line and a step at most."""
    routed, pairs = answering("llama"), list(dict.fromkeys(mixed_pairs(20, seed=2)))
    scorer = GeneratedScorer(routed, "letter", 600)
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    scorer.load(questions)
    scorer.score(pairs)
    prefixes = {(index, route.path[:length]) for index, route in pairs for length in range(1, route.n_passes + 1)}
    shared = {path for _, path in prefixes}
    assert scorer.runner.n_applied == len(prefixes) + len(shared)
    # States of 32 numbers a token, and keys and values of 2 heads of 8.
    buckets = {index: root.bucket for index, (_, [root]) in scorer.opened.items()}
    a_node = {index: (bucket.width * (32 + 2 * 16) + bucket.n_before * 2 * 16) * 4 for index, bucket in buckets.items()}
    beginnings = len(shared) * questions[0].n_shared * (32 + 2 * 16) * 4
    assert scorer.runner.n_bytes == sum(a_node[index] for index, _ in prefixes) + beginnings
    small = GeneratedScorer(routed, "letter", 600, cache_bytes=0)
    small.load(questions)
    for pair in pairs:
        small.score([pair])
    longest = max(route.n_passes for _, route in pairs)
    assert small.runner.peak_bytes <= 2 * longest * max(a_node.values()), "the line before goes while this one comes"
    assert small.runner.peak_bytes < scorer.runner.n_bytes / 3


def test_what_is_decoded_together_keeps_keys_and_values_but_no_states():
    """Without a cache: every line's keys and values, and the states that some application still needs. The answers are the same."""
    routed, pairs = answering("llama"), list(dict.fromkeys(mixed_pairs(40, seed=2)))
    pairs += [(index, Route.full(L).loop(1, 2, 0.5)) for index in range(len(EXAMPLES))]
    scorer = GeneratedScorer(routed, "letter", 600, cache_bytes=0)
    runner, expected = scorer.runner, texts_of(routed, pairs)
    scorer.load([scorer.question(ARC, example) for example in EXAMPLES])
    tries = [root for _, roots in scorer.opened.values() for root in roots] + list(scorer.stems.values())
    peaks = [0, 0]

    def look(*_: Any) -> None:
        nodes = [node for root in tries for node in below(root)]
        assert runner.n_bytes == sum(map(bytes_of, nodes))
        for place, tensors in enumerate(([node.state for node in nodes], [part for node in nodes for part in sum(node.keys_values, ())])):
            peaks[place] = max(peaks[place], sum(tensor.nbytes for tensor in tensors if tensor is not None))

    looking = [block.mlp.register_forward_pre_hook(look) for block in routed.blocks]
    assert [verdict.text for verdict in scorer.score(pairs)] == expected
    for handle in looking:
        handle.remove()
    n_nodes = len({(index, route.spans[:length]) for index, route in pairs for length in range(1, len(route.spans) + 1)})
    width = max(root.bucket.width for root in tries)
    assert peaks[1] > n_nodes / 2 * width * 2 * 16 * 4, "the lines of all answers"
    assert peaks[0] <= 2 * len(pairs) * width * 32 * 4, "two states an answer at most"


def below(node: Node) -> list[Node]:
    """All nodes behind one."""
    return [found for child in node.children.values() for found in (child, *below(child))]


def test_the_repetition_penalty_of_the_model_is_followed():
    """Prompt tokens count too, pads do not: the answers of `generate`, which differ from those without a penalty."""
    routed, pairs = answering("llama", repetition_penalty=1.6), mixed_pairs(12, seed=6)
    plain, penalised = texts_of(answering("llama"), pairs), texts_of(routed, pairs)
    for (index, route), text in zip(pairs, penalised, strict=True):
        assert alone(routed, EXAMPLES[index], route).startswith(str(text))
    assert sum(a != b for a, b in zip(plain, penalised, strict=True)) > 3


VALUES = {
    **{"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5, "bad_words_ids": [[5]]},
    **{"min_length": 4, "min_new_tokens": 4, "forced_bos_token_id": 3, "forced_eos_token_id": 2, "suppress_tokens": [4]},
    **{"begin_suppress_tokens": [4], "sequence_bias": [[[5], -1.0]], "exponential_decay_length_penalty": (2, 1.1)},
    **{"stop_strings": ["A"], "watermarking_config": {"bias": 2.0}},
}
HARMLESS = [
    *({"no_repeat_ngram_size": 0}, {"min_length": 0}, {"repetition_penalty": 1.0}, {"suppress_tokens": []}, {"temperature": 0.2}),
    *({"do_sample": True}, {"encoder_repetition_penalty": 1.0}),
]


def choice(**settings: Any) -> GreedyChoice:
    """Of a model with these settings; no more of it is read."""
    return GreedyChoice(SimpleNamespace(generation_config=GenerationConfig(**settings)))


def test_settings_that_would_change_a_choice_are_refused_and_others_are_not():
    assert set(VALUES) == set(CHANGE_GREEDY)
    for name, value in VALUES.items():
        with pytest.raises(InputError, match=rf"generation_config sets {name}, which generated rewards do not follow"):
            choice(**{name: value})
    for harmless in HARMLESS:
        choice(**harmless)
    with pytest.raises(InputError, match="generation_config sets min_length"):
        GeneratedScorer(answering("llama", min_length=4), "letter")


@pytest.mark.parametrize(("given_id", "expected"), [(None, set()), (2, {2}), ([2, 7], {2, 7})])
def test_end_tokens_may_be_none_one_or_several(given_id, expected):
    assert choice(eos_token_id=given_id).end_ids == expected


@pytest.mark.parametrize("family", INDEXED)
def test_attention_that_keeps_more_than_keys_and_values_is_refused(family):
    routed = RoutedModel.wrap(families.build(family, vocab_size=300), byte_tokenizer())
    scorer = GeneratedScorer(routed, "boxed", 256)
    scorer.load([scorer.question(GSM, SUMS[0])])
    with pytest.raises(
        UnsupportedModelError, match=r"generated rewards cannot be searched on .* more than keys and values; use reward loglik"
    ):
        scorer.score([(0, ROUTES[0])])


REFUSED = {
    "27 choices": (replace(EXAMPLES[0], choices=("x",) * 27), "27 choices, a letter prompt holds at most 26"),
    "half a character": (replace(EXAMPLES[0], question="half \ud83d"), "cannot be tokenised"),
    "too long": (replace(EXAMPLES[0], question="why " * 120), r"plus 10 new ones exceeds the context of 512"),
}


@pytest.mark.parametrize(("example", "message"), REFUSED.values(), ids=REFUSED)
def test_questions_that_cannot_be_asked_are_one_line(example, message):
    with pytest.raises(InputError, match=message) as caught:
        GeneratedScorer(answering("llama"), "letter").question(ARC, example)
    assert "\n" not in str(caught.value)


def test_a_prompt_and_its_answer_must_fit_the_context():
    """To the token: the longest question that fits is answered, one token more is refused."""
    routed = RoutedModel.wrap(families.build("gpt2", vocab_size=300, max_position_embeddings=171), byte_tokenizer())
    scorer = GeneratedScorer(routed, "letter", 600, max_new_tokens=20)
    room = 171 - 20 - scorer.question(ARC, replace(EXAMPLES[0], question="")).n_tokens
    fits = scorer.question(ARC, replace(EXAMPLES[0], question="w" * room))
    assert len(score_policy(scorer, [fits], RoutePolicy(ROUTES[5]))[0]) == 1
    with pytest.raises(InputError, match="plus 20 new ones exceeds the context of 171"):
        scorer.question(ARC, replace(EXAMPLES[0], question="w" * (room + 1)))


def test_logits_that_are_not_numbers_are_marked_broken_and_spoil_no_other():
    """One weight that is not a number: routes through its block are broken, those decoded beside them are what they would be."""
    sound_base = families.build("llama", vocab_size=300, max_position_embeddings=512)
    base = copy.deepcopy(sound_base)
    with torch.no_grad():
        base.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    pairs = [(index, route) for index in range(2) for route in ROUTES]
    found = []
    for model in (base, sound_base):
        scorer = GeneratedScorer(RoutedModel.wrap(model, byte_tokenizer()), "letter", 600)
        scorer.load([scorer.question(ARC, example) for example in EXAMPLES[:2]])
        found.append(scorer.score(pairs))
    for (_, route), got, expected in zip(pairs, *found, strict=True):
        assert not expected.broken
        if route[2]:
            assert (got.broken, got.correct) == (True, False)
        else:
            assert (got.text, got.correct, got.broken) == (expected.text, expected.correct, False)


def test_an_answer_may_not_end_before_the_wording_lets_it():
    """By rote "B" ends at once; the authors' wordings ask for two tokens at least, so another one stands there."""
    scorer = GeneratedScorer(by_rote(), "letter", 600, prompts="authors", to_the_end=True)
    assert (scorer.wording, scorer.reader, scorer.max_new_tokens) == (WORDINGS["instruct"], "strict", 10)
    example = rote_example("2", 1)
    (verdict,), _ = score_policy(scorer, [scorer.question(ARC, example)], None)
    (output,) = by_rote().generate(
        [asked(ARC.letter_prompt(example, WORDINGS["instruct"]))], max_new_tokens=10, min_new_tokens=2, do_sample=False
    )
    assert (verdict.text, verdict.n_new) == (output.text, output.n_new_tokens)
    assert verdict.n_new > 2


@pytest.mark.parametrize("prompts", ["ours", "instruct", "qwen", "base"])
@pytest.mark.parametrize("reward", ["letter", "boxed"])
def test_answers_followed_to_their_end_are_those_of_each_prompt_alone(prompts, reward):
    """Text and number of tokens, by every wording; the verdict that counts is the reader's."""
    routed, wording = answering("llama"), WORDINGS[prompts]
    task, examples = (ARC, EXAMPLES) if reward == "letter" else (GSM, SUMS)
    n_new, readers = wording.new_tokens[reward], ("strict", "lenient")
    found = {}
    for reader in readers:
        scorer = GeneratedScorer(routed, reward, 600, prompts=prompts, reader=reader, to_the_end=True)
        scorer.load([scorer.question(task, example) for example in examples])
        found[reader] = scorer.score([(index, ROUTES[index + 1]) for index in range(len(examples))])
    for index, (strict, lenient) in enumerate(zip(*found.values(), strict=True)):
        ask = (task.letter_prompt if reward == "letter" else task.boxed_prompt)(examples[index], wording)
        prompt = ask if wording.is_text else asked(ask)
        (output,) = routed.generate(
            [prompt], policy=ROUTES[index + 1], max_new_tokens=n_new, min_new_tokens=wording.min_new_tokens, do_sample=False
        )
        assert (strict.text, strict.n_new) == (output.text, output.n_new_tokens)
        assert (strict.strict, strict.lenient, strict.form) == task.read(examples[index], output.text or "", reward, wording.opens_box)
        assert (strict.correct, lenient.correct) == (strict.strict, strict.lenient)


def test_searches_stop_reading_where_comparisons_go_on():
    examples = [rote_example(first, 0) for first in "124"]
    for to_the_end, lengths in ((True, [10, 2, 10]), (False, [0, 0, 0])):
        scorer = GeneratedScorer(by_rote(), "letter", 600, to_the_end=to_the_end)
        verdicts, _ = score_policy(scorer, [scorer.question(ARC, example) for example in examples], None)
        assert [verdict.n_new for verdict in verdicts] == lengths
        assert [(verdict.strict, verdict.lenient) for verdict in verdicts] == [(False, True), (False, False), (False, False)]
