"""Contexts that begin alike: their shared tokens run once, and nothing that is scored changes."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[eval]')")

from lm_eval.api.instance import Instance
from test_harness import L, assert_same, choices, model_of, ours, policy_of, stock, text
from transformers.cache_utils import DynamicLayer

import families
from byte_tokens import byte_tokenizer
from drllm import Route, RoutedModel
from drllm.evaluation.harness.packing import Packed, pack_requests
from drllm.evaluation.harness.prefixes import RUN_COST, SIGHT, share_prefixes
from drllm.model.cache import new_slots

pytestmark = pytest.mark.long

SHOTS = "".join(f"Question: {text(seed, 3)}\nAnswer: {text(seed + 1, 1)}\n" for seed in range(3))


def shots(n_questions: int = 10, tail: int = 3) -> list[Instance]:
    """Questions behind the same shots, or behind another task's, their choices of one token or several, and some without."""
    requests = []
    for q in range(n_questions):
        head = SHOTS if q % 3 else "" if q == 3 else f"About {SHOTS[:60]}\n"
        for c in range(3):
            continuation = f" {'ABC'[c]}" if q % 2 else f" {text(q + c, 1 + tail * c % 4)}"
            requests.append(Instance("loglikelihood", {}, (f"{head}Q: {text(q, 2 + q % 3)}\nA:", continuation), c, ("shots", q, 1)))
    return requests


def contexts(rows: list[list[int]]) -> list[Packed]:
    return pack_requests([(("", ""), row, [1]) for row in rows], 512, True)


def saved(rows: list[Packed]) -> int:
    """Tokens that are not run again, less what the prefixes' own runs cost."""
    groups: dict[tuple[int, ...], int] = {}
    for row in rows:
        if row.n_prefix:
            groups[row.prefix] = groups.get(row.prefix, 0) + 1
    return sum((n - 1) * len(prefix) - RUN_COST for prefix, n in groups.items())


def best(rows: list[tuple[int, ...]], depth: int = 0) -> int:
    """The most that any choice of prefixes saves: one for all rows, or the best of each part that goes on alike."""
    if len(rows) < 2:
        return 0
    parts: dict[int, list[tuple[int, ...]]] = {}
    alone = 0
    for row in rows:
        if depth == len(row) - 1:
            alone += 1  # its last token always runs
        else:
            parts.setdefault(row[depth], []).append(row)
    inside = sum(best(part, depth + 1) for part in parts.values())
    return max((len(rows) - 1) * depth - RUN_COST, inside, 0)


def test_the_prefixes_that_save_most_are_chosen():
    draw = random.Random(0)
    n_shared = 0
    for _ in range(300):
        stems = [[draw.randrange(2) for _ in range(draw.choice([0, 5, 30, 80]))] for _ in range(3)]
        stems += [[*stems[0], *[draw.randrange(2) for _ in range(20)]], stems[1][: len(stems[1]) // 2]]
        rows = [[*draw.choice(stems), *[draw.randrange(3) for _ in range(draw.randint(1, 6))]] for _ in range(draw.randint(1, 12))]
        packed = contexts(rows)
        ordered = share_prefixes(packed)
        assert sorted(row.requests for row in ordered) == sorted(row.requests for row in packed)
        assert all(row.n_prefix < row.sequence.n_context for row in ordered)
        assert saved(ordered) == best([row.context for row in packed])
        n_shared += saved(ordered) > 0
    assert n_shared > 50
    assert share_prefixes([]) == []


STOCK = ("llama", "gpt2", "gpt_neox", "opt", "qwen2_moe", "gemma3_text")
BATCHES = [(family, size) for family in STOCK for size in (1, 3)] + [("gemma3_text", "auto:2")]


@pytest.mark.parametrize(
    ("family", "batch_size"),
    BATCHES + [pytest.param(family, "auto:2", marks=pytest.mark.slow) for family in STOCK if family != "gemma3_text"],
)
def test_the_identity_gives_the_stock_models_log_likelihoods(family, batch_size):
    routed = model_of(family)
    lm = ours(routed, batch_size, max_batch_size=4, max_length=400)
    requests = shots(24) + choices(5)
    assert_same(lm.loglikelihood(requests, True), stock(routed, 4, max_length=400).loglikelihood(requests, True))


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        (
            "phi3",
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
            },
        ),
        ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
    ],
)
def test_positions_that_depend_on_the_rows_length_share_nothing(family, rope):
    """A prefix shorter than the model's first context length would have run under other frequencies than its rows."""
    model = families.build(family, vocab_size=300, max_position_embeddings=512)
    head = model.config.hidden_size // model.config.num_attention_heads
    rope = {key: [value[0]] * (head // 2) if isinstance(value, list) else value for key, value in rope.items()}
    config = type(model.config)(**(model.config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": 128}))
    config.original_max_position_embeddings = 64
    torch.manual_seed(0)
    routed = RoutedModel.wrap(type(model)(config).eval(), byte_tokenizer())
    lm = ours(routed, 2, max_length=400)
    assert not lm._prefixes._can_share


@pytest.mark.parametrize("family", families.sampled())
def test_a_family_shares_or_says_it_cannot(family):
    """Every family, whatever its masks and positions are: with shared beginnings or without, the figures are the stock model's."""
    routed = model_of(family)
    lm = ours(routed, 2, max_length=400)
    assert lm._prefixes._can_share == all(type(slot) is DynamicLayer for slot in new_slots(routed.config, L))
    requests = shots(6)
    assert_same(lm.loglikelihood(requests, True), stock(routed, 2, max_length=400).loglikelihood(requests, True))


@pytest.mark.parametrize("route", ["1111", "0111", "1211", "0210", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1,0-2/4"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_route_for_all_shares_and_scores_as_without(route, batch_size):
    routed = model_of("llama")
    requests = shots(24)
    values, n_run = [], []
    for shares in (True, False):
        lm = ours(routed, batch_size, route=route, max_length=400, time_base=0)
        assert lm._prefixes._can_share, "this family takes a prefix"
        lm._prefixes._can_share = shares
        n_run.append(0)
        handle = routed.model.get_input_embeddings().register_forward_hook(lambda _m, args, _o: count(n_run, args[0].numel()))
        values.append(lm.loglikelihood(requests, True))
        handle.remove()
        assert {prompt.route for prompt in lm.routing.prompts} == {Route.parse(route)}
        assert not lm._prefixes._kept
    assert_same(*values)
    assert n_run[0] < 0.5 * n_run[1]


def count(totals: list[int], n: int) -> None:
    totals[-1] += n


def test_timing_the_base_beside_changes_nothing_and_uses_its_own_prefix():
    routed = model_of("llama")
    requests = shots()
    values = [ours(routed, 2, route="1211", max_length=400, time_base=every).loglikelihood(requests, True) for every in (0, 1)]
    assert values[0] == values[1]


def test_prompts_that_a_policy_reads_enter_whole():
    routed = model_of("llama")
    routed.policy = policy_of(routed)
    lm = ours(routed, 2, max_length=400)
    assert lm._prefixes._can_share
    rows = pack_requests([(("", ""), [5] * 200 + [number], [1]) for number in range(8)], 400, True)
    assert any(row.n_prefix for row in lm._prefixes.arrange(rows, None))
    assert not any(row.n_prefix for row in lm._prefixes.arrange(rows, routed.policy))


def test_a_step_sees_no_more_than_its_share():
    """Keys and values of a long prefix take memory in every row, however few tokens each row computes."""
    routed = model_of("llama")
    lm = ours(routed, 1, max_length=400)
    n_rows = []
    requests = [Instance("loglikelihood", {}, (SHOTS + text(q, 1), " A"), 0, ("t", q, 1)) for q in range(40)]
    original = lm._forward
    lm._forward = lambda step, is_routed: (n_rows.append(len(step)), original(step, is_routed))[1]
    lm.loglikelihood(requests, True)
    assert max(n_rows) == SIGHT


def test_small_groups_share_steps_rather_than_prefixes():
    """A prefix costs a step, and its rows one that they may not fill: with large steps, pairs of questions under a passage share none."""
    rows = [[*range(100 * passage, 100 * passage + 60), question] for passage in range(8) for question in range(2)]
    assert any(row.n_prefix for row in share_prefixes(contexts(rows * 2), 64)) is False
    rows = [[*range(100 * passage, 100 * passage + 90), question] for passage in range(8) for question in range(4)]
    assert all(row.n_prefix == 90 for row in share_prefixes(contexts(rows), 64))
    assert not any(row.n_prefix for row in share_prefixes(contexts(rows), 64 * 91))
    assert all(row.n_prefix == 90 for row in share_prefixes(contexts(rows), 8 * 91))


def test_nothing_is_kept_after_a_failure():
    routed = model_of("llama")
    lm = ours(routed, 2, max_length=400)

    def fail(step, is_routed):
        raise torch.OutOfMemoryError("simulated")

    lm._forward = fail
    with pytest.raises(torch.OutOfMemoryError):
        lm.loglikelihood(shots(), True)
    assert not lm._prefixes._kept


def test_a_prefix_runs_on_the_account_of_all_tasks_that_share_it():
    routed = model_of("llama")
    lm = ours(routed, 1, max_length=400)
    requests = [Instance("loglikelihood", {}, (SHOTS * 2 + text(q, 1), " A"), 0, (f"task {q % 2}", q, 1)) for q in range(16)]
    lm.loglikelihood(requests, True)
    seconds = [figures["seconds"] for figures in lm.routing.summary().values()]
    assert len(seconds) == 2
    assert max(seconds) < 5 * min(seconds)
