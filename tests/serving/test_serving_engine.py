"""vLLM along routes, token for token against an uncached forward in transformers: float32, in `make test-slow`."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from codebooks import plain_selector
from drllm import Route, RoutedModel
from drllm.deploy.export import export
from drllm.deploy.serving.engine.vllm_private import SUPPORTED
from drllm.deploy.serving.launch import checkpoint_of, make_spec
from drllm.deploy.serving.spec import ServeSpec
from drllm.model.prompts import left_pad
from drllm.policies.codebook import Codebook, Point
from drllm.scoring.route_prediction import decide_routes
from engines import DECIDES, FAMILIES, N_BLOCKS, PYTHON, VOCAB, check, checkpoint, needs_vllm, random_routers, run_engine
from healed import random_adapter, random_policy

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
    return in_transformers(models["llama"])


def in_transformers(folder: Path) -> RoutedModel:
    return RoutedModel.wrap(str(folder), dtype="float32")


def asked_along(routes: list[str | None], new: int, low: int = 1, high: int = 40, **more: Any) -> list[dict[str, Any]]:
    """A request for each route; None: whatever the server decides."""
    return [{"ids": ids, "route": route, "new": new, **more} for ids, route in zip(prompts(len(routes), low, high), routes, strict=True)]


def check_all(routed: RoutedModel, asked: list[dict[str, Any]], done: dict[str, Any], routes: list[str] | None = None) -> None:
    """Every answer is that of its request's route, or of these."""
    for request, answer, route in zip(asked, done["answers"], routes or [None] * len(asked), strict=True):
        check(routed, request, answer, route)


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


@pytest.mark.gpu
@pytest.mark.parametrize("routes", [ROUTES, PATHS], ids=["digits", "paths"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_routes_in_one_batch(models, family: str, routes: list[str]):
    """Skips and repeats of first, last and all blocks, a block that all but one row skip, loops and strengths, loops that begin alike.

    Token for token `generate` in transformers.
    """
    asked = asked_along(routes, 20)
    done = run_engine(models[family], WIDE, asked)
    routed = in_transformers(models[family])
    check_all(routed, asked, done)
    assert done["stats"]["most_sequences"] == 12
    assert done["stats"]["sets"] > 0
    routed.model.generation_config.eos_token_id = None
    ids_BT, mask_BT = left_pad([one["ids"] for one in asked], routed.pad_id, routed.device)
    policy = [Route.parse(route, N_BLOCKS) for route in routes]
    outputs = routed.generate(input_ids=ids_BT, attention_mask=mask_BT, policy=policy, max_new_tokens=20, do_sample=False)
    assert [output.token_ids for output in outputs] == [answer["ids"] for answer in done["answers"]]


@pytest.mark.parametrize("routes", [ROUTES[1:7], PATHS[1:7]], ids=["digits", "paths"])
def test_prompts_in_chunks_and_out_of_the_cache(models, routed, routes: list[str]):
    """Prompts that come in parts, and requests that are thrown out and begin again, keep their routes."""
    asked = asked_along(routes, 60, 60, 110)
    options = {"max_num_batched_tokens": 48, "max_num_seqs": 6, "enable_chunked_prefill": True}
    done = run_engine(models["llama"], WIDE, asked, num_gpu_blocks_override=20, block_size=32, enable_prefix_caching=False, **options)
    check_all(routed, asked, done)
    assert done["stats"]["resumed"] > 0
    in_chunks = -(-sum(len(one["ids"]) for one in asked) // 48)
    assert done["steps"] >= in_chunks + 59, "the last chunk makes the last prompt's first token"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "route", "eager"),
    [
        *(("llama", route, True) for route in ("101101", "211112", "011110", "222222")),
        *((family, "201102", True) for family in FAMILIES),
        *(("llama", route, True) for route in ("0-3,2-5", "0-3,(2-3)*0.5,4-5", "1-3,0-2/6")),
        # Of one length, compiled one after the other: a compile cache that ignored the route would serve the first twice.
        *(("llama", route, False) for route in ("101111", "111101", "211112", "0-2,1-2,(1-2)*0.25,2-5,(5)*0.5")),
        *((family, route, False) for family in FAMILIES for route in ("211012", "0-4,(2-4)*0.5,1-5")),
    ],
)
def test_one_route_for_all(models, family: str, route: str, eager: bool):
    """The list of blocks that the base's own forward walks: some left out, some twice, loops and strengths, in any order.

    Each family loads its weights in its own way, into blocks that are left out and blocks that run twice.
    """
    asked = asked_along([None] * 4, 16)
    done = run_engine(models[family], {"mode": "static", "n_layers": N_BLOCKS, "route": route}, asked, enforce_eager=eager)
    check_all(in_transformers(models[family]), asked, done, [route] * 4)


LOOPED_BOOK = ["111111", "0-3,2-5", "0-3,(2-3)*0.5,4-5", "111001", "0-3,2-3,2-3,4-5"]


@pytest.mark.parametrize(
    ("known", "forced"),
    [
        (BOOK, [*BOOK, "101101", *BOOK, "111112", "221111", BOOK[1]]),
        (LOOPED_BOOK, [*LOOPED_BOOK, "0-3,(2-3)*0.25,4-5", *LOOPED_BOOK, "0-4,2-5"]),
    ],
    ids=["digits", "loops"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_known_routes_run_in_compiled_segments(models, family: str, known: list[str], forced: list[str]):
    """A codebook's routes, alone and mixed, beside routes that are not in it: other repeats, a strength and a span of their own."""
    asked = [request | {"arrives": 2 * (place // 4)} for place, request in enumerate(asked_along(forced, 12))]
    options = {"enforce_eager": False, "max_num_batched_tokens": 64, "enable_chunked_prefill": True}
    done = run_engine(models[family], WIDE | {"routes": known}, asked, **options)
    check_all(in_transformers(models[family]), asked, done)
    assert done["stats"]["segment_steps"] > 0
    assert done["stats"]["routed_steps"] > done["stats"]["segment_steps"], "the unknown routes ran block by block"


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


def saved_routers(routed: RoutedModel, folder: Path) -> Path:
    routed.policy = random_routers(routed)
    return routed.save_pretrained(folder)


def saved_book(routed: RoutedModel, folder: Path, others: tuple[str, ...] = ("110111", "112101", "111122")) -> Path:
    """A codebook whose random selector takes every route."""
    size = 2 * routed.hidden_size
    weight = torch.randn(size, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    routes = [Route.full(N_BLOCKS), *map(Route.parse, others)]
    routed.policy = Codebook(routes, plain_selector(2, size, [0.0, 0.0, 0.0], weight), [Point(0.2)])
    return routed.save_pretrained(folder)


def saved_looped_book(routed: RoutedModel, folder: Path) -> Path:
    """The same, with loops and a strength."""
    return saved_book(routed, folder, ("0-3,2-5", "0-4,(2-4)*0.5,5", "0-3,3,2-3,2-5"))


@pytest.mark.gpu
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("save", [saved_routers, saved_book, saved_looped_book])
def test_routes_decided_in_the_engine(models, tmp_path, save, eager: bool):
    """A saved policy decides at prefill what it decides in transformers, later tokens follow, and a forced route wins over it.

    Not eager is how users start it: then a request forced along the base, which outlasts the others, takes the compiled base's steps.
    """
    routed = in_transformers(models["llama"])
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
    check_all(routed, asked, done, [*wanted, "211110", "111111"])
    if save is not saved_routers and not eager:
        assert 0 < done["stats"]["segment_steps"] < done["stats"]["routed_steps"], (
            "a pass that no route of the codebook makes runs block by block"
        )
        alone = run_engine(models["llama"], spec, asked[:12], **options)
        assert alone["routes"][:12] == wanted
        assert 0 < alone["stats"]["segment_steps"] < alone["stats"]["routed_steps"], "block by block while the codebook has yet to decide"
        check_all(routed, asked[:12], alone, wanted)


def test_routes_decided_in_the_engine_survive_preemption(models, tmp_path):
    """A request that is thrown out reads its prompt and its answer so far again, along the route that its prompt alone decided."""
    routed = in_transformers(models["llama"])
    folder = saved_routers(routed, tmp_path / "policy")
    asked = [{"ids": ids, "new": 90} for ids in prompts(6, 20, 40)]
    spec = ROWS | {"mode": "engine", "policy": str(folder)}
    done = run_engine(models["llama"], spec, asked, num_gpu_blocks_override=12, block_size=32, **DECIDES)
    wanted = [str(route) for route in decide_routes(routed, [routed.policy], [one["ids"] for one in asked], 1)[0]]
    assert done["stats"]["resumed"] > 0
    assert done["routes"] == wanted
    check_all(routed, asked, done, wanted)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_merged_folder_says_what_the_healed_route_says(family, models, tmp_path):
    """In the stock engine, and as `drllm serve` starts it."""
    routed = in_transformers(models[family])
    routed.policy = random_policy(routed, Route.parse("110211"))
    export(routed, routed.policy.route, tmp_path / "merged")
    asked = [{"ids": ids, "new": 12} for ids in prompts(3, high=60)]
    for spec in (None, {"mode": "static", "n_layers": 6, "route": "111111"}):
        done = run_engine(tmp_path / "merged", spec, asked)
        for request, answer in zip(asked, done["answers"], strict=True):
            check(routed, request, answer, str(routed.policy.route))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_healed_routes_and_the_base_in_one_batch_of_one_checkpoint(family, models, tmp_path):
    routed = in_transformers(models[family])
    adapters = [random_adapter(routed, Route.parse(text), seed=seed) for seed, text in enumerate(("110111", "100211"))]
    for adapter in adapters:
        routed.adopt(adapter)
    stack = checkpoint_of(routed, tmp_path, [Route.full(N_BLOCKS), *(adapter.healed for adapter in adapters)])
    healed = tuple(str(adapter.healed) for adapter in adapters)
    spec = ServeSpec("routes", 16, routes=("111111", *healed), healed=healed)
    routes = ["111111", *healed, "101111", *healed]
    asked = asked_along([str(spec.laid(spec.check(route))) for route in routes], 12)
    for eager in (True, False):
        done = run_engine(stack, asdict(spec), asked, enforce_eager=eager)
        check_all(routed, asked, done, routes)


def changed_parts(before: str = "") -> list[str]:
    """What `vllm_parts` says in the serving environment, after a line of Python."""
    support = str(Path(__file__).parents[1] / "support")
    code = f"import sys; sys.path.insert(0, {support!r})\n{before}\nimport json, vllm_parts; print(json.dumps(vllm_parts.changed()))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_each_private_part_is_there():
    lines = changed_parts()
    said = f"vLLM changed what drllm was checked with on {SUPPORTED}: mend deploy/serving/engine/vllm_private.py"
    assert not lines, "\n".join([said, *lines])


def test_what_a_version_changes_is_named():
    """A method that is gone and a field of a step's metadata that is new."""
    gone = "from vllm.v1.worker.gpu_model_runner import GPUModelRunner; del GPUModelRunner._model_forward"
    assert "vllm.v1.worker.gpu_model_runner: GPUModelRunner._model_forward is gone" in changed_parts(gone)
    new = (
        "import dataclasses, vllm.v1.attention.backend as b\n"
        "@dataclasses.dataclass\n"
        "class More(b.CommonAttentionMetadata):\n"
        "    depth: int = 0\n"
        "b.CommonAttentionMetadata = More"
    )
    assert changed_parts(new) == ["CommonAttentionMetadata: depth is new, and StepAttention.of does not cut it"]
