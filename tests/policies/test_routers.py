"""The routers: windows, formulas, control, artefact, and a route decided once, from the prompt alone."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import families
from drllm import Action, Route, RoutedModel, RoutersConfig
from drllm.core.errors import ArtifactError, InputError
from drllm.policies.routers import N_ACTIONS, PrefillRouters, RouterConfig, Routers, apply_control, pool_matrix
from pooling import pool_windows

CONFIG_FILE, WEIGHTS_FILE = "router_config.json", "routers.safetensors"
SMALL = RouterConfig(n_layers=3, hidden_size=8, n_windows=4, width=5)


def random_routers(config: RouterConfig, seed: int = 0) -> Routers:
    routers = Routers(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, tensor in routers.tensors.items():
        if name.startswith("b"):
            routers.tensors[name] = torch.randn(tensor.shape, generator=generator)
    return routers


def naive_windows(x_TD: torch.Tensor, mask: list[bool], n_windows: int) -> list[torch.Tensor]:
    """Section 3.1, literally: the prompt's tokens, cut into windows of floor(T / W), W clamped to T, the remainder dropped."""
    tokens = [x for x, inside in zip(x_TD, mask, strict=True) if inside]
    n = min(n_windows, len(tokens))
    length = len(tokens) // n
    return [torch.stack(tokens[w * length : (w + 1) * length]).mean(0) for w in range(n)]


def check_against_naive(masks: list[list[bool]], n_windows: int) -> None:
    x = torch.randn(len(masks), len(masks[0]), 3, generator=torch.Generator().manual_seed(0))
    pooled, valid = pool_windows(x, torch.tensor(masks), n_windows)
    assert pooled.shape == (len(masks), n_windows, 3)
    for row, mask in enumerate(masks):
        expected = naive_windows(x[row], mask, n_windows)
        assert valid[row].tolist() == [w < len(expected) for w in range(n_windows)]
        torch.testing.assert_close(pooled[row, : len(expected)], torch.stack(expected))
        assert not pooled[row, len(expected) :].any()


@st.composite
def prompt_masks(draw: st.DrawFn) -> list[list[bool]]:
    """Rows of one length, each with at least one prompt token anywhere: padding left or right, a prompt in the middle, or holes."""
    n_tokens = draw(st.integers(1, 24))
    row = st.lists(st.booleans(), min_size=n_tokens, max_size=n_tokens).filter(any)
    return draw(st.lists(row, min_size=1, max_size=4))


@settings(deadline=None, max_examples=150)
@given(prompt_masks(), st.integers(1, 9))
def test_pooling_equals_a_loop_over_rows(masks, n_windows):
    check_against_naive(masks, n_windows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pooling_is_in_float32(dtype):
    # 256 + 1 is not a bfloat16 number: averaging in it would lose the ones.
    x = torch.tensor([256.0, 1.0, 1.0, 1.0], dtype=dtype).reshape(1, 4, 1)
    pooled, _ = pool_windows(x, torch.ones(1, 4), 1)
    assert pooled.dtype == torch.float32
    assert pooled.item() == 64.75


def test_a_row_without_prompt_is_refused():
    with pytest.raises(InputError, match="prompt 1 has no token"):
        pool_matrix(torch.tensor([[1, 1], [0, 0]]), 8)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_stands_outside_the_prompt_never_enters(garbage):
    routers = random_routers(SMALL)
    x = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(3))
    padded = torch.full((1, 12, 8), garbage)
    padded[:, 3:10] = x  # two more tokens on the right: a continuation
    mask = torch.tensor([[0] * 3 + [1] * 7 + [0] * 2])
    alone, _ = pool_windows(x, torch.ones(1, 7), 4)
    among, _ = pool_windows(padded, mask, 4)
    torch.testing.assert_close(among, alone)
    for block in range(3):
        assert torch.equal(routers.start(mask).decide(block, padded), routers.start(torch.ones(1, 7)).decide(block, x))


def test_states_that_are_not_finite_are_refused():
    x = torch.randn(2, 4, 8)
    x[1, 2] = float("nan")
    with pytest.raises(InputError, match="block 1 are not finite"):
        Routers(SMALL).start(torch.ones(2, 4)).decide(1, x)


def reference_logits(routers: Routers, block: int, x_TD: torch.Tensor, mask: list[bool]) -> torch.Tensor:
    config = routers.config
    sizes = [config.hidden_size, *[config.width] * (config.depth - 1), N_ACTIONS]
    layers = [module for pair in itertools.pairwise(sizes) for module in (nn.Linear(*pair), nn.GELU())][:-1]
    network = nn.Sequential(*layers)
    place = 0 if config.shared else block
    network.load_state_dict(
        {
            f"{2 * layer}.{kind}": routers.tensors[f"{kind[0]}{layer + 1}"][place].t()
            for layer in range(config.depth)
            for kind in ("weight", "bias")
        }
    )
    windows = naive_windows(x_TD, mask, config.n_windows)
    if config.normalize:
        windows = [window / (window.square().mean() + 1e-6).sqrt() for window in windows]
    return torch.stack([network(window) for window in windows]).mean(0).detach()


@pytest.mark.parametrize(
    ("normalize", "shared", "first_block", "depth"),
    [
        (True, False, False, 2),
        (False, False, False, 2),
        (True, True, False, 2),
        (True, False, True, 2),
        (True, False, False, 1),
        (False, True, False, 4),
    ],
)
def test_stacked_routers_equal_separate_modules(normalize, shared, first_block, depth):
    config = RouterConfig(3, 8, 4, 5, normalize, shared, first_block, depth)
    routers = random_routers(config)
    masks = [[False, True, True], [True, True, True], [False, False, True]]  # fewer tokens than windows
    masks = [mask + [True] * extra + [False] * (10 - extra) for mask, extra in zip(masks, (0, 10, 4), strict=True)]
    x_LBTD = torch.randn(3, 3, 13, 8, generator=torch.Generator().manual_seed(1)) * 3
    pooled = [pool_windows(x, torch.tensor(masks), 4) for x in x_LBTD]
    stacked = routers.all_logits(torch.stack([states for states, _ in pooled]), pooled[0][1])
    assert stacked.shape == (3, 3, N_ACTIONS)
    prefill = routers.start(torch.tensor(masks))
    for block in range(3):
        read = 0 if first_block else block
        expected = torch.stack([reference_logits(routers, block, x_LBTD[read, row], masks[row]) for row in range(3)])
        torch.testing.assert_close(stacked[block], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(routers.logits(block, *pooled[read]), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(prefill.decide(block, x_LBTD[block]), expected.argmax(-1))


@pytest.mark.parametrize(
    ("preset", "normalize", "wanted"),
    [("paper", "preset", False), ("default", "preset", True), ("paper", "rms", True), ("default", "raw", False)],
)
def test_the_paper_feeds_raw_states_unless_told_otherwise(preset, normalize, wanted):
    assert RoutersConfig(preset=preset, normalize=normalize).normalized == wanted
    with pytest.raises(InputError, match="teacher_forcing is off, and preset default follows the base's states anyway: set preset paper"):
        RoutersConfig(teacher_forcing=False)
    with pytest.raises(InputError, match="normalize is True, expected preset, rms or raw"):
        RoutersConfig(normalize=True)


def test_initial_weights_are_xavier_uniform_and_seeded():
    config = RouterConfig(4, 96, width=32)
    routers = Routers(config, seed=7)
    for weights, fan in ((routers.tensors["w1"], 96 + 32), (routers.tensors["w2"], 32 + 3)):
        bound = (6 / fan) ** 0.5
        assert 0.98 * bound < weights.abs().max() <= bound
        assert abs(weights.std().item() - bound / 3**0.5) < 0.1 * bound
    assert not torch.equal(routers.tensors["w1"][0], routers.tensors["w1"][1])
    assert not routers.tensors["b1"].any()
    assert not routers.tensors["b2"].any()
    before = torch.random.get_rng_state()
    assert torch.equal(Routers(config, seed=7).tensors["w1"], routers.tensors["w1"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(Routers(config, seed=8).tensors["w1"], routers.tensors["w1"])


def test_the_base_dtype_does_not_reach_the_routers():
    routers = random_routers(SMALL)
    x = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    mask = torch.ones(5, 9)
    expected = routers.start(mask).decide(0, x.float())
    assert torch.equal(routers.start(mask).decide(0, x), expected)
    seen = []
    routers.actions = lambda logits: seen.append(logits) or logits.argmax(-1)  # type: ignore[method-assign]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routers.start(mask).decide(0, x)
    routers.start(mask).decide(0, x)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], seen[1])


def decisions(policy, x, mask) -> torch.Tensor:
    decider = policy.start(mask)
    return torch.stack([decider.decide(block, x) for block in range(policy.n_layers)])


def test_control_endpoints():
    routers = random_routers(RouterConfig(6, 8, 4, 5))
    x, mask = torch.randn(32, 9, 8, generator=torch.Generator().manual_seed(4)), torch.ones(32, 9)
    own = decisions(routers, x, mask)
    assert set(own.unique().tolist()) == {0, 1, 2}, "the case must be able to fail"
    assert torch.equal(decisions(routers.with_control(-0.5), x, mask), own)
    for p, action in ((-1, Action.SKIP), (0.5, Action.EXECUTE), (1, Action.REPEAT)):
        assert torch.equal(decisions(routers.with_control(p), x, mask), torch.full((6, 32), int(action)))
    assert torch.equal(decisions(routers, x, mask), own), "with_control returns a view"
    assert routers.with_control(1).tensors["w1"] is routers.tensors["w1"]
    assert torch.equal(decisions(routers.with_control(1).with_control(-0.5), x, mask), own)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (-1, [1, 0, 0]),
        (-0.75, [0.6, 0.25, 0.15]),  # t = 1/2: half skip, half (0.2, 0.5, 0.3)
        (-0.5, [0.2, 0.5, 0.3]),
        (0.0, [0.1, 0.75, 0.15]),  # t = 1/2: half the router, half execute
        (0.5, [0, 1, 0]),
        (0.75, [0, 0.5, 0.5]),  # t = 1/2: half execute, half repeat
        (1, [0, 0, 1]),
    ],
)
def test_control_formulas_by_hand(p, expected):
    probabilities = torch.tensor([0.2, 0.5, 0.3]).repeat(4, 1)
    torch.testing.assert_close(apply_control(probabilities, p), torch.tensor(expected, dtype=torch.float32).repeat(4, 1))


@pytest.mark.parametrize("p", [-1.01, 1.01, float("nan")])
def test_control_outside_its_range_is_refused(p):
    with pytest.raises(InputError, match="the control is"):
        Routers(SMALL).with_control(p)


def test_operating_points_go_from_the_base_to_the_routers():
    points = [point.control for point in Routers(SMALL).operating_points()]
    assert points[0] == 0.4
    assert points[-1] is None
    assert points[:-1] == sorted(points[:-1], reverse=True)
    held = Routers(SMALL).with_control(0.05).operating_points()
    assert [point.control for point in held] == [0.4, 0.3, 0.2, 0.1, 0.05]


@pytest.fixture
def saved(tmp_path):
    random_routers(SMALL, seed=3).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "config",
    [SMALL, RouterConfig(3, 8, shared=True, first_block=True), RouterConfig(3, 8, depth=1), RouterConfig(3, 8, normalize=False, depth=3)],
)
def test_saved_and_loaded_they_are_the_same(tmp_path, config):
    routers = random_routers(config, seed=3).with_control(0.25)
    routers.save(tmp_path)
    loaded = Routers.load(tmp_path)
    assert (loaded.config, loaded.control) == (config, 0.25)
    assert list(loaded.tensors) == [f"{kind}{layer}" for layer in range(1, config.depth + 1) for kind in "wb"]
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in routers.tensors.items())
    assert loaded.tensors["w1"].shape[0] == (1 if config.shared else 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def edit_config(folder, **changes) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | changes
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in values.items() if v != "DROP"}), encoding="utf-8")


def test_keys_of_a_newer_drllm_warn(saved):
    edit_config(saved, colour="blue")
    with pytest.warns(UserWarning, match="colour"):
        routers = Routers.load(saved)
    assert routers.config == SMALL


FIELDS = ["n_layers", "hidden_size", "n_windows", "width", "normalize", "shared", "first_block", "depth", "weights_sha256"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        *((key, "DROP", "train the routers again") for key in FIELDS),
        ("n_layers", "3", "expected a whole number"),
        ("n_layers", True, "expected a whole number"),
        ("n_layers", -1, "expected a whole number"),
        ("n_layers", 10**9, "no readable routers"),
        ("width", 6, "no readable routers"),
        ("hidden_size", 8.0, "expected a whole number"),
        ("n_windows", None, "expected a whole number"),
        ("normalize", 1, "expected true or false"),
        ("depth", 0, "expected a whole number"),
        ("depth", 10**9, "depth is 1000000000, expected at most 8"),
        ("control", 3, "control is 3, expected -1 to 1"),
        ("weights_sha256", "0" * 64, "checksums differ"),
    ],
)
def test_a_wrong_configuration_is_refused(saved, key, value, says):
    edit_config(saved, **{key: value})
    with pytest.raises(ArtifactError, match=says) as refusal:
        Routers.load(saved)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b"\xff", 100, -3])
def test_a_broken_file_is_refused(saved, name, content):
    path = saved / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(ArtifactError):
        Routers.load(saved)


def test_any_flipped_byte_of_the_weights_is_refused(saved):
    whole = (saved / WEIGHTS_FILE).read_bytes()
    for at in [*range(0, 300), *range(300, len(whole), 97)]:
        data = bytearray(whole)
        data[at] ^= 0x21
        (saved / WEIGHTS_FILE).write_bytes(bytes(data))
        with pytest.raises(ArtifactError):
            Routers.load(saved)


def test_moving_to_a_device_leaves_the_routers_where_they_are():
    routers = Routers(SMALL)
    moved = routers.to("meta")
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in routers.parameters()} == {"cpu"}
    assert moved.config is routers.config


def test_two_prefills_at_once_keep_their_own_windows():
    routers = random_routers(RouterConfig(6, 8, 4, 5))
    generator = torch.Generator().manual_seed(5)
    cases = [(torch.randn(16, n, 8, generator=generator), torch.ones(16, n)) for n in (5, 11)]
    alone = [decisions(routers, x, mask) for x, mask in cases]
    assert not torch.equal(*alone)
    views = [routers.start(mask) for _, mask in cases]
    for block in range(6):
        for view, (x, _), expected in zip(views, cases, alone, strict=True):
            assert torch.equal(view.decide(block, x), expected[block])


@pytest.fixture
def routed(tiny):
    """A tiny model with routers that disagree between prompts."""
    tiny.policy = random_routers(RouterConfig(tiny.n_layers, tiny.hidden_size), seed=11)
    return tiny


PROMPTS = ["a", "What melts ice?", "Seven times six is", "The quick brown fox jumps over the lazy dog, twice.", "zzzzzzzz zz", "42 + 1 ="]


def generate_and_watch(routed, prompt: str):
    entering: list[torch.Tensor] = []

    def watch(_module, args, kwargs) -> None:
        entering.append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [block.register_forward_pre_hook(watch, with_kwargs=True) for block in routed.model.get_decoder().layers]
    output = routed.generate([prompt], max_new_tokens=3)[0]
    for handle in handles:
        handle.remove()
    return output, entering[: routed.n_layers]  # decoding comes after


def test_routes_are_those_of_the_states_entering_each_block(routed):
    routes = set()
    for prompt in PROMPTS:
        output, states = generate_and_watch(routed, prompt)
        mask = [True] * states[0].shape[1]
        expected = Route([int(reference_logits(routed.policy, block, x[0], mask).argmax()) for block, x in enumerate(states)])
        assert output.route == expected
        assert output.n_prompt_tokens == len(mask)
        routes.add(output.route)
    assert len(routes) > 1, "the case must be able to fail"


def test_a_padded_batch_routes_each_prompt_as_alone(routed):
    alone = [routed.generate([prompt], max_new_tokens=4)[0] for prompt in PROMPTS]
    together = routed.generate(PROMPTS, max_new_tokens=4)
    assert [output.route for output in together] == [output.route for output in alone]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]


def test_control_reaches_generation(routed):
    routers = routed.policy
    for p, digit in ((0.5, "1"), (0.8, "2"), (1, "2")):
        outputs = routed.generate(PROMPTS, max_new_tokens=2, policy=routers.with_control(p))
        assert {str(output.route) for output in outputs} == {digit * routed.n_layers}


class Counted(PrefillRouters):
    def logits(self, block, x_BTD):
        found = super().logits(block, x_BTD)
        self.asked.append((block, len(x_BTD), found.dtype))
        return found


class Counting(Routers):
    def start(self, prompt_mask_BT):
        decider = Counted(self, prompt_mask_BT)
        decider.asked = self.asked
        return decider


def test_a_route_is_decided_once_and_holds_for_every_new_token(routed):
    policy = Counting(routed.policy.config)
    policy.tensors, policy.asked = routed.policy.tensors, (asked := [])
    outputs = routed.generate(PROMPTS, policy=policy, max_new_tokens=7, min_new_tokens=7)
    assert asked == [(block, len(PROMPTS), torch.float32) for block in range(routed.n_layers)]
    assert {output.n_new_tokens for output in outputs} == {7}


def test_without_a_prompt_mask_the_continuation_can_move_the_route(routed):
    """It is the mask that keeps the answer out."""
    routed.policy = Routers(routed.policy.config, seed=2)  # no biases: the states alone decide
    ids = torch.randint(3, 259, (24, 20), generator=torch.Generator().manual_seed(6))
    ids[:, :8] = ids[0, :8]
    masked = torch.zeros_like(ids)
    masked[:, :8] = 1
    found = {}
    for name, mask in (("masked", masked), ("open", torch.ones_like(ids))):
        cache = routed.new_cache(routed.policy, mask)
        with torch.no_grad():
            routed.forward(cache, input_ids=ids)
        found[name] = set(cache.routes)
    assert len(found["masked"]) == 1
    assert len(found["open"]) > 1


def test_routers_work_in_float32_on_a_bfloat16_base(routed, tmp_path):
    routed.save_pretrained(tmp_path)
    half = families.build("llama", vocab_size=300, max_position_embeddings=512).to(torch.bfloat16)
    again = RoutedModel.from_pretrained(tmp_path, base=half, tokenizer=routed.tokenizer)  # one fingerprint in both dtypes
    assert {parameter.dtype for parameter in again.policy.parameters()} == {torch.float32}
    for prompt in PROMPTS:
        output, states = generate_and_watch(again, prompt)
        assert states[0].dtype == torch.bfloat16
        mask = [True] * states[0].shape[1]
        expected = [int(reference_logits(routed.policy, block, x[0].float(), mask).argmax()) for block, x in enumerate(states)]
        assert output.route == Route(expected)


@pytest.mark.parametrize(
    ("trained_on", "prompt", "other"),
    [("chat", [{"role": "user", "content": "Hi"}], "Hi"), ("raw", "Hi", [{"role": "user", "content": "Hi"}])],
)
def test_prompts_of_another_format_are_refused_unless_told(routed, tmp_path, trained_on, prompt, other):
    routed.policy.prompt_format = trained_on
    routed.save_pretrained(tmp_path)
    routed.policy = None
    again = RoutedModel.from_pretrained(tmp_path, base=routed)
    assert again.policy.prompt_format == trained_on
    assert again.generate([prompt], max_new_tokens=1)
    with pytest.raises(InputError, match=f"trained on '{trained_on}' prompts"):
        again.generate([other], max_new_tokens=1)
    again.policy = again.policy.with_control(0.0)  # a view is no way around it
    with pytest.raises(InputError, match="trained on"):
        again.generate([other], max_new_tokens=1)
    assert again.generate([other], max_new_tokens=1, check_prompt_format=False)
    again.policy.prompt_format = None
    assert again.generate([other], max_new_tokens=1)
