"""`generate` and the forward call as users meet them: prompts, options that pass through, options that are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, StoppingCriteria, TextStreamer

import families
from deciding import ByFunction
from drllm import InputError, Route, RoutedModel
from drllm.deploy.inspection import inspect
from drllm.model.prompts import left_pad
from drllm.policies.constant import RoutePolicy
from drllm.policies.policy import Policy
from reference import reference_generate

L = families.N_BLOCKS
ROUTE = Route.parse("1021")
GREEDY = {"do_sample": False}


class ByFirstToken(Policy):
    """A policy that reads the states: skips block 1 where the first coordinate's mean over the prompt is positive. Counts its questions."""

    name = "by-first-token"
    n_layers = L

    def __init__(self):
        self.asked, self.said, self.masks = [], [], []

    def start(self, prompt_mask_BT):
        return ByFunction(self.actions, prompt_mask_BT)

    def actions(self, block, x_BTD, prompt_mask_BT):
        self.asked.append((block, tuple(x_BTD.shape[:2])))
        mean_B = (x_BTD[..., 0] * prompt_mask_BT).sum(1) / prompt_mask_BT.sum(1)
        action = torch.where(mean_B > 0, 0, 2)
        action = action if block == 1 else torch.ones_like(action)
        self.said.append(action.tolist())
        self.masks.append(prompt_mask_BT.long().tolist())
        return action

    def save(self, folder):
        raise NotImplementedError

    load = save


@pytest.mark.gpu
def test_text_prompts_give_one_output_each(tiny):
    outs = tiny.generate(["Hello", "What is 12*3?"], max_new_tokens=5, policy=ROUTE, **GREEDY)
    assert [out.route for out in outs] == [ROUTE, ROUTE]
    assert [out.n_prompt_tokens for out in outs] == [5, 13]
    for out in outs:
        assert out.n_new_tokens == len(out.token_ids) <= 5
        assert out.text == tiny.tokenizer.decode(out.token_ids, skip_special_tokens=True)
    alone = tiny.generate("Hello", max_new_tokens=5, policy=ROUTE, **GREEDY)
    assert alone == outs[:1]


def test_messages_use_the_chat_template(tiny):
    messages = [{"role": "user", "content": "Hi"}]
    out = tiny.generate([messages], max_new_tokens=2, **GREEDY)[0]
    assert out.n_prompt_tokens == len("user: Hi\nassistant:")
    assert tiny.generate(messages, max_new_tokens=2, **GREEDY)[0] == out


@pytest.mark.gpu
def test_the_base_policy_is_the_default_and_a_route_can_be_set(tiny):
    base = tiny.generate(["Hello"], max_new_tokens=4, **GREEDY)[0]
    assert base.route == Route.full(L)
    tiny.policy = ROUTE
    routed = tiny.generate(["Hello"], max_new_tokens=4, **GREEDY)[0]
    assert routed.route == ROUTE
    assert tiny.generate(["Hello"], max_new_tokens=4, policy=Route.full(L), **GREEDY)[0].token_ids == base.token_ids
    tiny.policy = None
    assert tiny.generate(["Hello"], max_new_tokens=4, **GREEDY)[0] == base


@pytest.mark.gpu
def test_a_list_of_routes_goes_by_prompt_and_expands_with_return_sequences(tiny):
    routes = [Route.parse("1111"), Route.parse("0121"), Route.parse("2200")]
    prompts = ["one", "three", "seven"]
    outs = tiny.generate(prompts, max_new_tokens=4, policy=routes, do_sample=True, num_return_sequences=2)
    assert [out.route for out in outs] == [route for route in routes for _ in range(2)]
    assert [out.n_prompt_tokens for out in outs] == [3, 3, 5, 5, 5, 5]
    greedy = tiny.generate(prompts, max_new_tokens=4, policy=routes, **GREEDY)
    assert [out.token_ids for out in greedy] == [
        tiny.generate(p, max_new_tokens=4, policy=r, **GREEDY)[0].token_ids for p, r in zip(prompts, routes, strict=True)
    ]


def test_a_policy_is_asked_once_a_block_at_prefill_and_each_row_gets_its_own_route(tiny):
    policy = ByFirstToken()
    prompts = ["a", "bc", "def", "ghij", "klmno", "pqrstu", "vwxyz!?", "0123456789"]
    outs = tiny.generate(prompts, max_new_tokens=6, policy=policy, **GREEDY)
    assert policy.asked == [(block, (8, 10)) for block in range(L)]
    routes = [out.route for out in outs]
    assert len(set(routes)) == 2, "the policy should tell these prompts apart"
    alone = [tiny.generate(prompt, max_new_tokens=6, policy=ByFirstToken(), **GREEDY)[0] for prompt in prompts]
    assert [out.route for out in alone] == routes, "padding must not enter the decision"
    assert [out.token_ids for out in alone] == [out.token_ids for out in outs]


@torch.no_grad()
def test_the_prompt_mask_hides_the_continuation_and_pads_never_enter(tiny):
    ids = torch.randint(3, 259, (6, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 5:] = torch.randint(3, 259, (6, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids)
    mask[:, :5] = 1

    def said(tokens, prompt_mask):
        policy = ByFirstToken()
        tiny(tokens, prompt_mask=prompt_mask, routes=policy)
        return policy.said

    assert said(ids, mask) == said(other, mask)
    assert said(ids, None) != said(other, None), "without the mask the continuation does enter: the test can fail"
    padded, prompt, policy = torch.tensor([[0, 0, 0, 9, 8, 7, 50, 51]]), torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]), ByFirstToken()
    real = (padded > 0).long()
    tiny(padded, real, prompt_mask=prompt, routes=policy)
    assert policy.masks == [(real & prompt).tolist()] * L


def test_end_token_is_kept_and_pads_are_not(tiny):
    untouched = copy.deepcopy(tiny.model)
    ids = torch.tensor([[7, 8, 9]])
    free, _ = reference_generate(untouched, ROUTE.path, ids, 8)
    end = free[2]
    n = free.index(end) + 1
    batch = torch.tensor([[7, 8, 9], [20, 21, 22]])
    outs = tiny.generate(input_ids=batch, policy=ROUTE, max_new_tokens=8, eos_token_id=end, pad_token_id=end, **GREEDY)
    assert outs[0].token_ids == free[:n]
    assert outs[0].n_new_tokens == n
    assert end not in outs[1].token_ids[:-1]


@pytest.mark.gpu
def test_stop_strings_pass_through(tiny):
    free = tiny.generate(["Hello"], max_new_tokens=12, policy=ROUTE, **GREEDY)[0]
    texts = [tiny.tokenizer.decode([token]) for token in free.token_ids]
    n = next(n for n, text in enumerate(texts, 1) if n > 1 and text.isascii() and text.strip() and text not in texts[: n - 1])
    outs = tiny.generate(["Hello", "Bye now"], max_new_tokens=12, policy=ROUTE, stop_strings=[texts[n - 1]], **GREEDY)
    assert outs[0].token_ids == free.token_ids[:n]


@pytest.mark.gpu
def test_sampling_is_seeded_and_streamers_work(tiny, capsys):
    def sample():
        torch.manual_seed(5)
        return tiny.generate(["Hello"], max_new_tokens=6, policy=ROUTE, do_sample=True, temperature=1.5)[0]

    assert sample() == sample()
    streamer = TextStreamer(tiny.tokenizer, skip_prompt=True)
    out = tiny.generate(["Hello"], max_new_tokens=6, policy=ROUTE, streamer=streamer, **GREEDY)[0]
    assert out.text.strip() in capsys.readouterr().out


REFUSED = {
    **{"num_beams": 2, "prompt_lookup_num_tokens": 2, "prefill_chunk_size": 2, "cache_implementation": "static", "use_cache": False},
    **{"output_hidden_states": True, "output_attentions": True, "past_key_values": object(), "cache": object()},
    **{"compile_config": CompileConfig(), "assistant_model": object(), "penalty_alpha": 0.5},
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_a_route_cannot_follow_is_refused_by_name(tiny, option):
    export_instead = ".*drllm export" if option in ("cache_implementation", "compile_config") else ""
    with pytest.raises(InputError, match=f"{option}{export_instead}"):
        tiny.generate(["Hello"], policy=ROUTE, **{option: REFUSED[option]})


def test_refusals_look_into_generation_configs_too(tiny):
    tiny.model.generation_config.cache_implementation = "hybrid"  # left in files of the Hub, and passed over by transformers
    assert tiny.generate(["Hello"], policy=ROUTE, max_new_tokens=1, **GREEDY)[0].route == ROUTE
    with pytest.raises(InputError, match="num_beams"):
        tiny.generate(["Hello"], policy=ROUTE, generation_config=GenerationConfig(num_beams=3))
    tiny.model.generation_config.num_beams = 3
    with pytest.raises(InputError, match="num_beams"):
        tiny.generate(["Hello"], policy=ROUTE)
    beams = tiny.generate(["Hello"], max_new_tokens=2, **GREEDY)[0]
    assert (
        beams.token_ids
        == tiny.model.generate(torch.tensor([tiny.tokenizer("Hello")["input_ids"]]), max_new_tokens=2, **GREEDY)[0, 5:].tolist()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate([""]), "prompt 0 is empty"),
        (lambda m: m.generate(["ok", ""]), "prompt 1 is empty"),
        (lambda m: m.generate([]), "0 prompts"),
        (lambda m: m.generate(), "either prompts or input_ids"),
        (lambda m: m.generate(["a", [{"role": "user", "content": "b"}]]), "all text or all chat"),
        (lambda m: m.generate([[{"content": "b"}]]), "'role' and 'content'"),
        (lambda m: m.generate(["x" * 500]), "exceeds the context of 512 tokens"),
        (lambda m: m.generate(["x"], policy=Route.full(5)), "5 blocks, the model has 4"),
        (lambda m: m.generate(["x", "y", "z"], policy=[Route.full(4), ROUTE]), "2 routes for 3 prompts"),
        (lambda m: m.generate(["x", "y"], policy=[ROUTE]), "1 routes for 2 prompts"),
        (lambda m: m.generate(["x"], policy=["1111"]), "expected a Policy, a Route or a list"),
        (lambda m: m.generate(["x"], policy=7), "expected a Policy, a Route or a list"),
        (lambda m: m.generate(input_ids=torch.tensor([3, 4])), "token ids \\(B, T\\)"),
        (lambda m: m.generate(input_ids=torch.tensor([[3, 4]]), attention_mask=torch.tensor([[1, 0]])), "padded on the right"),
        (lambda m: m.generate(input_ids=torch.ones(2, 2).long(), attention_mask=torch.tensor([[1, 1], [0, 0]])), "prompt 1 is empty"),
        (lambda m: m(torch.tensor([[3, 4]]), prompt_mask=torch.tensor([[1]]), routes=ROUTE), "expected that of input_ids"),
        (lambda m: m(torch.tensor([[3, 4]]), routes=[ROUTE, ROUTE, Route.full(4)]), "3 routes for 1 prompts"),
        (lambda m: m(torch.tensor([[3, 4]]), routes=ROUTE, output_hidden_states=True), "output_hidden_states"),
        (lambda m: m(torch.tensor([[3, 4]]), use_cache=False), "use_cache"),
        (lambda m: RoutedModel.wrap(m.model), "wrapped already"),
        (lambda m: RoutedModel.wrap(3), "cannot wrap a int"),
        (lambda m: m.save_pretrained("nowhere"), "no policy to save"),
    ],
)
def test_wrong_input_gets_one_line(tiny, call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(tiny)
    assert "\n" not in str(caught.value)


def test_a_model_without_tokenizer_works_on_ids():
    routed = RoutedModel.wrap(families.build("qwen3"))
    out = routed.generate(input_ids=torch.tensor([[5, 6, 7]]), policy=ROUTE, max_new_tokens=3, **GREEDY)[0]
    assert out.text is None
    with pytest.raises(InputError, match="without a tokenizer"):
        routed.generate(["text"])


def test_hidden_states_are_the_bases_own_without_a_route(tiny):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours = tiny(ids, output_hidden_states=True).hidden_states
        base = copy.deepcopy(tiny).unwrap()(ids, output_hidden_states=True).hidden_states
    assert len(ours) == L + 1
    assert all(torch.equal(a, b) for a, b in zip(ours, base, strict=True))


def test_an_unwrapped_model_refuses_routes(tiny):
    tiny.unwrap()
    with pytest.raises(InputError, match="unwrapped"):
        tiny.generate(["x"], policy=ROUTE)


@pytest.mark.gpu
def test_how_many_tokens_follows_the_callers_wish(tiny):
    def n_new(**options):
        return tiny.generate(["Hello"], policy=ROUTE, eos_token_id=None, **options, **GREEDY)[0].n_new_tokens

    assert n_new() == 64
    assert n_new(max_new_tokens=3) == 3
    assert n_new(max_length=9) == 4
    assert n_new(generation_config=GenerationConfig(max_new_tokens=6)) == 6
    for wrong in ({"max_new_tokens": 0}, {"max_length": 5}):
        with pytest.raises(InputError, match="expected at least 1"):
            n_new(**wrong)


def test_the_models_own_settings_fill_a_given_configuration(tiny):
    """As in transformers: what a generation_config leaves open comes from the model's own."""
    free = tiny.generate(["Hello"], policy=ROUTE, max_new_tokens=8, eos_token_id=None, **GREEDY)[0].token_ids
    tiny.model.generation_config.eos_token_id = free[2]
    out = tiny.generate(["Hello", "Bye"], policy=ROUTE, max_new_tokens=8, generation_config=GenerationConfig(do_sample=False))[0]
    assert out.token_ids == free[: free.index(free[2]) + 1]
    tiny.model.generation_config.num_return_sequences = 2
    outs = tiny.generate(["Hello"], policy=[ROUTE], max_new_tokens=2, generation_config=GenerationConfig(do_sample=True))
    assert [out.route for out in outs] == [ROUTE, ROUTE]


def test_stateful_stopping_criteria_see_each_step_once(tiny):
    class ThirdCall(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **kwargs):
            self.calls += 1
            return torch.full((len(input_ids),), self.calls >= 3, dtype=torch.bool)

    out = tiny.generate(["Hello"], policy=ROUTE, max_new_tokens=9, eos_token_id=None, stopping_criteria=[ThirdCall()], **GREEDY)[0]
    assert out.n_new_tokens == 3


def test_a_list_of_the_base_s_routes_is_the_base(tiny):
    same = tiny.generate(["a", "b"], policy=[Route.full(L)] * 2, max_new_tokens=3, **GREEDY)
    assert same == tiny.generate(["a", "b"], max_new_tokens=3, **GREEDY)


def test_a_policy_of_another_prompt_format_is_refused_however_it_comes(tiny):
    policy = ByFirstToken()
    policy.prompt_format = "chat"
    for given in ({"policy": policy}, {}):
        if not given:
            tiny.policy = policy
        with pytest.raises(InputError, match="trained on 'chat' prompts, these are 'raw'"):
            tiny.generate(["Hello"], **given)
        assert len(tiny.generate(["Hello"], max_new_tokens=1, check_prompt_format=False, **given)) == 1


def test_one_route_for_all_takes_any_prompt(tiny, tmp_path):
    """Whatever it was trained on; `inspect` and its card say so, too."""
    policy = RoutePolicy(ROUTE)
    policy.prompt_format = "chat"
    assert tiny.generate(["Hello"], max_new_tokens=1, policy=policy)[0].route == ROUTE
    assert inspect(tiny, "Hello", policy, max_new_tokens=1).route == ROUTE
    tiny.policy = policy
    assert "- prompts: chat (trained on these; one route for all takes any)" in (tiny.save_pretrained(tmp_path) / "README.md").read_text()


@pytest.mark.parametrize("prompts", [3, [None], [[5, 6]], [["a", "b"]], ["\ud800"], [[{"role": "user"}]]])
def test_prompts_that_are_none_get_one_line(tiny, prompts):
    with pytest.raises(InputError) as caught:
        tiny.generate(prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("n_prompt", [1, 2, 63])
def test_prompts_from_one_token_to_the_context_limit(tokenizer, attention: str, n_prompt: int):
    """Mixed routes, beside a row of another length and alone: cached decoding is the uncached forward, up to the last position there is."""
    routed = RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=64, attn=attention), tokenizer)
    routes = [Route.parse("1021"), Route.parse("2110")]
    rows = [tokenizer(text)["input_ids"] for text in ("a" * n_prompt, "b" * 20)]
    assert len(rows[0]) == n_prompt
    for beside in (1, 0):
        ids, mask = left_pad(rows[: 1 + beside], 0, routed.device)
        n_new = min(5, 64 - ids.shape[1])
        policy = routes[: 1 + beside]
        outputs = routed.generate(input_ids=ids, attention_mask=mask, policy=policy, max_new_tokens=n_new, eos_token_id=None, **GREEDY)
        for row, route, output in zip(rows, policy, outputs, strict=False):
            whole = routed(torch.tensor([row + output.token_ids]), routes=route).logits[0]
            assert whole[len(row) - 1 : -1].argmax(-1).tolist() == output.token_ids
            assert output.n_new_tokens == n_new
    with pytest.raises(InputError, match="64"):
        routed.generate(input_ids=ids, attention_mask=mask, policy=policy, max_new_tokens=65 - ids.shape[1])
