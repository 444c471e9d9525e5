"""Shared prefixes: each is computed once, they stay within the memory given, and no verdict shows what else ran."""

from __future__ import annotations

import copy
import functools
import gc
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.policies.constant import GivenRoutes, RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from drllm.runs.store import Verdict
from drllm.scoring.loglik import HEAD_TOKENS, LoglikScorer, Question
from drllm.scoring.prefixes import Node
from drllm.scoring.route_prediction import decide_routes
from drllm.tasks import Example, get_task
from reference import path_model, plain_logliks

pytestmark = pytest.mark.long

L = families.N_BLOCKS
ARC = get_task("arc_easy")
STEP = 256  # tokens of a step, so that steps are partly full and hold several questions
# Two of the same width class, others of other widths: their rows meet in steps in many ways.
EXAMPLES = [
    Example("a", "What melts ice?", ("heat", "the cold of night", "sand"), 0, "arc_easy"),
    Example("b", "How many legs does a spider have?", ("six", "eight, two a side, and no wings"), 1, "arc_easy"),
    Example("c", "Red?", ("a", "bb", "ccc", "dddd", "e"), 4, "arc_easy"),
    Example("d", "Hot?", ("aa", "bb", "ccc", "ddd", "e"), 2, "arc_easy"),
]
ROUTES = [
    Route.parse(text) for text in ("1111", "0111", "1110", "2111", "1112", "1021", "0000", "2222", "1120", "0-2,1-3", "0-3,(1-2)*0.5")
]
# The same blocks twice, which end in other states: at full strength, at parts of it, and in the middle of a path.
ROUTES += [Route.parse(text) for text in ("0-2,(1-2)*0.5,3", "0-2,(1-2)*0.25,3", "0-2,(1-2)*0.5,1-2/4")]
PAIRS = [(index, route) for index in range(len(EXAMPLES)) for route in ROUTES]
Pair = tuple[int, Route]

# One of each kind: rotary, learned positions (two ways), tuples from blocks, windows everywhere, windows here and there, several caps.
DENSE = ["llama", "gpt2", "opt", "falcon", "mistral-sliding", "qwen3-sliding", "gemma2"]
_MORE = "gemma3_text mixtral deepseek_v3 cohere gpt_neox phi3-sliding llama4_text gpt_bigcode gpt_neo modernbert-decoder"
FAST_FAMILIES = [*DENSE, *_MORE.split()]


@functools.cache
def routed_of(family: str, dtype: torch.dtype = torch.float32) -> RoutedModel:
    # The fused attention rounds by the width of a row, so it would show a width that depends on other questions; gemma2 has none.
    attn = "eager" if family == "gemma2" else "sdpa"
    return RoutedModel.wrap(families.build(family, attn=attn, vocab_size=300).to(dtype), byte_tokenizer())


@functools.cache
def packs(family: str) -> bool:
    return LoglikScorer(routed_of(family)).packed


def scorer_of(family: str, dtype: torch.dtype = torch.float32, cache_bytes: int = 2**30) -> tuple[LoglikScorer, list[Question]]:
    scorer = LoglikScorer(routed_of(family, dtype), STEP, packed=packs(family), cache_bytes=cache_bytes)
    return scorer, [scorer.question(ARC, example) for example in EXAMPLES]


def stream(
    scorer: LoglikScorer, questions: Sequence[Question], pairs: Iterable[Pair], rng: random.Random, look: Callable[[], None] | None = None
) -> dict[Pair, Verdict]:
    """Verdicts of pairs through open, submit, collect and close, in random order: questions open late and close as early as they can."""
    waiting = list(pairs)
    rng.shuffle(waiting)
    left = Counter(index for index, _ in waiting)
    handles: dict[int, int] = {}
    found: dict[Pair, Verdict] = {}
    n_under_way = 0
    while waiting or n_under_way:
        if waiting and rng.random() < 0.8:
            index, route = waiting.pop()
            if index not in handles:
                company = [
                    index,
                    *(other for other in left if other not in handles and other != index and left[other] and rng.random() < 0.5),
                ]
                handles |= dict(zip(company, scorer.open([questions[other] for other in company]), strict=True))
            scorer.submit(handles[index], route)
            n_under_way += 1
        else:
            of_handle = {handle: index for index, handle in handles.items()}
            for handle, route, verdict in scorer.collect():
                index = of_handle[handle]
                found[index, route] = verdict
                left[index] -= 1
                n_under_way -= 1
                if not left[index]:
                    scorer.close([handles.pop(index)])
        if look is not None:
            look()
    return found


def nodes_of(scorer: LoglikScorer) -> list[Node]:
    """Every node of every open question's tries, the roots left out."""
    stack = [root for _, roots in scorer.opened.values() for root in roots]
    nodes = []
    while stack:
        node = stack.pop()
        nodes += list(node.children.values())
        stack += list(node.children.values())
    return nodes


def state_bytes(question: Question, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the states of a question's widest row, at the width the scorer pads it to."""
    return max(math.ceil(len(sequence) / 8) * 8 for sequence in question.sequences) * 32 * dtype.itemsize


@functools.cache
def plain_order(family: str, dtype: torch.dtype) -> dict[Pair, Verdict]:
    scorer, questions = scorer_of(family, dtype)
    scorer.load(questions)
    return dict(zip(PAIRS, scorer.score(PAIRS), strict=True))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{called}", marks=() if name == "llama" else mark)
        for name in DENSE
        for dtype, called, mark in ((torch.float32, "fp32", pytest.mark.long), (torch.bfloat16, "bf16", pytest.mark.slow))
    ],
)
@settings(deadline=None, max_examples=5, derandomize=True)
@given(data=st.data())
def test_a_verdict_is_bitwise_that_of_its_question_and_route(family, dtype, data):
    """Whatever the order, the company, the memory and the way of asking are: the same bits in every margin."""
    want = plain_order(family, dtype)
    assert len({verdict.margin for verdict in want.values()}) > len(PAIRS) // 2, "the pairs must not look alike"
    cache_bytes = data.draw(st.sampled_from([0, 5000, 40_000, 2**30]))
    scorer, questions = scorer_of(family, dtype, cache_bytes)
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=1, unique=True))
    rng = random.Random(data.draw(st.integers(0, 99)))
    assert stream(scorer, questions, pairs, rng) == {pair: want[pair] for pair in pairs}
    # The same through load and score, with only the questions asked about, in two calls of which the second finds prefixes kept.
    indices = list(dict.fromkeys(index for index, _ in pairs))
    scorer.load([questions[index] for index in indices])
    half = len(pairs) // 2
    for part in (pairs[:half], pairs[half:]):
        assert scorer.score([(indices.index(index), route) for index, route in part]) == [want[pair] for pair in part]


@pytest.mark.long
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_the_same_up_to_rounding(family):
    """How many tokens an expert gets depends on the whole step, so its products may round otherwise: near, but not bitwise."""
    want = plain_order(family, torch.float32)
    for seed in range(3):
        scorer, questions = scorer_of(family, cache_bytes=(0, 5000, 2**30)[seed])
        for pair, verdict in stream(scorer, questions, random.Random(seed).sample(PAIRS, 15), random.Random(seed)).items():
            assert verdict.margin_acc == pytest.approx(want[pair].margin_acc, abs=1e-3)
            assert verdict.correct == want[pair].correct or abs(verdict.margin) < 1e-3


def test_every_step_of_a_width_has_one_shape():
    """The reason why verdicts agree bit for bit also where a matrix product rounds by the size of its batch, as this machine's may not."""
    base = families.build("llama", vocab_size=300)
    ran: list[tuple[int, int]] = []
    heads: set[tuple[int, ...]] = set()
    for block in base.model.layers:
        block.mlp.register_forward_pre_hook(lambda _module, args: ran.append(tuple(args[0].shape[:2])))
    scorer = LoglikScorer(RoutedModel.wrap(base, byte_tokenizer()), STEP, packed=True)
    base.lm_head.register_forward_pre_hook(lambda _module, args: heads.add(tuple(args[0].shape)))
    ran.clear()
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    stream(scorer, questions, PAIRS, random.Random(0))
    widths = {math.ceil(question.n_tokens / 8) * 8 for question in questions}
    assert len(widths) == 3
    assert set(ran) == {(STEP // width, width) for width in widths}
    assert scorer.runner.n_applied + scorer.runner.n_padded == sum(rows for rows, _ in ran), "the counts are of rows that really ran"
    assert heads == {(HEAD_TOKENS, 1, 32)}
    assert scorer.runner.n_padded > 0, "some steps were not full"


def test_rows_that_fill_their_width_have_a_mask_too():
    """Without a pad in sight the base passes no mask at all, and the fused attention then rounds otherwise: so one is always in sight."""
    base = families.build("llama", attn="sdpa", vocab_size=300)
    masks: list[object] = []
    for block in base.model.layers:
        block.self_attn.register_forward_pre_hook(lambda _module, _args, named: masks.append(named["attention_mask"]), with_kwargs=True)
    scorer = LoglikScorer(RoutedModel.wrap(base, byte_tokenizer()), STEP, packed=False)
    masks.clear()
    example = Example("full", "Why so very much?", ("abcde", "vwxyz"), 0, "arc_easy")
    question = scorer.question(ARC, example)
    assert [len(sequence) % 8 for sequence in question.sequences] == [0, 0]
    scorer.load([question])
    alone = scorer.score([(0, route) for route in ROUTES])
    assert len(masks) > L
    assert all(isinstance(mask, torch.Tensor) for mask in masks)
    shorter = scorer.question(ARC, Example("short", "Why so very muc?", ("abcd", "vwxy"), 0, "arc_easy"))
    scorer.load([shorter, question])
    assert scorer.score([(1, route) for route in ROUTES]) == alone


@pytest.mark.parametrize(
    "family",
    [*FAST_FAMILIES] + [pytest.param(name, marks=pytest.mark.slow) for name in sorted(families.FAMILIES) if name not in FAST_FAMILIES],
)
def test_margins_are_those_of_the_path_run_plainly(family):
    """Eviction everywhere, mixed questions and depths: the log-likelihoods of the base model's own code over the path, fp32."""
    base = families.build(family, vocab_size=300)
    untouched = copy.deepcopy(base)
    tokenizer = byte_tokenizer()
    scorer = LoglikScorer(RoutedModel.wrap(base, tokenizer), STEP, cache_bytes=5000)
    scorer.add_bos = False
    questions = [scorer.question(ARC, example) for example in EXAMPLES[:3]]
    pairs = [(index, Route.parse(text)) for index, text in enumerate(("0121", "2012", "1110"))] + [(0, Route.parse("1020"))]
    for (index, route), verdict in stream(scorer, questions, pairs, random.Random(1)).items():
        example = EXAMPLES[index]
        totals = plain_logliks(path_model(untouched, route.spans), tokenizer, *ARC.loglik_prompt(example))
        for got, lengths in ((verdict.margin_acc, [1] * len(totals)), (verdict.margin_acc_norm, map(len, example.choices))):
            scores = [total / length for total, length in zip(totals, lengths, strict=True)]
            gold = scores.pop(int(example.answer))
            assert got == pytest.approx(gold - max(scores), abs=1e-4 * max(1.0, abs(gold))), route


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_with_a_weight_that_is_not_a_number_breaks_its_routes_only(family):
    """Routes through the block are broken, also in one step with routes that skip it; those stay what they are."""
    base = families.build(family, vocab_size=300)
    sound = LoglikScorer(RoutedModel.wrap(copy.deepcopy(base), byte_tokenizer()), STEP)
    with torch.no_grad():
        base.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    scorer = LoglikScorer(RoutedModel.wrap(base, byte_tokenizer()), STEP, packed=sound.packed)
    questions = [scorer.question(ARC, example) for example in EXAMPLES]
    found = stream(scorer, questions, PAIRS, random.Random(3))
    expected = stream(sound, questions, PAIRS, random.Random(3))
    for (index, route), verdict in found.items():
        if route[2]:
            assert verdict.broken
            assert (verdict.correct, verdict.acc, verdict.acc_norm) == (False, False, False)
            assert all(math.isnan(margin) for margin in (verdict.margin, verdict.margin_acc, verdict.margin_acc_norm))
        else:
            assert verdict == expected[index, route]
            assert not verdict.broken
    assert {verdict.broken for verdict in found.values()} == {True, False}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=L, max_size=L).map(Route)), min_size=1, max_size=25),
    seed=st.integers(0, 9),
)
def test_each_shared_prefix_is_applied_once(family, pairs, seed):
    """With memory enough, as many applications as there are distinct beginnings of paths, a row each; asked again, none."""
    scorer, questions = scorer_of(family)
    handles = scorer.open(questions)
    order = list(dict.fromkeys(pairs))
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), 7):
        scorer.score([(handles[index], route) for index, route in order[start : start + 7]])
    prefixes = {(index, route.path[:length]) for index, route in order for length in range(1, route.n_passes + 1)}
    n_distinct = sum(len(questions[index].sequences) for index, _ in prefixes)
    assert scorer.runner.n_applied == n_distinct
    scorer.score([(handles[index], route) for index, route in order])
    assert scorer.runner.n_applied == n_distinct
    assert scorer.runner.n_bytes == scorer.runner.peak_bytes == sum(node.state.nbytes for node in nodes_of(scorer))
    scorer.close(handles)
    assert scorer.runner.n_bytes == 0


def check_books(scorer: LoglikScorer) -> None:
    """What the runner remembers about its tries is what they hold."""
    runner, nodes = scorer.runner, nodes_of(scorer)
    assert runner.n_bytes == sum(node.state.nbytes for node in nodes if node.state is not None)
    roots = [root for _, roots in scorer.opened.values() for root in roots]
    behind = [(source, node) for source in [*roots, *nodes] for node in source.dependents]
    queued = {node for _, node in behind}
    assert Counter(behind) == Counter((source, node) for node in queued for source in node.sources)
    assert all(node.parent is not None and node.parent.children[node.span] is node for node in queued)
    assert all(node.state is None for node in queued)
    ready = [node for node in queued if all(source.state is not None for source in node.sources)]
    assert len(ready) == runner.n_waiting


@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
@pytest.mark.parametrize("cache_bytes", [0, 5000, 40_000, 2**30])
def test_the_books_balance_at_every_moment(family, cache_bytes):
    scorer, questions = scorer_of(family, cache_bytes=cache_bytes)
    found = stream(scorer, questions, PAIRS, random.Random(cache_bytes), look=lambda: check_books(scorer))
    assert found == plain_order(family, torch.float32)
    n_distinct = len({(index, route.path[:length]) for index, route in PAIRS for length in range(1, route.n_passes + 1)})
    assert scorer.runner.n_applied >= n_distinct
    if cache_bytes == 0 and packs(family):
        assert scorer.runner.n_applied > n_distinct, "nothing was evicted, so the test says nothing"
    assert scorer.runner.n_bytes == 0, "every question was closed"


@pytest.mark.long
@pytest.mark.parametrize("n_under_way", [1, 2, 5, 36])
@pytest.mark.parametrize("n_kept", [0, 1, 4, 1000])
def test_memory_is_bounded_by_the_cache_and_what_running_paths_need(n_kept, n_under_way):
    """Each path under way needs one state, or two inside a damped span; a step adds one for each of its rows before others make room.

    So: peak <= max(cache, paths under way x 2 states) + rows of a step x state, where a step has no more rows than paths under way.
    """
    scorer, questions = scorer_of("llama")
    size = max(map(state_bytes, questions))
    smallest = min(map(state_bytes, questions))
    scorer, questions = scorer_of("llama", cache_bytes=n_kept * size)
    handles = scorer.open(questions)
    order = random.Random(n_kept).sample(PAIRS, len(PAIRS))
    for start in range(0, len(order), n_under_way):
        for index, route in order[start : start + n_under_way]:
            scorer.submit(handles[index], route)
        while scorer.collect():
            pass
    rows = min(n_under_way, max(max(1, scorer.max_step_tokens // (math.ceil(question.n_tokens / 8) * 8)) for question in questions))
    peak = scorer.runner.peak_bytes
    assert peak <= max(n_kept * size, 2 * n_under_way * size) + rows * size
    if n_kept == 1000:
        assert peak == scorer.runner.n_bytes, "nothing had to go"
    if n_kept == 0:
        assert peak >= 2 * smallest, "an application needs its parent and makes its own"
        everything, _ = plain_memory()
        assert n_under_way == 36 or peak < everything / 3
    assert scorer.runner.n_bytes <= peak
    scorer.close(handles)
    assert scorer.runner.n_bytes == 0


def plain_memory() -> tuple[int, int]:
    """(bytes, applications) of all pairs when nothing is evicted."""
    scorer, questions = scorer_of("llama")
    scorer.load(questions)
    scorer.score(PAIRS)
    return scorer.runner.n_bytes, scorer.runner.n_applied


@pytest.mark.long
def test_more_memory_never_costs_applications():
    """Eviction costs work only: the larger the cache, the fewer applications, down to one a prefix."""
    counts = []
    for n_kept in (0, 4, 16, 1000):
        scorer, questions = scorer_of("llama", cache_bytes=n_kept * max(map(state_bytes, scorer_of("llama")[1])))
        scorer.load(questions)
        for pair in sorted(PAIRS, key=lambda pair: (str(pair[1]), pair[0])):  # questions by turns: prefixes must outlive the others'
            scorer.score([pair])
        counts.append(scorer.runner.n_applied)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == plain_memory()[1]


def test_what_others_stand_on_goes_last():
    """Four states kept: each new leaf takes the place of the oldest leaf, and the prefixes 0 and 01 stay for all of them."""
    _, questions = scorer_of("llama")
    scorer, _ = scorer_of("llama", cache_bytes=4 * state_bytes(questions[2]))
    scorer.load(questions[2:3])
    applied = []
    for route in ("1100", "1110", "1101", "1010", "1001", "2000", "1101", "1101", "1110"):
        before = scorer.runner.n_applied
        scorer.score([(0, Route.parse(route))])
        applied.append(scorer.runner.n_applied - before)
    # The first two passes, then one a leaf; 1101 went and comes back, is kept, and 1110 went too.
    assert applied == [2, 1, 1, 1, 1, 1, 1, 0, 1]


def test_a_closed_question_is_forgotten():
    scorer, questions = scorer_of("llama")
    first, second = scorer.open(questions[:1]) + scorer.open(questions[1:2])
    scorer.score([(first, route) for route in ROUTES] + [(second, route) for route in ROUTES])
    states = [weakref.ref(node.state) for node in nodes_of(scorer)]
    scorer.close([first])
    gc.collect()
    alive = [state for state in states if state() is not None]
    assert len(alive) == len(nodes_of(scorer)) == len(states) // 2
    assert scorer.runner.n_bytes == sum(node.state.nbytes for node in nodes_of(scorer)) > 0
    with pytest.raises(KeyError):
        scorer.submit(first, ROUTES[0])
    scorer.close([second])
    assert scorer.runner.n_bytes == 0
    # A handle is never given twice, so a late user of an old one cannot reach another question.
    assert not {first, second} & set(scorer.open(questions[2:3]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "mistral-sliding", "modernbert-decoder"])
def test_decided_routes_are_those_of_generate(family):
    """Prompts together in left-padded steps, without an answer: the routes of `generate`, which sees each prompt alone."""
    routed = routed_of(family)
    routers = Routers(RouterConfig(L, routed.hidden_size, n_windows=4, width=16), seed=2)
    routers.tensors["w2"] = routers.tensors["w2"] * 30
    prompts = [byte_tokenizer()(text)["input_ids"] for text in ("Why?", "A longer one, is it not?", "x", "And then some more of it", "Yes")]
    alone = [routed.generate(input_ids=torch.tensor([prompt]), policy=routers, max_new_tokens=1)[0].route for prompt in prompts]
    assert len(set(alone)) > 1
    for max_step_tokens in (1, 60, 4096):
        assert decide_routes(routed, [routers], prompts, max_step_tokens) == [alone]
    assert decide_routes(routed, [None], prompts, 60) == [[Route.full(L)] * 5]
    assert decide_routes(routed, [RoutePolicy(ROUTES[5])], prompts, 60) == [[ROUTES[5]] * 5]
    assert decide_routes(routed, [GivenRoutes(ROUTES[2:7])], prompts, 60) == [ROUTES[2:7]]
