"""Serving without vLLM: what is served, how the server would be started, steps of mixed routes, routes in answers."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import shlex
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm import Route, RoutedModel
from drllm.cli import main
from drllm.errors import InputError, UnsupportedModelError
from drllm.model.codebook import Codebook, Point
from drllm.model.policy import Policy, RoutePolicy
from drllm.model.routers import RouterConfig, Routers
from drllm.serving import launch as launching
from drllm.serving.engine.answers import CALL, RouteMiddleware, Taken
from drllm.serving.engine.plan import StepPlan, Undecided, run_plan
from drllm.serving.engine.refusals import refuse, refuse_attention
from drllm.serving.launch import check_port, check_supported, checkpoint_of, environment, launch, make_spec
from drllm.serving.spec import ServeSpec

L, D = 4, 8


@dataclass
class Common:
    """The fields of vLLM's CommonAttentionMetadata that a subset of rows changes."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor | None = None
    is_prefilling: torch.Tensor | None = None
    seq_lens_cpu_upper_bound: torch.Tensor | None = None
    _num_computed_tokens_cache: torch.Tensor | None = None
    _token_to_req_indices_cache: torch.Tensor | None = None

    def replace(self, **changes: Any) -> Common:
        return replace(self, **changes)


def step_of(lengths: list[int]) -> Common:
    """A step of rows of these many tokens; slots are numbered so that each token's can be told."""
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    n = int(starts[-1])
    rows = len(lengths)
    return Common(starts, starts, torch.tensor(lengths) + 10, rows, n, max(lengths), torch.arange(rows)[:, None] * 7,
                  torch.arange(n) + 100, torch.arange(n) * 3, torch.ones(rows, dtype=torch.bool), torch.tensor(lengths) + 11)  # fmt: skip


class Block(torch.nn.Module):
    """Mixes the tokens of a row as attention does: by where its metadata says that rows begin."""

    def __init__(self, block: int, n_pass: int, context: Any):
        super().__init__()
        self.self_attn = SimpleNamespace(attn=SimpleNamespace(layer_name=f"{block}.{n_pass}"))
        self.weight = torch.randn(D, D, generator=torch.Generator().manual_seed(block)) / D**0.5
        self.context, self.name = context, f"{block}.{n_pass}"
        self.calls = 0

    def forward(self, positions: torch.Tensor, states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        common, slots = self.context.attn_metadata[self.name], self.context.slot_mapping[self.name]
        assert torch.equal(slots - 100, positions // 3), "each token keeps its own slot"
        residual = residual + states
        starts = common.query_start_loc_cpu.tolist()
        assert starts[-1] == len(states) == common.num_actual_tokens
        assert common.max_query_len == max(b - a for a, b in itertools.pairwise(starts))
        mixed = torch.cat([residual[a:b].cumsum(0) / (1 + common.seq_lens[row]) for row, (a, b) in enumerate(itertools.pairwise(starts))])
        return torch.tanh(mixed @ self.weight), residual


def run(
    routes: list[str], lengths: list[int], undecided: dict[int, Policy] | None = None
) -> tuple[torch.Tensor, StepPlan, dict[str, Block]]:
    """The states behind the last block."""
    common = step_of(lengths)
    context = SimpleNamespace(attn_metadata={}, slot_mapping={})
    blocks = {f"{block}.{n_pass}": Block(block, n_pass, context) for block in range(L) for n_pass in (0, 1)}
    actions = np.array([[int(action) for action in route] for route in routes], dtype=np.int8)
    waiting = [Undecided(str(row), policy, [row]) for row, policy in (undecided or {}).items()]
    plan = StepPlan(actions, common, lambda part: part, common, waiting)
    states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))
    stretches = [SimpleNamespace(block=block, n_pass=n_pass, names=[f"{block}.{n_pass}"], run=blocks[f"{block}.{n_pass}"])
                 for block in range(L) for n_pass in (0, 1)]  # fmt: skip
    states, residual = run_plan(plan, stretches, common.positions, states, context)
    return states + residual, plan, blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("012", min_size=L, max_size=L), st.integers(1, 5)), min_size=1, max_size=6))
def test_a_step_of_mixed_routes_is_each_row_alone(rows: list[tuple[str, int]]):
    """Whatever the routes, each row's states are those of a step that holds it alone."""
    routes, lengths = [route for route, _ in rows], [length for _, length in rows]
    together, _, _ = run(routes, lengths)
    start = 0
    for row, (route, length) in enumerate(rows):
        context = SimpleNamespace(attn_metadata={}, slot_mapping={})
        whole = step_of(lengths)
        ends, here = torch.tensor([0, length], dtype=torch.int32), slice(start, start + length)
        own = Common(ends, ends, whole.seq_lens[row : row + 1], 1, length, length, whole.block_table_tensor[row : row + 1],
                     whole.slot_mapping[here])  # fmt: skip
        states = torch.randn(sum(lengths), D, generator=torch.Generator().manual_seed(9))[start : start + length]
        residual = torch.zeros_like(states)
        for block, action in enumerate(route):
            for n_pass in range(int(action)):
                module = Block(block, n_pass, context)
                context.attn_metadata[module.name], context.slot_mapping[module.name] = own, own.slot_mapping
                states, residual = module(whole.positions[start : start + length], states, residual)
        assert torch.allclose(together[start : start + length], states + residual, atol=1e-6)
        start += length


def test_which_stretches_a_step_keeps_to():
    common = step_of([1, 1])
    plan = StepPlan(np.array([[1, 0, 0, 1], [1, 1, 1, 2]], dtype=np.int8), common, lambda part: part, common)
    assert plan.keeps_to(np.array([0, 1, 3]))
    assert plan.keeps_to(np.arange(L))
    assert not plan.keeps_to(np.array([0, 2, 3]))
    assert not plan.keeps_to(np.array([0, 1]))


def test_rows_that_agree_are_not_gathered():
    _, plan, blocks = run(["1021", "1021", "1021"], [2, 1, 3])
    assert plan.n_sets == 0
    assert [blocks[name].calls for name in ("0.0", "1.0", "2.0", "2.1", "3.0", "3.1")] == [1, 0, 1, 1, 1, 0]
    assert not plan.is_base
    assert run(["1111", "1111"], [1, 1])[1].is_base


def test_nested_routes_share_their_sets():
    """Four nested routes of long runs: three subsets of the rows, however many blocks they skip."""
    _, plan, blocks = run(["1111", "1101", "1001", "0001"], [1, 1, 1, 1])
    assert plan.n_sets == 3
    assert sum(block.calls for block in blocks.values()) == 4


class _Counting(Policy):
    """Skips block 1 and repeats block 2 where the prompt is long, and remembers what it was shown."""

    name = "counting"
    n_layers = L

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def decide(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> torch.Tensor:
        self.shown.append(x_BTD[0].clone())
        long = x_BTD.shape[1] > 2
        return torch.tensor([{1: 0, 2: 2}.get(block, 1) if long else 1])

    def save(self, folder: Path) -> list[str]:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Policy:
        raise NotImplementedError


def test_undecided_rows_are_asked_before_each_block():
    """Beside a row whose route is known: decisions hold from that block on, and each block is asked with the states entering it."""
    long, short = _Counting(), _Counting()
    together, plan, _ = run(["1111", "1200", "1111"], [4, 3, 2], {0: long, 2: short})
    assert [str(Route(row)) for row in plan.actions_RL.tolist()] == ["1021", "1200", "1111"]
    known, _, _ = run(["1021", "1200", "1111"], [4, 3, 2])
    assert torch.allclose(together, known)
    alone, _, _ = run(["1000", "1200", "1111"], [4, 3, 2])
    assert torch.allclose(long.shown[1], alone[:4]), "the states that entered block 1 are those behind block 0"
    assert torch.allclose(long.shown[2], long.shown[1]), "a skipped block leaves the states as they were"
    assert len(long.shown) == len(short.shown) == L


SPEC = ServeSpec("book", L, "policy", repeatable=(2,))


@pytest.mark.parametrize(
    ("asked", "says"),
    [("11", "has 2 digits"), ("113", "cannot read"), ("1x11", "cannot read"), ("2111", "repeats block 0"), ("0000", "runs no block"),
     (1111, "must be a string"), (None, "must be a string"), (["1111"], "must be a string"), ("1" * 10_000, "must be a string")],
)  # fmt: skip
def test_routes_that_a_server_cannot_run(asked: Any, says: str):
    with pytest.raises(InputError, match=says):
        SPEC.check(asked)


def test_routes_that_a_server_runs():
    assert SPEC.check("1021") == Route.parse("1021")
    fixed = ServeSpec("static", L, "policy", "1021")
    assert fixed.check("1021") == Route.parse("1021")
    with pytest.raises(InputError, match="runs one route, 1021"):
        fixed.check("1111")


@pytest.mark.parametrize("spec", [SPEC, ServeSpec("static", L, "p", "0121", prompt_format="raw"), ServeSpec("forced", L)])
def test_a_spec_survives_its_way_to_the_engine(spec: ServeSpec):
    assert ServeSpec.from_config(json.loads(json.dumps(spec.to_config()))) == spec
    assert ServeSpec.from_config({}) is None
    with pytest.raises(InputError, match="none of"):
        ServeSpec("fast", L)
    with pytest.raises(InputError, match="not all among"):
        ServeSpec("forced", L, repeatable=(L,))
    with pytest.raises(InputError, match="one route"):
        ServeSpec("static", L)


def test_how_each_policy_is_served(tiny: RoutedModel):
    n = tiny.n_layers
    assert make_spec(None, "", tiny) == ServeSpec("forced", n)
    assert make_spec(None, "", tiny, repeatable="all").repeatable == tuple(range(n))
    assert make_spec(RoutePolicy(Route.full(n)), "p", tiny) == ServeSpec("static", n, "p", "1" * n)
    size = 2 * tiny.hidden_size
    routes = [Route.full(n), Route.full(n).edit(n - 1, 2)]
    book = Codebook(routes, 1, torch.zeros(size), torch.ones(size), torch.zeros(size, 1), torch.zeros(1), [Point(0.0)], 0)
    book.prompt_format = "raw"
    known = tuple(map(str, routes))
    assert make_spec(book, "p", tiny) == ServeSpec("book", n, "p", repeatable=(n - 1,), routes=known, prompt_format="raw")
    assert make_spec(book, "p", tiny, decide="engine", repeatable="0", any_format=True) == ServeSpec(
        "engine", n, "p", repeatable=(0, n - 1)
    )
    routers = Routers(RouterConfig(n, tiny.hidden_size))
    assert make_spec(routers, "p", tiny) == ServeSpec("engine", n, "p", repeatable=tuple(range(n)))
    with pytest.raises(InputError, match="only a code book decides before"):
        make_spec(routers, "p", tiny, decide="front")
    with pytest.raises(InputError, match="repeat blocks 3, so --repeatable none cannot"):
        make_spec(book, "p", tiny, repeatable="none")
    with pytest.raises(InputError, match="expected all, none, auto"):
        make_spec(None, "", tiny, repeatable="some")
    with pytest.raises(InputError, match="not all among"):
        make_spec(None, "", tiny, repeatable="99")


def test_the_command_line_of_a_server():
    def of(spec: ServeSpec, **more: Any) -> list[str]:
        arguments = {
            "arch": "DrllmLlamaForCausalLM",
            "name": "m",
            "dtype": "bfloat16",
            "device": "cpu",
            "host": "::1",
            "port": 1,
            "context": 512,
        }
        return launch(spec, "base", **(arguments | more)).argv

    book = of(SPEC, extra=["--seed", "3"])
    assert json.loads(book[book.index("--additional-config") + 1]) == SPEC.to_config()
    assert json.loads(book[book.index("--hf-overrides") + 1]) == {"architectures": ["DrllmLlamaForCausalLM"]}
    assert book[-2:] == ["--seed", "3"]
    secret = launch(SPEC, "base", "arch", "m", "bfloat16", "cpu", "::1", 1, 512, api_key="the-key")
    assert "the-key" not in " ".join(secret.argv), "every user of the machine can read a command line"
    assert secret.env["VLLM_API_KEY"] == "the-key"
    assert "--enforce-eager" not in book
    assert "--no-enable-chunked-prefill" not in book
    inside = of(ServeSpec("engine", L, "policy"), context=4096)
    assert {"--no-enable-chunked-prefill", "--no-enable-prefix-caching", "--no-async-scheduling"} <= set(inside)
    assert inside[inside.index("--max-num-batched-tokens") + 1] == "4096"
    gpu = of(SPEC, device="cuda")
    assert "drllm.serving.engine.worker.RoutedGPUWorker" in gpu
    assert "--enforce-eager" in gpu


def test_variables_that_are_set_already_are_left_alone(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    added = environment("cpu")
    assert "VLLM_CPU_KVCACHE_SPACE" not in added
    assert added["VLLM_PLUGINS"] == "drllm"
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert environment("cpu")["VLLM_PLUGINS"] == "other,drllm"
    assert not any(name.startswith("VLLM_CPU") for name in environment("cuda"))


def test_a_port_that_is_taken_is_found_before_a_model_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen on"):
            check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="expected 1 to 65535"):
        check_port("127.0.0.1", 70000)


def test_families_that_can_be_served(tiny: RoutedModel):
    import families

    assert check_supported(tiny) == "DrllmLlamaForCausalLM"
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel cannot be served with routes; these can: LlamaForCausalLM"):
        check_supported(RoutedModel.wrap(families.build("gpt2")))
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        check_supported(RoutedModel.wrap(families.build("mistral", sliding_window=8)))
    with pytest.raises(InputError, match="in memory only"):
        checkpoint_of(tiny, Path("nowhere"))


def test_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--base", "smollm2-135m"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'drllm[serve]'" in said
    assert "make serve-env" in said
    assert said.count("\n") == 1
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(launching.importlib.metadata, "version", lambda name: "0.31.0")
    with pytest.raises(InputError, match=r"vllm 0.31.0 is installed, drllm's plugin is for 0.32"):
        launching.check_installed()

    def only_cpu(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(launching.importlib.metadata, "version", only_cpu)
    with pytest.raises(InputError, match="pip uninstall -y torchaudio torchcodec triton"):
        launching.check_installed()
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: object() if name == "vllm" else None)
    assert launching.check_installed() == "0.32.0"


def test_serve_prints_its_command(monkeypatch, capsys, tiny: RoutedModel, tmp_path):
    """A saved policy on a saved base: what would be started, and what is refused before it is."""
    monkeypatch.setattr("drllm.serving.launch.check_installed", lambda: "0.32.0")
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    routed = RoutedModel.wrap(str(tmp_path / "base"))
    routed.policy = Route.full(routed.n_layers).edit(1, 0)
    routed.save_pretrained(tmp_path / "policy")
    port = str(_free_port())
    assert main(["serve", str(tmp_path / "policy"), "--print", "--port", port, "--vllm-args", "--max-num-seqs 4"]) == 0
    first, command = capsys.readouterr().out.strip().split("\n")
    assert first == f"serving base: one route, 10{'1' * (routed.n_layers - 2)}"
    words = shlex.split(command)
    assert words[-2:] == ["--max-num-seqs", "4"]
    assert words[words.index("--model") + 1] == str(tmp_path / "base")
    spec = ServeSpec.from_config(json.loads(words[words.index("--additional-config") + 1]))
    assert spec == ServeSpec("static", routed.n_layers, str(tmp_path / "policy"), str(routed.policy.route))
    for arguments, says in (
        ([], "nothing to serve"),
        ([str(tmp_path)], "holds no saved policy"),
        ([str(tmp_path / "policy"), "--max-model-len", "99999"], "context is 512 tokens"),
        ([str(tmp_path / "policy"), "--vllm-args", "'open"], "cannot be split into words"),
    ):
        assert main(["serve", *arguments, "--print"]) == 2
        assert says in capsys.readouterr().err


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(app: Any, path: str = "/v1/completions", method: str = "POST") -> tuple[dict[str, str], list[bytes]]:
    """Headers and body parts of an answer behind the middleware."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(RouteMiddleware(app)({"type": "http", "method": method, "path": path}, None, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return headers, [message["body"] for message in sent[1:]]


def json_app(body: Any, routes: list[str | None]) -> Any:
    """Answers with JSON in two parts, after these routes were taken."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = CALL.get()
        for text in routes if call else []:
            taken = Taken()
            if text:
                taken.set(Route.parse(text), "policy", 0.25)
            call.taken.append(taken)
        data = json.dumps(body).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"),
                                                                           (b"content-length", str(len(data)).encode())]})  # fmt: skip
        await send({"type": "http.response.body", "body": data[:5], "more_body": True})
        await send({"type": "http.response.body", "body": data[5:]})

    return app


def test_routes_in_a_whole_answer():
    headers, parts = ask(json_app({"id": "é"}, ["1021", "1111"]))
    told = json.loads(b"".join(parts))
    assert told["id"] == "é"
    assert told["drllm"][0] == {"route": "1021", "passes": 4, "of": 4, "decided": "policy", "seconds": 0.25}
    assert (headers["x-drllm-route"], headers["x-drllm-passes"]) == ("1021,1111", "4,4")
    assert int(headers["content-length"]) == len(b"".join(parts))


@pytest.mark.parametrize(
    ("routes", "path", "method"),
    [
        ([], "/v1/completions", "POST"),
        (["1021"], "/health", "POST"),
        (["1021"], "/v1/models", "GET"),
        (["1021"], "/v1/models", "POST"),
        ([None], "/v1/completions", "POST"),
    ],
)
def test_answers_without_a_route_stay_as_they_are(routes, path, method):
    headers, parts = ask(json_app({"error": {}}, routes), path, method)
    assert b"".join(parts) == b'{"error": {}}'
    assert "x-drllm-route" not in headers


def test_routes_in_a_stream():
    """They stand in the first event after each became known, and in the headers only if all were known by then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = CALL.get()
        assert call.prompt_format == "raw"
        first, second = Taken(), Taken()
        call.taken += [first, second]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
        first.set(Route.parse("1021"), "request")
        for number in range(3):
            await send({"type": "http.response.body", "body": f': note\n\ndata: {{"n": {number}}}\n\n'.encode(), "more_body": True})
            if number == 0:
                second.set(Route.parse("1111"), "policy")
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    headers, parts = ask(app)
    events = [json.loads(event[6:]) for part in parts for event in part.decode().split("\n\n") if event.startswith("data: {")]
    assert [None if one is None else one["route"] for one in events[0]["drllm"]] == ["1021", None]
    assert [one["route"] for one in events[1]["drllm"]] == ["1021", "1111"]
    assert "drllm" not in events[2]
    assert parts[-1] == b"data: [DONE]\n\n"
    assert "x-drllm-route" not in headers


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/generative_scoring", "/v1/responses", "/v1/messages", "/tokenize", "/scale_elastic_ep", "/docs", "/v1/completions/"],
)
def test_other_paths_are_not_served(path: str):
    """Some of vLLM's take no key, others would answer without a route."""
    headers, parts = ask(json_app({"id": 1}, ["1021"]), path)
    assert json.loads(b"".join(parts))["error"]["code"] == 404
    assert int(headers["content-length"]) == len(b"".join(parts))


def test_many_routes_are_told_in_the_body_alone():
    headers, parts = ask(json_app({"id": 1}, ["1021"] * 1024))
    assert len(json.loads(b"".join(parts))["drllm"]) == 1024
    assert "x-drllm-route" not in headers


def test_a_prompt_that_a_policy_cannot_read_harms_no_other():
    class Failing(_Counting):
        def decide(self, block: int, x_BTD: torch.Tensor, prompt_mask_BT: torch.Tensor) -> torch.Tensor:
            if block == 2:
                raise InputError("states are\nnot finite")
            return super().decide(block, x_BTD, prompt_mask_BT)

    together, plan, _ = run(["1111", "1200"], [4, 3], {0: Failing()})
    assert plan.undecided[0].failure == "states are not finite"
    assert [str(Route(row)) for row in plan.actions_RL.tolist()] == ["1011", "1200"]
    assert torch.allclose(together[4:], run(["1011", "1200"], [4, 3])[0][4:])


def test_samples_of_one_prompt_are_decided_once():
    policy = _Counting()
    common = step_of([3, 3])
    plan = StepPlan(np.ones((2, L), dtype=np.int8), common, lambda part: part, common, [Undecided("t", policy, [0, 1])])
    for block in range(L):
        plan.decide(block, torch.zeros(6, D))
    assert [str(Route(row)) for row in plan.actions_RL.tolist()] == ["1021", "1021"]
    assert len(policy.shown) == L


def engine_config(**changes: Any) -> SimpleNamespace:
    """What of vLLM's configuration a refusal looks at, nothing of it refused; dots in a name go inside."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, tensor_parallel_size=1, data_parallel_size=1),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False, cache_dtype="auto", enable_prefix_caching=False),
        scheduler_config=SimpleNamespace(enable_chunked_prefill=False, async_scheduling=False),
        model_config=SimpleNamespace(hf_config=SimpleNamespace()),
        speculative_config=None, lora_config=None, kv_transfer_config=None, quant_config=None, use_v2_model_runner=False,
    )  # fmt: skip
    for name, value in changes.items():
        *way, last = name.split("__")
        setattr(functools.reduce(getattr, way, config), last, value)
    return config


@pytest.mark.parametrize(
    ("change", "mode", "says"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "book", "pipeline parallelism"),
        ({"parallel_config__tensor_parallel_size": 2}, "book", "tensor parallelism"),
        ({"parallel_config__data_parallel_size": 2}, "static", "data parallelism"),
        ({"speculative_config": 1}, "forced", "speculative decoding"),
        ({"lora_config": 1}, "book", "LoRA"),
        ({"kv_transfer_config": 1}, "book", "a key-value connector"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "book", "fast prefill"),
        ({"cache_config__cache_dtype": "fp8"}, "book", "a quantised key-value cache"),
        ({"quant_config": 1}, "book", "quantised weights"),
        ({"model_config__hf_config__dual_chunk_attention_config": {}}, "book", "dual-chunk attention"),
        ({"use_v2_model_runner": True}, "book", "the V2 model runner"),
        ({"scheduler_config__enable_chunked_prefill": True}, "engine", "without chunked prefill"),
        ({"cache_config__enable_prefix_caching": True}, "engine", "without the prefix cache"),
        ({"scheduler_config__async_scheduling": True}, "engine", "without async scheduling"),
    ],
)
def test_what_routes_are_not_tested_with_is_refused_by_name(change: dict[str, Any], mode: str, says: str):
    refuse(engine_config(), mode)
    with pytest.raises(UnsupportedModelError, match=says):
        refuse(engine_config(**change), mode)
    if mode == "engine":
        refuse(engine_config(**change), "book")


def test_attention_that_rows_cannot_be_taken_out_of():
    refuse_attention("CPU_ATTN", 1, {None})
    for arguments, says in (
        (("CPU_ATTN", 2, {None}), "has 2"),
        (("FLASHINFER", 1, {None}), "FLASHINFER"),
        (("CPU_ATTN", 1, {None, 32}), "sliding"),
    ):
        with pytest.raises(UnsupportedModelError, match=says):
            refuse_attention(*arguments)
