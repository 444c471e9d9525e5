"""What all prompts of a task begin with runs once a path: the same answers, whoever is asked beside, in less memory and fewer tokens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.scoring.generated import FEWEST, GeneratedScorer, can_begin_alike
from drllm.tasks import Example, get_task
from rote import answering

pytestmark = pytest.mark.long

L = families.N_BLOCKS
ARC, GSM, SQUAD = get_task("arc_easy"), get_task("gsm8k"), get_task("squadv2")
TEXTS = ("One?", "Two and three, and how many are they?", "x", "What is seven times six, when five are taken away?")
SUMS = [Example(f"s{place}", text, (), "5", "gsm8k") for place, text in enumerate(TEXTS)]
ROUTES = [Route.parse(text) for text in ("1111", "0111", "2112", "0000", "0-2,1-3", "0-2,(0-2)*0.5,3", "3,0-1")]
PAIRS = [(index, route) for index in range(len(SUMS)) for route in ROUTES]
SHARING = ["llama", "gpt2", "opt", "falcon", "gpt_neox", "mixtral", "deepseek_v3", "cohere"]


def asking(family: str, shares: bool | None = None, cache_bytes: int = 2**30) -> GeneratedScorer:
    """A scorer of boxed answers in the authors' words; `shares`: whether or not the family can."""
    scorer = GeneratedScorer(answering(family), "boxed", 256, max_new_tokens=8, cache_bytes=cache_bytes, prompts="authors")
    if shares is not None:
        vars(scorer)["_shares"] = shares
    return scorer


def texts(scorer: GeneratedScorer, places: list[int], pairs: list[tuple[int, Route]]) -> list[str | None]:
    """Of pairs of a question among `places` and a route."""
    scorer.load([scorer.question(GSM, SUMS[place]) for place in places])
    return [verdict.text for verdict in scorer.score([(places.index(place), route) for place, route in pairs])]


@torch.no_grad()
@pytest.mark.parametrize("family", families.quick(*SHARING))
def test_what_runs_behind_a_beginning_is_what_the_whole_prompt_gives(family):
    """Answers of every path to the last token, and the logits behind its prompt; the beginning runs once a path."""
    everybody, logits, said = list(range(len(SUMS))), [], []
    for shares in (None, False):
        scorer = asking(family, shares)
        questions = [scorer.question(GSM, example) for example in SUMS]
        said.append(texts(scorer, everybody, PAIRS))
        runner = scorer.runner
        scorer.load(questions)
        roots = [root for _, [root] in scorer.opened.values()]
        runner.n_applied, n_before = 0, {root.bucket.n_before for root in roots}
        assert n_before == ({questions[0].n_shared} if shares is None else {0})
        for place, (index, route) in enumerate(PAIRS):
            runner.submit(roots[index], route, place)
        ended = dict(runner.ends(len(PAIRS)))
        logits.append(runner.finish(torch.stack([ended[place].state[-1] for place in range(len(PAIRS))])))
        distinct = {route.path[:length] for route in ROUTES for length in range(1, route.n_passes + 1)}
        assert runner.n_applied == (len(SUMS) + (shares is None)) * len(distinct)
    assert said[0] == said[1]
    assert len(set(said[0])) > len(SUMS)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4 * float(logits[1].abs().max()))


@pytest.mark.parametrize("family", ["mistral-sliding", "gemma3_text", "llama4_text", "gpt_neo", "doge", "modernbert-decoder"])
def test_families_with_windows_read_every_prompt_whole(family):
    scorer = asking(family)
    questions = [scorer.question(GSM, example) for example in SUMS]
    scorer.load(questions)
    assert questions[0].n_shared >= FEWEST, "there would be something to share"
    assert {root.bucket.n_before for _, [root] in scorer.opened.values()} == {0}
    assert not scorer.stems


def test_what_rounding_or_length_would_change_is_not_shared():
    assert can_begin_alike(answering("llama"))
    assert not can_begin_alike(RoutedModel.wrap(families.build("llama").to(torch.bfloat16), byte_tokenizer()))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert not can_begin_alike(RoutedModel.wrap(families.build("llama", rope_parameters=dynamic), byte_tokenizer()))
    scorer = GeneratedScorer(RoutedModel.wrap(families.build("llama").to(torch.bfloat16), byte_tokenizer()), "boxed", 256)
    assert scorer.runner.fills, "steps of one shape: 16 bits round by it"


@settings(deadline=None, max_examples=4, derandomize=True)
@given(cache_bytes=st.sampled_from([0, 30_000, 300_000, 2**30]), seed=st.integers(0, 99), size=st.integers(1, len(SUMS)))
def test_answers_depend_neither_on_the_company_nor_on_memory(cache_bytes, seed, size):
    """Groups of any size in any order, prefixes and beginnings evicted: what each question alone is answered."""
    want = dict(zip(PAIRS, texts(asking("llama", False), list(range(len(SUMS))), PAIRS), strict=True))
    scorer, rng = asking("llama", cache_bytes=cache_bytes), random.Random(seed)
    places, found = rng.sample(range(len(SUMS)), len(SUMS)), {}
    for start in range(0, len(places), size):
        group = places[start : start + size]
        pairs = [pair for pair in PAIRS if pair[0] in group]
        rng.shuffle(pairs)
        found |= dict(zip(pairs, texts(scorer, group, pairs), strict=True))
    assert found == want
    scorer.load([])
    assert scorer.runner.n_bytes == 0
    assert not scorer.stems


def test_a_beginning_is_the_tasks_alone():
    """Whatever a question says first, and whichever question is met first; a passage comes before the instruction."""
    scorer = asking("llama")
    first, second = (asking("llama").question(GSM, example).context_ids for example in SUMS[:2])
    n_shared = scorer.question(GSM, SUMS[1]).n_shared
    assert n_shared == asking("llama").question(GSM, SUMS[0]).n_shared >= FEWEST
    assert first[:n_shared] == second[:n_shared]
    assert scorer.routed.tokenizer.decode(first[:n_shared]).endswith("Question: ")
    passage = Example("p", "Who?", ("B",), "B", "squadv2", "Long ago.")
    assert GeneratedScorer(answering("llama"), "exact", 256).question(SQUAD, passage).n_shared == 0
    lettered = Example("l", "Red?", ("a", "bb"), 0, "arc_easy")
    letters = GeneratedScorer(answering("llama"), "letter", 256)
    plain, behind = (letters.question(ARC, replace(lettered, context=text)).n_shared for text in ("", "Long ago."))
    assert plain > behind
