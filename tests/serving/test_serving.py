"""Serving without vLLM: what is served, how the server would be started, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shlex
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codebooks import plain_selector
from drllm import Route, RoutedModel
from drllm.cli.job import Job
from drllm.cli.main import main
from drllm.cli.options import CommonConfig
from drllm.cli.serve import is_this_machine
from drllm.core.errors import InputError, UnsupportedModelError
from drllm.deploy.serving import launch as launching
from drllm.deploy.serving.engine.plugin import refuse, refuse_attention
from drllm.deploy.serving.launch import check_address, check_supported, checkpoint_of, environment, launch, make_spec
from drllm.deploy.serving.spec import ServeSpec
from drllm.policies.codebook import Codebook, Point, TextSelector
from drllm.policies.constant import RoutePolicy
from drllm.policies.routers import RouterConfig, Routers
from engines import free_port

L = 4


SPEC = ServeSpec("routes", L, "policy", repeatable=(2,))


def installed(folder: Path, monkeypatch, **versions: str) -> None:
    """Packages of these versions, empty but for their names, and none of the GPU's builds."""
    monkeypatch.syspath_prepend(folder)
    for name, version in versions.items():
        module = folder / name.removesuffix("_cpu")
        module.mkdir(parents=True, exist_ok=True)
        (module / "__init__.py").touch()
        (folder / f"{name}-{version}.dist-info").mkdir()
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch) -> None:
    """A vLLM that can be found, and does nothing."""
    installed(tmp_path / "site", monkeypatch, vllm="0.32.0")


@pytest.fixture
def base(tiny: RoutedModel, tmp_path: Path, capsys) -> Path:
    """A saved base."""
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    capsys.readouterr()  # how saving went
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("11", "route 11 leads through 2 blocks, the model has 4"),
        ("0-2", "ends before the last of 4 blocks: write 0-2/4 if it skips the last ones"),
        ("113", "cannot read"),
        ("1x11", "cannot read"),
        ("2111", "runs block 0 2 times, the server keeps caches for 1: start it with --repeatable 0$"),
        ("0-2,2-2,2-3", "runs block 2 3 times, the server keeps caches for 2: start it with --repeatable 2:3$"),
        ("0-1,(0-1)*0.5,2-3", "runs block 0 2 times"),
        ("0-4", "got block 4 in a path through 4 blocks"),
        ("0-2,3/5", "leads through 5 blocks, the model has 4"),
        ("0-99998,5/99999", "leads through 99999 blocks, the model has 4"),
        ("0-99998", "got block 99998 in a path through 4 blocks"),
        (",".join(["0-3"] * 5), "got 20 passes in a path through 4 blocks: expected at most 4 of one block"),
        ("0-2,(1-2)*2,3", "strength 2"),
        ("0000", "runs no block"),
        (1111, "must be a string"),
        (None, "must be a string"),
        (["1111"], "must be a string"),
        ("1" * 10_000, "must be a string"),
    ],
)
def test_routes_that_a_server_cannot_run(asked: Any, says: str):
    with pytest.raises(InputError, match=says):
        SPEC.check(asked)


def test_routes_that_a_server_runs():
    assert SPEC.check("1021") == Route.parse("1021")
    fixed = ServeSpec("static", L, "policy", "1021")
    assert fixed.check("1021") == Route.parse("1021")
    with pytest.raises(InputError, match="runs one route, 1021"):
        fixed.check("1111")
    looped = ServeSpec("static", L, "policy", "0-2,(1-2)*0.5,3")
    assert str(looped.check("0-2+(1-2)*.5+3")) == looped.route, "however it is written"
    with pytest.raises(InputError, match="runs one route, 0-2"):
        looped.check("0-2,1-3")
    assert looped.n_caches == (1, 2, 2, 1)
    assert ServeSpec("static", L, "policy", "0-2/4").n_caches == (1, 1, 1, 0)
    wide = ServeSpec("routes", L, repeatable=(1, 2, 2))
    assert wide.n_caches == (1, 2, 3, 1)
    assert str(wide.check("0-2,2,1-3")) == "0-2,2,1-3"
    assert str(wide.check("0-2,1-2/4")) == "0-2,1-2/4"


@pytest.mark.parametrize("spec", [SPEC, ServeSpec("static", L, "p", "0121", prompt_format="raw"), ServeSpec("routes", L)])
def test_a_spec_survives_its_way_to_the_engine(spec: ServeSpec):
    assert ServeSpec.from_config(json.loads(json.dumps(spec.to_config()))) == spec
    assert ServeSpec.from_config({}) is None
    with pytest.raises(InputError, match="none of"):
        ServeSpec("fast", L)
    with pytest.raises(InputError, match="not all among"):
        ServeSpec("routes", L, repeatable=(L,))
    with pytest.raises(InputError, match="one route"):
        ServeSpec("static", L)


def test_how_each_policy_is_served(tiny: RoutedModel):
    n = tiny.n_layers
    assert make_spec(None, "", tiny) == ServeSpec("routes", n)
    assert make_spec(None, "", tiny, repeatable="all").repeatable == tuple(range(n))
    one = RoutePolicy(Route.full(n))
    one.prompt_format = "raw"  # which says nothing of a route that no prompt changes
    assert make_spec(one, "p", tiny) == ServeSpec("static", n, "p", "1" * n)
    with pytest.raises(InputError, match="one route for all prompts and requests: leave it out"):
        make_spec(one, "p", tiny, repeatable="all")
    size = 2 * tiny.hidden_size
    routes = [Route.full(n), Route.full(n).edit(n - 1, 2)]
    codebook = Codebook(routes, TextSelector([(1,)], torch.zeros(1, 1), torch.zeros(1), 1.0), [Point(0.0)])
    codebook.prompt_format = "raw"
    known = tuple(map(str, routes))
    assert make_spec(codebook, "p", tiny) == ServeSpec("routes", n, "p", repeatable=(n - 1,), routes=known, prompt_format="raw")
    of_states = Codebook(routes, plain_selector(1, size, [0.0]), [Point(0.0)])
    wanted = ServeSpec("engine", n, "p", repeatable=(0, n - 1), routes=known)
    assert make_spec(of_states, "p", tiny, repeatable="0", any_format=True) == wanted
    loops = [Route.full(n), Route.full(n).loop(1, 2, times=3), Route.full(n).loop(1, n - 1, strength=0.5)]
    looped = Codebook(loops, plain_selector(1, size, [0.0, 0.0]), [Point(0.0)])
    assert make_spec(looped, "p", tiny).repeatable == (1, 1, 2, 2, *range(3, n))
    assert make_spec(looped, "p", tiny, repeatable="0,1:4").repeatable == (0, 1, 1, 1, 2, 2, *range(3, n))
    assert make_spec(RoutePolicy(loops[2]), "p", tiny).route == str(loops[2])
    assert make_spec(None, "", tiny, repeatable="2,all:3,2").repeatable == tuple(sorted([*range(n)] * 2))
    for flag, says in {
        "1:5": "asks for 5 passes of a block, expected 2 to 4",
        "1:1": "asks for 1 passes",
        "1:x": "expected all, auto",
    }.items():
        with pytest.raises(InputError, match=says):
            make_spec(None, "", tiny, repeatable=flag)
    routers = Routers(RouterConfig(n, tiny.hidden_size))
    assert make_spec(routers, "p", tiny) == ServeSpec("engine", n, "p", repeatable=tuple(range(n)))
    with pytest.raises(InputError, match="expected all, auto, or"):
        make_spec(None, "", tiny, repeatable="some")
    with pytest.raises(InputError, match="not all among"):
        make_spec(None, "", tiny, repeatable="99")


FLAGS = {"--model": "base", "--served-model-name": "m", "--dtype": "bfloat16", "--host": "::1", "--port": 1, "--max-model-len": 4096}


def launched(spec: ServeSpec, device: str = "cpu", **more: Any) -> tuple[list[str], dict[str, str]]:
    return launch(spec, "DrllmLlamaForCausalLM", device, FLAGS, **more)


def test_the_command_line_of_a_server():
    codebook = launched(SPEC, extra=["--seed", "3"])[0]
    assert json.loads(codebook[codebook.index("--additional-config") + 1]) == SPEC.to_config()
    assert json.loads(codebook[codebook.index("--hf-overrides") + 1]) == {"architectures": ["DrllmLlamaForCausalLM"]}
    assert codebook.index("--seed") < codebook.index("--model"), "of a flag that comes twice vLLM takes the last: ours"
    secret, env = launched(SPEC, api_key="the-key")
    assert "the-key" not in " ".join(secret), "every user of the machine can read a command line"
    assert env["VLLM_API_KEY"] == "the-key"
    assert "--enforce-eager" not in codebook
    assert "--no-enable-chunked-prefill" not in codebook
    inside = launched(ServeSpec("engine", L, "policy"))[0]
    assert {"--no-enable-chunked-prefill", "--no-enable-prefix-caching", "--no-async-scheduling"} <= set(inside)
    assert inside[inside.index("--max-num-batched-tokens") + 1] == "4096"
    gpu = launched(SPEC, "cuda")[0]
    assert "drllm.deploy.serving.engine.worker.RoutedGPUWorker" in gpu
    assert "--enforce-eager" in gpu


def test_variables_that_are_set_already_are_left_alone(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    added = environment("cpu")
    assert "VLLM_CPU_KVCACHE_SPACE" not in added
    assert added["VLLM_PLUGINS"] == "drllm"
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert environment("cpu")["VLLM_PLUGINS"] == "other,drllm"
    assert not any(name.startswith("VLLM_CPU") for name in environment("cuda"))


def test_addresses_that_cannot_be_listened_on_are_found_before_a_model_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("é..x", 8000), ("a\0b", 8000), ("x" * 70, 8000)):
            with pytest.raises(InputError, match=r"cannot listen on .*: give another --host or --port"):
                check_address(host, port)


@pytest.mark.parametrize(
    ("words", "mode", "flag"),
    [
        ("--worker-cls auto", "routes", "--worker-cls"),
        ("--seed 1 --worker_cls=auto", "static", "--worker-cls"),
        ("--hf-overrides.architectures x", "routes", "--hf-overrides"),
        ("--additional_config.drllm+ x", "routes", "--additional-config"),
        ("--port=1", "routes", "--port"),
        ("--api-key secret", "routes", "--api-key"),
        ("--config f.yaml", "routes", "--config"),
        ("-asc 2", "routes", "-asc"),
        ("--enable_prefix_caching", "engine", "--enable-prefix-caching"),
        ("--no-async-scheduling", "engine", "--async-scheduling"),
    ],
)
def test_flags_that_would_undo_the_routing(words: str, mode: str, flag: str):
    """However vLLM's parser lets them be written."""
    spec = ServeSpec("static", L, "policy", "1021") if mode == "static" else ServeSpec(mode, L, "policy")
    with pytest.raises(InputError, match=rf"--vllm-args has {flag}, which drllm serve (sets itself|was not tested with): leave it out"):
        launched(spec, extra=words.split())
    others = ["--seed", "1", "--model-loader-extra-config", "{}", "--enable-prefix-caching", "-O3", "--config-format", "auto", "--", "-"]
    launched(SPEC, extra=others)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "", "10.0.0.7", "gpu-3"])
def test_who_reaches_an_address(host: str):
    assert is_this_machine(host) == (host in ("127.0.0.1", "localhost", "::1"))


def test_families_that_can_be_served(tiny: RoutedModel):
    import families

    assert check_supported(tiny) == "DrllmLlamaForCausalLM"
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel cannot be served with routes; these can: LlamaForCausalLM"):
        check_supported(RoutedModel.wrap(families.build("gpt2")))
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        check_supported(RoutedModel.wrap(families.build("mistral", sliding_window=8)))
    with pytest.raises(InputError, match="in memory only"):
        checkpoint_of(tiny, Path("nowhere"))


def test_servers_that_start_together_write_one_checkpoint(tiny: RoutedModel, tmp_path):
    """A GGUF's: the later server must not take away the folder that the earlier one has begun to load."""
    pytest.importorskip("gguf")
    from gguf_files import write_tiny

    routed = RoutedModel.wrap(str(write_tiny(tmp_path / "tiny.gguf")), tiny.tokenizer, dtype="float32")
    found: list[tuple[str, int]] = []
    together = threading.Barrier(2)

    def start() -> None:
        together.wait()
        folder = checkpoint_of(routed, tmp_path / "cache")
        found.append((folder, Path(folder).stat().st_ino))

    servers = [threading.Thread(target=start) for _ in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    start_again = checkpoint_of(routed, tmp_path / "cache")
    assert found == [(start_again, Path(start_again).stat().st_ino)] * 2


def test_what_to_install(monkeypatch, capsys, tmp_path):
    for name in ("vllm", *launching.GPU_BUILDS):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve", "--base", "smollm2-135m"]) == 2
    said = capsys.readouterr().err
    assert "from a clone of drllm: `pip install '.[serve]'`" in said, "no index has drllm"
    assert "make serve-env" in said
    assert said.count("\n") == 1
    monkeypatch.delitem(sys.modules, "vllm")
    with monkeypatch.context() as older:
        installed(tmp_path / "older", older, vllm="0.31.0")
        with pytest.raises(InputError, match=r"vllm 0.31.0 is installed, drllm's plugin is for 0.32"):
            launching.check_installed()
    installed(tmp_path / "cpu", monkeypatch, vllm_cpu="0.32.0")
    assert launching.check_installed() == "0.32.0"
    for name in launching.GPU_BUILDS:
        monkeypatch.delitem(sys.modules, name)
    installed(tmp_path / "gpu", monkeypatch, torchaudio="2.0", torchcodec="1.0", triton="3.0")
    with pytest.raises(InputError, match="pip uninstall -y torchaudio torchcodec triton"):
        launching.check_installed()


def test_serve_prints_its_command(vllm, capsys, base: Path, tmp_path):
    """A saved policy on a saved base: what would be started, and what is refused before it is."""
    routed = RoutedModel.wrap(str(base))
    routed.policy = Route.full(routed.n_layers).edit(1, 0)
    routed.save_pretrained(tmp_path / "policy")
    port = str(free_port())
    assert main(["serve", str(tmp_path / "policy"), "--print", "--port", port, "--vllm-args", "--max-num-seqs 4"]) == 0
    first, command = capsys.readouterr().out.strip().split("\n")
    assert first == f"serving base: one route, 10{'1' * (routed.n_layers - 2)}"
    words = shlex.split(command)
    assert words[words.index("--max-num-seqs") + 1] == "4"
    assert words[words.index("--model") + 1] == str(base)
    spec = ServeSpec.from_config(json.loads(words[words.index("--additional-config") + 1]))
    assert spec == ServeSpec("static", routed.n_layers, str(tmp_path / "policy"), str(routed.policy.route))
    for arguments, says in (
        ([], "nothing to serve"),
        ([str(tmp_path)], "holds no saved policy"),
        ([str(tmp_path / "policy"), "--max-model-len", "99999"], "context is 512 tokens"),
        ([str(tmp_path / "policy"), "--vllm-args", "'open"], "cannot be split into words"),
        ([str(tmp_path / "policy"), "--vllm-args", "--worker-cls auto"], "--vllm-args has --worker-cls"),
        ([str(tmp_path / "policy"), "--port", "99999"], "--port is 99999, expected 1 to 65535"),
        (["--base", str(base), "--any-format"], "--any-format is about what a policy was trained on, and none is served"),
    ):
        assert main(["serve", *arguments, "--print"]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_command_that_cannot_run_here_says_what_to_install(monkeypatch, capsys, base: Path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main(["serve", "--base", str(base), "--print"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("drllm: warning: this command cannot run as it is: vLLM is not installed here; install it in an environment")
    assert (said.err.count("\n"), said.out.count("\n")) == (1, 2), "and is printed all the same"


@pytest.mark.filterwarnings("always::UserWarning")
def test_an_open_server_says_who_can_use_it(monkeypatch, vllm, capsys, base: Path):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def said(*flags: str) -> str:
        assert main(["serve", "--base", str(base), "--print", *flags]) == 0
        return capsys.readouterr().err

    warned = said("--host", "0.0.0.0")
    assert warned.startswith("drllm: warning: whoever reaches 0.0.0.0 can use this server without a key")
    assert warned.count("\n") == 1
    assert said() == said("--host", "0.0.0.0", "--api-key", "k") == ""
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert said("--host", "0.0.0.0") == ""


def engine_config(**changes: dict[str, Any]) -> SimpleNamespace:
    """What of vLLM's configuration a refusal looks at, nothing of it refused but for the changes."""
    config: dict[str, dict[str, Any]] = {
        "parallel_config": dict.fromkeys(("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"), 1),
        "cache_config": {"kv_sharing_fast_prefill": False, "cache_dtype": "auto", "enable_prefix_caching": False},
        "scheduler_config": {"enable_chunked_prefill": False, "async_scheduling": False, "long_prefill_token_threshold": 0},
        "model_config": {"hf_config": SimpleNamespace()},
    }
    plain = dict.fromkeys(("speculative_config", "lora_config", "kv_transfer_config", "quant_config"))
    inside = {name: SimpleNamespace(**(values | changes.pop(name, {}))) for name, values in config.items()}
    return SimpleNamespace(**(plain | {"use_v2_model_runner": False} | changes | inside))


@pytest.mark.parametrize(
    ("change", "mode", "says"),
    [
        ({"parallel_config": {"pipeline_parallel_size": 2}}, "routes", "pipeline parallelism"),
        ({"parallel_config": {"tensor_parallel_size": 2}}, "routes", "tensor parallelism"),
        ({"parallel_config": {"data_parallel_size": 2}}, "static", "data parallelism"),
        ({"speculative_config": 1}, "routes", "speculative decoding"),
        ({"lora_config": 1}, "routes", "LoRA"),
        ({"kv_transfer_config": 1}, "routes", "a key-value connector"),
        ({"cache_config": {"kv_sharing_fast_prefill": True}}, "routes", "fast prefill"),
        ({"cache_config": {"cache_dtype": "fp8"}}, "routes", "a quantised key-value cache"),
        ({"quant_config": 1}, "routes", "quantised weights"),
        ({"model_config": {"hf_config": SimpleNamespace(dual_chunk_attention_config={})}}, "routes", "dual-chunk attention"),
        ({"use_v2_model_runner": True}, "routes", "the V2 model runner"),
        ({"scheduler_config": {"enable_chunked_prefill": True}}, "engine", "without chunked prefill"),
        ({"cache_config": {"enable_prefix_caching": True}}, "engine", "without the prefix cache"),
        ({"scheduler_config": {"async_scheduling": True}}, "engine", "without async scheduling"),
        ({"scheduler_config": {"long_prefill_token_threshold": 64}}, "engine", "without a threshold of long prompts"),
    ],
)
def test_what_routes_are_not_tested_with_is_refused_by_name(change: dict[str, Any], mode: str, says: str):
    refuse(engine_config(), mode)
    with pytest.raises(UnsupportedModelError, match=says):
        refuse(engine_config(**change), mode)
    if mode == "engine":
        refuse(engine_config(**change), "routes")


def test_attention_that_rows_cannot_be_taken_out_of():
    refuse_attention("CPU_ATTN", 1, {None})
    for arguments, says in (
        (("CPU_ATTN", 2, {None}), "has 2"),
        (("FLASHINFER", 1, {None}), "FLASHINFER"),
        (("CPU_ATTN", 1, {None, 32}), "sliding"),
    ):
        with pytest.raises(UnsupportedModelError, match=says):
            refuse_attention(*arguments)


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_nothing_of_an_artefact_is_unpickled(base, tmp_path, capsys):
    """Pickles in place of weights and configuration, their checksums right: refused in one line, and never run."""
    routed = RoutedModel.wrap(str(base))
    routed.policy = Routers(RouterConfig(routed.n_layers, routed.hidden_size))
    folder = routed.save_pretrained(tmp_path / "routers")
    mark = tmp_path / "mark"
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)
    assert mark.exists(), "it would"
    mark.unlink()
    replaced: dict[str, str] = {}  # digests, old and new
    for name in ("routers.safetensors", "router_config.json", "drllm_config.json"):
        old = new = (folder / name).read_bytes()
        for was, now in replaced.items():
            new = new.replace(was.encode(), now.encode())
        new = new if name.endswith("json") else data
        assert new != old
        (folder / name).write_bytes(new)
        replaced[hashlib.sha256(old).hexdigest()] = hashlib.sha256(new).hexdigest()
    assert main(["serve", str(folder), "--print"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds no readable routers" in error
    assert error.startswith("drllm: error:")
    assert not mark.exists()


def test_a_pickled_base_is_read_as_tensors_alone(vllm, tiny, base, tmp_path):
    """A base may be a `.bin` file, which is a pickle: transformers and vLLM have torch load nothing but tensors from it."""
    torch.save(tiny.model.state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert main(["serve", "--base", str(base), "--print"]) == 0
    mark = tmp_path / "mark"
    torch.save({"model.norm.weight": Bomb(mark)}, base / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load model"):
        RoutedModel.wrap(str(base))
    assert not mark.exists()


def test_commands_and_engines_run_on_the_gpu_that_torch_sees(monkeypatch):
    for seen, asked, device in ((True, "", "cuda"), (True, "cpu", "cpu"), (False, "", None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        job: Any = SimpleNamespace(common=CommonConfig(device=asked))
        assert Job.placement(job)["device"] == device
    assert "drllm.deploy.serving.engine.worker.RoutedGPUWorker" in launched(SPEC, "cuda")[0]
