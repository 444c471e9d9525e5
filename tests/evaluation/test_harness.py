"""lm-evaluation-harness on routed models: stock figures at the identity, and routes that come from the context alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[eval]')")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string

import families
from byte_tokens import byte_tokenizer
from deciding import ByFunction
from drllm import InputError, Route, RoutedModel
from drllm.evaluation.harness.model import RoutedLM, consensus
from drllm.policies.policy import Policy

pytestmark = pytest.mark.long

L = families.N_BLOCKS
MAX_LENGTH = 96
WORDS = "plants need water light soil air to grow in a garden near the river where birds sing at dawn".split()  # noqa: SIM905


class ByContext(Policy):
    """Skips block 1, repeats block 2 or does neither, by how many tokens it is shown: whatever else it read would change that."""

    name = "by-context"
    n_layers = L

    def start(self, prompt_mask_BT):
        return ByFunction(self.actions, prompt_mask_BT)

    def actions(self, block, x_BTD, prompt_mask_BT):
        kind_B = prompt_mask_BT.sum(1) % 3
        return 1 + (kind_B == 0) * (block == 2) - (kind_B == 1) * int(block == 1)

    def save(self, folder):
        raise NotImplementedError

    load = save


def model_of(family: str) -> RoutedModel:
    return RoutedModel.wrap(families.build(family, vocab_size=300, max_position_embeddings=512), byte_tokenizer())


def text(seed: int, n: int) -> str:
    return " ".join(WORDS[(seed * 7 + 3 * i) % len(WORDS)] for i in range(n))


def choices(n_questions: int = 12) -> list[Instance]:
    """Multiple-choice requests: 2 to 5 choices of one token to many, one context empty."""
    requests = []
    for q in range(n_questions):
        context = "" if q == 7 else f"Question: {text(q % 9, 2 + q % 4)}\nAnswer:"
        for c in range(2 + q % 4):
            continuation = f" {'ABCDE'[c]}" if q % 3 == 0 else f" {text(q + 5 * c, 1 + c)}"
            requests.append(Instance("loglikelihood", {}, (context, continuation), c, ("first" if q < 5 else "second", q, 1)))
    return requests


def stock(routed: RoutedModel, batch_size: int = 1, **options) -> HFLM:
    return HFLM(routed.model, tokenizer=routed.tokenizer, batch_size=batch_size, **{"max_length": MAX_LENGTH} | options)


def ours(routed: RoutedModel, batch_size: int | str = 1, **options) -> RoutedLM:
    return RoutedLM(routed, batch_size=batch_size, **{"max_length": MAX_LENGTH} | options)


def assert_same(got: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    """But for rounding: of steps that hold other sequences."""
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
    assert np.array([value for value, _ in got]) == pytest.approx([value for value, _ in wanted], abs=1e-4, rel=3e-7)


@pytest.mark.parametrize("batch_size", [1, 8, pytest.param("auto", marks=pytest.mark.slow), pytest.param("auto:2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3_text", "gpt2", "qwen2_moe"))]
)
def test_at_the_identity_it_is_the_stock_model(family, batch_size):
    """To the last bit: of choices, of requests that are too long and lose their beginning, of whole texts, and what it writes."""
    routed = model_of(family)
    long = [Instance("loglikelihood", {}, (text(3, 40), f" {text(c, 1 + 3 * c)}"), c, ("long", 0, 1)) for c in range(3)]
    texts = [Instance("loglikelihood_rolling", {}, (text(seed, n),), 0, ("texts", seed, 1)) for seed, n in enumerate([3, 60, 1, 25])]
    options = {"until": ["\n\n", "e"], "max_gen_toks": 12, "do_sample": False}
    free = [Instance("generate_until", {}, (text(seed, 1 + seed), options), 0, ("free", seed, 1)) for seed in range(6)]
    lm, plain = (make(routed, batch_size, max_batch_size=4) for make in (ours, stock))
    assert lm.loglikelihood(choices() + long, True) == plain.loglikelihood(choices() + long, True)
    assert lm.loglikelihood_rolling(texts, True) == plain.loglikelihood_rolling(texts, True)
    assert lm.generate_until(free, True) == plain.generate_until(free, True)
    assert sorted(prompt.doc_id for prompt in lm.routing.prompts if prompt.task == "free") == list(range(6))


def test_fewer_requests_than_auto_has_parts():
    assert ours(model_of("llama"), "auto:8", max_batch_size=4).loglikelihood(choices(1), True)


@pytest.mark.parametrize("family", families.sampled())
def test_every_family_gives_the_stock_models_log_likelihoods(family):
    """Whatever its masks and positions are."""
    routed = model_of(family)
    assert ours(routed, 2).loglikelihood(choices(), True) == stock(routed, 2).loglikelihood(choices(), True)


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 1), ("llama", 8), ("llama", "auto:2"), ("gemma3_text", 8), ("gpt2", 8)])
def test_log_likelihoods_are_those_of_the_route_the_context_decides(family, batch_size):
    routed = model_of(family)
    policy = ByContext()
    routed.policy = policy
    requests = choices()
    lm = ours(routed, batch_size)
    got = lm.loglikelihood(requests, True)
    wanted = []
    for request in requests:
        context, continuation = request.args
        head = routed.tokenizer(context)["input_ids"] or [lm.prefix_token_id]
        tail = routed.tokenizer(continuation)["input_ids"]
        ids, mask = torch.tensor([head + tail]), torch.tensor([[1] * len(head) + [0] * len(tail)])
        with torch.no_grad():
            logprobs = routed(ids, prompt_mask=mask, routes=policy).logits[0, len(head) - 1 : -1].log_softmax(-1)
        wanted.append((float(logprobs.gather(1, torch.tensor(tail)[:, None]).sum()), logprobs.argmax(-1).tolist() == tail))
    assert_same(got, wanted)
    routes = {prompt.doc_id: prompt.route for prompt in lm.routing.prompts}
    assert sorted(routes) == list(range(12))
    assert len(set(routes.values())) >= 2, "the policy must tell contexts apart"
    for doc_id, route in routes.items():
        context = next(request.args[0] for request in requests if request.doc_id == doc_id)
        if context:
            assert route == routed.generate(context, policy=policy, max_new_tokens=1, do_sample=False)[0].route


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_route_does_not_change_with_the_continuation(family):
    """One context under very different sets of continuations, alone, in company, split over rows, and too long for the context length."""
    routed = model_of(family)
    routed.policy = ByContext()
    for context in ["Question: what do plants need?\nAnswer:", text(4, 4), text(2, 40)]:
        sets = [[" A"], [f" {text(9, 12)}"], [f" {text(c, 1 + c)}" for c in range(6)]]
        found = set()
        for number, continuations in enumerate(sets):
            requests = [Instance("loglikelihood", {}, (context, tail), c, ("one", number, 1)) for c, tail in enumerate(continuations)]
            lm = ours(routed, 1 + number)
            lm.loglikelihood(requests + choices(2), True)
            routes = [prompt.route for prompt in lm.routing.prompts if prompt.task == "one"]
            assert len(routes) == 1, "a context has one route, however many continuations"
            found.add(routes[0])
        assert len(found) == 1


def test_generation_follows_the_route_the_prompt_decides():
    routed = model_of("llama")
    policy = ByContext()
    routed.policy = policy
    options = {"until": [], "max_gen_toks": 8, "do_sample": False}
    contexts = [request.args[0] for request in choices() if request.args[0]][::3]
    requests = [Instance("generate_until", {}, (context, options), 0, ("free", n, 1)) for n, context in enumerate(contexts)]
    lm = ours(routed, 3)
    got = lm.generate_until(requests, True)
    alone = [routed.generate(context, max_new_tokens=8, do_sample=False)[0] for context in contexts]
    assert got == [out.text for out in alone]
    logged = {prompt.doc_id: prompt for prompt in lm.routing.prompts}
    assert [logged[n].route for n in range(len(contexts))] == [out.route for out in alone]
    assert [logged[n].n_new_tokens for n in range(len(contexts))] == [out.n_new_tokens for out in alone]
    assert len({out.route for out in alone}) > 1


def test_a_rows_tokens_are_counted_to_its_own_end():
    lm = ours(model_of("llama"))
    end = lm.routed.model.generation_config.eos_token_id
    for string, stop, n in [("abcdef", ["d"], 4), ("abcdef", ["xy"], 6), ("abcdef", ["cd", "b"], 2), ("abc", [], 3)]:
        assert lm.n_answer_tokens(lm.tok_encode(string), stop) == n
    assert lm.n_answer_tokens([*lm.tok_encode("ab"), end, *lm.tok_encode("cdef")], ["e"]) == 3


def test_summary_figures():
    """Against sums done by hand."""
    routed = model_of("llama")
    routed.policy = ByContext()
    requests = choices()
    lm = ours(routed, 4)
    lm.loglikelihood(requests, True)
    summary = lm.get_model_info()["drllm"]["tasks"]
    assert set(summary) == {"first", "second"}
    for task, figures in summary.items():
        prompts = [prompt for prompt in lm.routing.prompts if prompt.task == task]
        passes = [prompt.route.n_passes for prompt in prompts]
        assert figures["prompts"] == len(prompts) == {"first": 5, "second": 7}[task]
        assert figures["mean_passes"] == pytest.approx(np.mean(passes))
        assert figures["layers_per_prompt"] == pytest.approx(np.mean(passes)), "scoring takes one step"
        assert sum(figures["passes"].values()) == len(prompts)
        assert figures["identity_share"] == np.mean([prompt.route.is_full for prompt in prompts])
        pairs = list(itertools.combinations([prompt.route for prompt in prompts], 2))
        agreeing = np.mean([np.mean([a == b for a, b in zip(one, other, strict=True)]) for one, other in pairs])
        assert figures["consensus"] == pytest.approx(agreeing)
        assert 0 < figures["router_seconds"] < figures["seconds"]


def test_consensus_counts_loops_and_strengths_as_differences():
    full = Route.full(4)
    assert consensus([full]) is None
    assert consensus([full, Route.parse("1201")]) == 0.5
    assert consensus([full, full.loop(1, 2)]) == 0.75, "another visit of block 2"
    assert consensus([full.loop(1, 2), full.loop(1, 2, 0.5)]) == 0.75
    assert consensus([full.loop(1, 2), full.loop(1, 2)]) == 1
    assert consensus([Route.parse("0-1,1,1-3"), full.edit(1, 2)]) == 0.75, "three passes are not two"


@pytest.mark.parametrize(("argument", "route"), [("1211", "1211"), ("'0111'", "0111"), ("0-2+(1-2)*0.5+3", "0-2,(1-2)*0.5,3")])
def test_a_route_as_a_model_argument(argument, route):
    """As the harness's own command line takes model arguments apart: digits as a number, and a path with plus for its commas."""
    lm = RoutedLM(model_of("llama"), **simple_parse_args_string(f"route={argument},batch_size=2"))
    lm.loglikelihood(choices(2), True)
    assert {prompt.route for prompt in lm.routing.prompts} == {Route.parse(route, L)}
    about, n_passes = lm.get_model_info()["drllm"], Route.parse(route, L).n_passes
    (figures, *_) = about["tasks"].values()
    assert (about["policy"], figures["mean_passes"], figures["passes"]) == (route, n_passes, {str(n_passes): figures["prompts"]})


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_document_is_logged_when_documents_share_a_context(family):
    """Two tasks, three documents, one context; and more choices than a row takes."""
    routed = model_of(family)
    routed.policy = ByContext()
    places = [("x", 0), ("x", 1), ("y", 0)]
    requests = [Instance("loglikelihood", {}, ("Which?", f" {text(c, 1 + c)}"), c, (*place, 1)) for place in places for c in range(8)]
    lm = ours(routed, 2)
    lm.loglikelihood(requests, True)
    assert sorted((prompt.task, prompt.doc_id) for prompt in lm.routing.prompts) == places
    assert len({prompt.route for prompt in lm.routing.prompts}) == 1


def test_equal_prompts_of_two_tasks_are_told_apart_by_their_options():
    routed = model_of("llama")
    short, long = ({"until": [], "max_gen_toks": n, "do_sample": False} for n in (3, 7))
    requests = [
        Instance("generate_until", {}, (text(q, 3), long if task == "a" else short), 0, (task, q, 1)) for task in "ba" for q in range(3)
    ]
    lm = ours(routed, 2)
    assert lm.generate_until(requests, True) == stock(routed, 2).generate_until(requests, True)
    n_new = {(prompt.task, prompt.doc_id): prompt.n_new_tokens for prompt in lm.routing.prompts}
    assert max(n for (task, _), n in n_new.items() if task == "b") <= 3
    assert max(n for (task, _), n in n_new.items() if task == "a") == 7


def test_chat_template_and_autocast_are_the_stock_ones():
    routed, half = model_of("llama"), {"mixed_precision_dtype": "bfloat16"}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert ours(routed).apply_chat_template(messages) == stock(routed).apply_chat_template(messages)
    cast = ours(routed, 2, **half).loglikelihood(choices(4), True)
    assert cast == stock(routed, 2, **half).loglikelihood(choices(4), True) != ours(routed, 2).loglikelihood(choices(4), True)


@pytest.mark.parametrize(
    ("trained", "templated", "warns"), [("raw", True, True), ("chat", False, True), ("raw", False, False), ("chat", True, False)]
)
def test_prompts_of_another_format_than_the_policys_warn_once(trained, templated, warns, caplog):
    routed = model_of("llama")
    policy = ByContext()
    policy.prompt_format = trained
    routed.policy = policy
    lm = ours(routed)
    if templated:
        lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    for _ in range(2):
        lm.loglikelihood(choices(1), True)
    assert sum("its routes may be arbitrary" in record.message for record in caplog.records) == warns


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"parallelize": True}, "model argument 'parallelize' is not supported"),
        ({"rout": "1111"}, "did you mean 'route'"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"route": "11"}, "2 blocks"),
        ({"route": "0-4+1-3/4"}, "got block 4 in a path through 4 blocks"),
        ({"route": 111}, "drops leading zeros"),
        ({"pretrained": ""}, "no model: give pretrained"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"mixed_precision_dtype": "bf17"}, "unknown dtype 'bf17'"),
        ({"base": "x"}, "have no use"),
        ({"control": 0.5}, "give a saved policy"),
    ],
)
def test_what_it_refuses(options, wanted):
    place = {"pretrained": model_of("llama")} if "base" not in options else {"pretrained": "no/such/model"}
    with pytest.raises(InputError, match=wanted):
        RoutedLM(**(place | options))
