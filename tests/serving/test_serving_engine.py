"""vLLM along routes, token for token against an uncached forward in transformers: float32, in `make test-slow`."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from codebooks import plain_selector
from drllm import Route, RoutedModel
from drllm.deploy.serving.launch import make_spec
from drllm.model.prompts import left_pad
from drllm.policies.codebook import Codebook, Point
from drllm.policies.routers import RouterConfig, Routers
from drllm.scoring.route_prediction import decide_routes
from engines import DECIDES, FAMILIES, N_BLOCKS, VOCAB, check, checkpoint, needs_vllm, run_engine

pytestmark = [pytest.mark.slow, needs_vllm]
ROUTES = ["111111", "011111", "111110", "211111", "111112", "222222", "101101", "001100", "120120", "210012", "000001", "100000"]
BOOK = ["111111", "111001", "110001", "112111"]  # the routes of a codebook
ROWS = {"mode": "routes", "n_layers": N_BLOCKS, "repeatable": list(range(N_BLOCKS))}


def prompts(n: int, low: int = 1, high: int = 40, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randint(low, high))] for _ in range(n)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """One checkpoint a family."""
    return {family: checkpoint(tmp_path_factory.mktemp("base") / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def routed(models) -> RoutedModel:
    """The llama one in transformers."""
    return RoutedModel.wrap(str(models["llama"]), dtype="float32")


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_routes_in_one_batch(models, family: str):
    """Skips and repeats of first, last and all blocks, a block that all but one row skip, prompts of one token and more."""
    asked = [{"ids": ids, "route": route, "new": 20} for ids, route in zip(prompts(12), ROUTES, strict=True)]
    done = run_engine(models[family], ROWS, asked)
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["most_sequences"] == 12
    assert done["stats"]["sets"] > 0


PATHS = [
    "111111",
    "0-3,2-5",
    "0-3,2-5",
    "0-3,(2-3)*0.5,4-5",
    "0-3,2-3,2-3,4-5",
    "0-3,2-3,(2-3)*0.25,4-5",
    "120110",
    "0-4,2-4,1-5",
    "2-3,0-5",
    "0,1-3,(1-3)*0.5,4/6",
    "222222",
    "0-5,(5)*0.5,0-5",
]
WIDE = ROWS | {"repeatable": sorted([*range(N_BLOCKS)] * 2)}  # three passes of every block


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_paths_in_one_batch(models, family: str):
    """Digits, loops and strengths, loops that begin alike, blocks out of order: token for token `generate` in transformers."""
    asked = [{"ids": ids, "route": route, "new": 20} for ids, route in zip(prompts(12), PATHS, strict=True)]
    done = run_engine(models[family], WIDE, asked)
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["most_sequences"] == 12
    routed.model.generation_config.eos_token_id = None
    ids_BT, mask_BT = left_pad([one["ids"] for one in asked], routed.pad_id, routed.device)
    routes = [Route.parse(route, N_BLOCKS) for route in PATHS]
    outputs = routed.generate(input_ids=ids_BT, attention_mask=mask_BT, policy=routes, max_new_tokens=20, do_sample=False)
    assert [output.token_ids for output in outputs] == [answer["ids"] for answer in done["answers"]]


def test_paths_in_chunks_and_out_of_the_cache(models, routed):
    """Prompts that come in parts, and requests that are thrown out and begin again, keep their paths."""
    asked = [{"ids": ids, "route": route, "new": 60} for ids, route in zip(prompts(6, 60, 110), PATHS[1:7], strict=True)]
    options = {"max_num_batched_tokens": 48, "max_num_seqs": 6, "enable_chunked_prefill": True}
    done = run_engine(models["llama"], WIDE, asked, num_gpu_blocks_override=20, block_size=32, enable_prefix_caching=False, **options)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["resumed"] > 0


LOOPED_BOOK = ["111111", "0-3,2-5", "0-3,(2-3)*0.5,4-5", "111001", "0-3,2-3,2-3,4-5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_known_loops_run_in_compiled_segments(models, family: str):
    """Of a codebook's routes, alone and mixed, beside paths that are not in it: a strength of its own, a span of its own."""
    forced = [*LOOPED_BOOK, "0-3,(2-3)*0.25,4-5", *LOOPED_BOOK, "0-4,2-5"]
    asked = [
        {"ids": ids, "route": route, "new": 12, "arrives": 4 * (place // 5)}
        for place, (ids, route) in enumerate(zip(prompts(12), forced, strict=True))
    ]
    spec = WIDE | {"routes": LOOPED_BOOK}
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    done = run_engine(models[family], spec, asked, enforce_eager=False, max_num_batched_tokens=64, enable_chunked_prefill=True)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["segment_steps"] > 0
    assert done["stats"]["routed_steps"] > done["stats"]["segment_steps"], "the unknown routes ran block by block"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "route"),
    [*(("llama", route) for route in ("101101", "211112", "011110", "222222")), *((family, "201102") for family in FAMILIES)],
)
def test_one_route_for_all(models, family: str, route: str):
    """Each family loads its weights in its own way, into blocks that are left out and blocks that run twice."""
    asked = [{"ids": ids, "new": 16} for ids in prompts(4)]
    done = run_engine(models[family], {"mode": "static", "n_layers": N_BLOCKS, "route": route}, asked)
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer, route)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_one_route_compiled_is_not_taken_for_another(models, family: str):
    """Two routes of one length, compiled one after the other: a compile cache that ignored the route would serve the first twice.

    And one whose first and last blocks run twice, compiled with the twins that hold their second passes.
    """
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    asked = [{"ids": ids, "new": 12} for ids in prompts(3)]
    for route in ("101111", "111101", "211112") if family == "llama" else ("211012",):
        done = run_engine(models[family], {"mode": "static", "n_layers": N_BLOCKS, "route": route}, asked, enforce_eager=False)
        for request, answer in zip(asked, done["answers"], strict=True):
            check(routed, request, answer, route)


STATIC_LOOPS = {
    "a span twice": "0-3,2-5",
    "with a strength": "0-3,(2-3)*0.5,4-5",
    "three passes, and strengths": "0-2,1-2,(1-2)*0.25,2-5,(5)*0.5",
    "the last blocks left out": "1-3,0-2/6",
}


@pytest.mark.parametrize("name", STATIC_LOOPS)
def test_one_path_for_all(models, routed, name: str):
    """Loops, strengths and third passes, in any order: the list of blocks that the base's own forward walks."""
    route = STATIC_LOOPS[name]
    asked = [{"ids": ids, "new": 16} for ids in prompts(4)]
    done = run_engine(models["llama"], {"mode": "static", "n_layers": N_BLOCKS, "route": route}, asked)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer, route)


@pytest.mark.parametrize(
    ("family", "route"), [("llama", STATIC_LOOPS["three passes, and strengths"]), *((one, "0-4,(2-4)*0.5,1-5") for one in FAMILIES)]
)
def test_one_path_compiled(models, family: str, route: str):
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    asked = [{"ids": ids, "new": 12} for ids in prompts(3)]
    done = run_engine(models[family], {"mode": "static", "n_layers": N_BLOCKS, "route": route}, asked, enforce_eager=False)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer, route)


def test_rows_of_the_base_and_of_routes_when_compiled(models, routed):
    """Steps of the base alone run compiled, the others block by block: the same request goes through both."""
    asked = [{"ids": ids, "new": 24} for ids in prompts(3)]
    asked.append({"ids": prompts(1, seed=5)[0], "route": "120110", "new": 8, "arrives": 6})
    done = run_engine(models["llama"], ROWS, asked, enforce_eager=False)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert 0 < done["stats"]["routed_steps"] < done["stats"]["steps"]


@pytest.mark.parametrize("family", FAMILIES)
def test_known_routes_run_in_compiled_segments(models, family: str):
    """A codebook's routes, alone and mixed, beside routes that are not in it, of which some repeat what the codebook never does."""
    forced = [*BOOK, "101101", *BOOK, "111112", "221111", BOOK[1]]
    asked = [
        {"ids": ids, "route": route, "new": 12, "arrives": place // 3}
        for place, (ids, route) in enumerate(zip(prompts(12), forced, strict=True))
    ]
    spec = ROWS | {"routes": BOOK}
    routed = RoutedModel.wrap(str(models[family]), dtype="float32")
    done = run_engine(models[family], spec, asked, enforce_eager=False, max_num_batched_tokens=64, enable_chunked_prefill=True)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["segment_steps"] > 0
    assert done["stats"]["routed_steps"] > done["stats"]["segment_steps"], "the unknown route ran block by block"


def test_a_second_pass_that_no_segment_holds(models, routed):
    """Of the last block, which the codebook never repeats, though requests may."""
    request = {"ids": prompts(1)[0], "route": "112112", "new": 12}
    spec = ROWS | {"routes": BOOK}
    done = run_engine(models["llama"], spec, [request], enforce_eager=False)
    check(routed, request, done["answers"][0])
    assert done["stats"]["segment_steps"] == 0


def test_a_block_that_all_skip_and_identical_routes(models, routed):
    asked = [{"ids": ids, "route": "110211", "new": 12} for ids in prompts(5)]
    done = run_engine(models["llama"], ROWS, asked)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["sets"] == 0, "a step whose rows agree gathers nothing"


def test_prompts_in_chunks(models, routed):
    asked = [{"ids": ids, "route": route, "new": 12} for ids, route in zip(prompts(6, 60, 110), ROUTES[1:7], strict=True)]
    done = run_engine(models["llama"], ROWS, asked, max_num_batched_tokens=48, max_num_seqs=6, enable_chunked_prefill=True)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    in_chunks = -(-sum(len(one["ids"]) for one in asked) // 48) + 11  # the last chunk makes the last prompt's first token
    assert in_chunks > 16, "a run that cuts no prompt takes 12"
    assert done["steps"] >= in_chunks


def test_preempted_and_resumed(models, routed):
    """Too few cache blocks for all: requests are thrown out and begin again, and keep their routes."""
    asked = [{"ids": ids, "route": route, "new": 90} for ids, route in zip(prompts(6, 20, 40), ROUTES[1:7], strict=True)]
    done = run_engine(models["llama"], ROWS, asked, num_gpu_blocks_override=12, block_size=32, enable_prefix_caching=False)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer)
    assert done["stats"]["resumed"] > 0


def test_prefix_cache_needs_the_salt(models, routed):
    """One prompt along two routes: with the route as salt both are right; without, the second reads the first one's keys and values."""
    ids = prompts(1, 100, 100)[0]
    first, second = "101101", "120120"
    salted = [
        {"ids": ids, "route": first, "salt": first, "new": 8},
        {"ids": ids, "route": second, "salt": second, "new": 8, "arrives": 20},
        {"ids": ids, "route": first, "salt": first, "new": 8, "arrives": 40},
    ]
    done = run_engine(models["llama"], ROWS, salted, enable_prefix_caching=True, block_size=32)
    for request, answer in zip(salted, done["answers"], strict=True):
        check(routed, request, answer)
    assert [answer["cached"] for answer in done["answers"]] == [0, 0, 96]
    bare = [{**request, "salt": None} for request in salted]
    done = run_engine(models["llama"], ROWS, bare, enable_prefix_caching=True, block_size=32)
    assert done["answers"][1]["cached"] == 96
    with pytest.raises(AssertionError):
        check(routed, bare[1], done["answers"][1])


def test_late_arrivals_and_aborts(models, routed):
    asked = [
        {"ids": ids, "route": route, "new": 30, "arrives": 3 * place, "aborts": 14 if place in (0, 2) else None}
        for place, (ids, route) in enumerate(zip(prompts(6), ROUTES[1:7], strict=True))
    ]
    done = run_engine(models["llama"], ROWS, asked)
    for place, (request, answer) in enumerate(zip(asked, done["answers"], strict=True)):
        check(routed, request, answer)
        assert len(answer["ids"]) == 30 or place in (0, 2)
    assert len(done["answers"][0]["ids"]) < 30


def test_what_the_cache_holds(models):
    """A skipped block costs no cache, a block that may repeat costs a second one."""
    asked = [{"ids": [5, 6, 7], "new": 2}]
    specs = {
        "base": None,
        "skips": {"mode": "static", "n_layers": N_BLOCKS, "route": "101101"},
        "repeats": {"mode": "static", "n_layers": N_BLOCKS, "route": "112211"},
        "rows": {"mode": "routes", "n_layers": N_BLOCKS, "repeatable": [3]},
    }
    tokens = {}
    for name, spec in specs.items():
        done = run_engine(models["llama"], spec, asked)
        tokens[name] = done["blocks"] * done["block_size"]
    for name, passes in (("skips", 4), ("repeats", 8), ("rows", 7)):
        assert tokens[name] == pytest.approx(tokens["base"] * N_BLOCKS / passes, rel=0.02), name


@pytest.mark.parametrize(
    ("spec", "engine", "says"),
    [
        ({**ROWS, "n_layers": 5, "repeatable": []}, {}, "the policy is for 5 blocks, the checkpoint has 6"),
        (ROWS, {"enable_lora": True}, "routes are not tested with LoRA"),
        (ROWS, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "routes are not tested with speculative decoding"),
    ],
)
def test_refused_by_name(models, spec: dict, engine: dict, says: str):
    with pytest.raises(AssertionError, match=says):
        run_engine(models["llama"], spec, [], **engine)


def test_a_sliding_window_is_refused(tmp_path):
    import engines

    folder = tmp_path / "mistral"
    engines.FAMILIES["mistral"] = {"sliding_window": 32}
    try:
        checkpoint(folder, "mistral")
    finally:
        engines.FAMILIES["mistral"] = {"sliding_window": None}
    with pytest.raises(AssertionError, match="sliding-window"):
        run_engine(folder, ROWS, [])


def saved_routers(routed: RoutedModel, folder: Path) -> Path:
    """Random routers that take all three actions."""
    routers = Routers(RouterConfig(N_BLOCKS, routed.hidden_size, n_windows=4, width=16), seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in routers.tensors.items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.0 if name.startswith("w") else 0.1))
    routed.policy = routers
    return routed.save_pretrained(folder)


def saved_book(routed: RoutedModel, folder: Path) -> Path:
    """A codebook whose random selector takes every route."""
    routes = [Route.full(N_BLOCKS), Route.parse("110111"), Route.parse("112101"), Route.parse("111122")]
    size = 2 * routed.hidden_size
    weight = torch.randn(size, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    routed.policy = Codebook(routes, plain_selector(2, size, [0.0, 0.0, 0.0], weight), [Point(0.2)])
    return routed.save_pretrained(folder)


def saved_looped_book(routed: RoutedModel, folder: Path) -> Path:
    """The same, with loops and a strength."""
    routes = [Route.full(N_BLOCKS), *(Route.parse(text) for text in ("0-3,2-5", "0-4,(2-4)*0.5,5", "0-3,3,2-3,2-5"))]
    size = 2 * routed.hidden_size
    weight = torch.randn(size, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    routed.policy = Codebook(routes, plain_selector(2, size, [0.0, 0.0, 0.0], weight), [Point(0.2)])
    return routed.save_pretrained(folder)


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("save", [saved_routers, saved_book, saved_looped_book])
def test_routes_decided_in_the_engine(models, tmp_path, save, eager: bool):
    """A saved policy decides at prefill what it decides in transformers, later tokens follow, and a forced route wins over it.

    Not eager is how users start it: then a request forced along the base, which outlasts the others, takes the compiled base's steps.
    """
    routed = RoutedModel.wrap(str(models["llama"]), dtype="float32")
    folder = save(routed, tmp_path / "policy")
    asked = [{"ids": ids, "new": 12, "arrives": place // 4} for place, ids in enumerate(prompts(12))]
    asked.append({"ids": prompts(1, seed=9)[0], "route": "211110", "new": 12})
    asked.append({"ids": prompts(1, seed=8)[0], "route": "111111", "new": 24})
    spec = asdict(make_spec(routed.policy, str(folder), routed, "all"))
    options = DECIDES | {"enforce_eager": eager}
    done = run_engine(models["llama"], spec, asked, **options)
    wanted = [str(route) for route in decide_routes(routed, [routed.policy], [one["ids"] for one in asked[:12]], 1)[0]]
    assert done["routes"][:12] == wanted
    assert done["routes"][12:] == [None, None], "a forced route is decided by nobody"
    assert len(set(wanted)) >= 3
    assert 0 < done["stats"]["routed_steps"] < done["stats"]["steps"]
    for request, answer, route in zip(asked, done["answers"], [*wanted, "211110", "111111"], strict=True):
        check(routed, request, answer, route)
    if save is not saved_routers and not eager:
        assert 0 < done["stats"]["segment_steps"] < done["stats"]["routed_steps"], (
            "a pass that no route of the codebook makes runs block by block"
        )
        alone = run_engine(models["llama"], spec, asked[:12], **options)
        assert alone["routes"][:12] == wanted
        assert 0 < alone["stats"]["segment_steps"] < alone["stats"]["routed_steps"], "block by block while the codebook has yet to decide"
        for request, answer, route in zip(asked, alone["answers"], wanted, strict=False):
            check(routed, request, answer, route)


def test_routes_decided_in_the_engine_survive_preemption(models, tmp_path):
    """A request that is thrown out reads its prompt and its answer so far again, along the route that its prompt alone decided."""
    routed = RoutedModel.wrap(str(models["llama"]), dtype="float32")
    folder = saved_routers(routed, tmp_path / "policy")
    asked = [{"ids": ids, "new": 90} for ids in prompts(6, 20, 40)]
    done = run_engine(
        models["llama"],
        ROWS | {"mode": "engine", "policy": str(folder)},
        asked,
        num_gpu_blocks_override=12,
        block_size=32,
        **DECIDES,
    )
    wanted = [str(route) for route in decide_routes(routed, [routed.policy], [one["ids"] for one in asked], 1)[0]]
    assert done["stats"]["resumed"] > 0
    assert done["routes"] == wanted
    for request, answer, route in zip(asked, done["answers"], wanted, strict=True):
        check(routed, request, answer, route)


def test_real_model_along_nested_routes():
    """SmolLM2-135M, routes of a saved codebook's kind, real prompts."""
    from drllm.deploy.serving.launch import cache_folder, checkpoint_of
    from drllm.model.packages import PACKAGED

    if PACKAGED["smollm2-135m-q4"].installed is None:
        pytest.skip("needs the data package of smollm2-135m-q4 (drllm models)")
    routed = RoutedModel.wrap("smollm2-135m-q4", dtype="float32")
    folder = checkpoint_of(routed, cache_folder())
    texts = [
        "Question: What do plants need to grow?\nAnswer:",
        "The capital of France is",
        "Once upon a time",
        "def add(a, b):",
        "2 + 2 =",
        "Water boils at",
        "A list of three colours:",
        "Dear Sir or Madam,",
    ]
    full = "1" * 30
    routes = [full, f"{full[:18]}00{full[20:]}", f"{full[:16]}0000{full[20:]}", f"{full[:14]}000000{full[20:]}", f"{full[:27]}2{full[28:]}"]
    asked = [{"ids": routed.tokenizer(text)["input_ids"], "route": routes[place % 5], "new": 20} for place, text in enumerate(texts)]
    done = run_engine(folder, {"mode": "routes", "n_layers": 30, "repeatable": [27]}, asked)
    for request, answer in zip(asked, done["answers"], strict=True):
        check(routed, request, answer, tolerance=2e-3)
