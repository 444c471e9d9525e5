"""Exported checkpoints: loaded by stock transformers in a process without drllm, they compute what the routed model computes."""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import families
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.cli.main import main
from drllm.deploy.export import FORMATS, check_export, export
from drllm.runs.layout import EXPORT_FILE
from standings import NOT_EVERY_CHECKPOINT

pytestmark = pytest.mark.long

L = families.N_BLOCKS
ROUTES = [Route.parse(text) for text in ("1211", "0111", "2102", "1111", "1120")]


def ids(n: int = 11, seed: int = 3, vocab: int = 90) -> torch.Tensor:
    return torch.randint(0, vocab, (2, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", families.sampled(*NOT_EVERY_CHECKPOINT))
def test_the_export_computes_what_the_routed_model_computes(family, tmp_path):
    routed = RoutedModel.wrap(families.build(family))
    rng = random.Random(family)
    refused = 0
    for number, route in enumerate(rng.sample(ROUTES, 2)):
        try:
            done = export(routed, route, tmp_path / str(number))
        except UnsupportedModelError:
            assert not (tmp_path / str(number)).exists()
            refused += 1
            continue
        assert done.n_blocks == route.n_passes
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert loaded.config.get_text_config().num_hidden_layers == route.n_passes
        with torch.no_grad():
            wanted, got = routed(ids(), routes=route).logits, loaded(ids()).logits
        assert (got - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())
    assert (refused > 0) == (family in NOT_EVERY_CHECKPOINT)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("drllm") for name in sys.modules)
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("What do plants need?", return_tensors="pt")["input_ids"]
torch.save((model(ids).logits, model.generate(ids, max_new_tokens=8, do_sample=False)), sys.argv[2])
assert not any(name.startswith("drllm") for name in sys.modules)
"""


@pytest.mark.slow
@torch.no_grad()
def test_the_command_line_exports_what_another_process_loads(checkpoint, tmp_path, capsys):
    route = "1202"
    assert main(["export", "--model", str(checkpoint), "--route", route, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "5 blocks" in printed
    assert re.search(r"weights in float32: [\d.]+ [MK]B, of which [\d.]+ MB are second copies", printed)
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "got.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, generated = torch.load(tmp_path / "got.pt")
    routed = RoutedModel.wrap(str(checkpoint))
    ids = routed.tokenizer("What do plants need?", return_tensors="pt")["input_ids"]
    assert (routed(ids, routes=Route.parse(route)).logits - logits).abs().max() < 1e-5
    out = routed.generate(input_ids=ids, policy=Route.parse(route), max_new_tokens=8, do_sample=False)[0]
    assert generated[0, ids.shape[1] :].tolist() == out.token_ids
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "skips 2" in readme
    assert "repeats 1, 3" in readme
    assert routed.fingerprint in readme
    about = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    n_block = sum(p.numel() * 4 for p in routed.blocks[1].parameters())
    assert about["copied_bytes"] == 2 * n_block
    assert about["n_bytes"] == pytest.approx(sum(p.numel() * 4 for p in routed.model.parameters()) + n_block, rel=0.05)


@pytest.mark.slow
def test_an_export_is_timed_against_the_base(checkpoint, tmp_path, capsys):
    command = ["export", "--model", str(checkpoint), "--route", "1000", "--clock", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    found = re.search(r"clock: ([\d.]+) of the base's seconds \(([\d.]+) to ([\d.]+)\) for 32 tokens", capsys.readouterr().out)
    assert found is not None
    middle, low, high = map(float, found.groups())
    assert 0 < low <= middle <= high
    assert main([*command, "--format", "peft"]) == 2
    assert "--clock runs a checkpoint in transformers, and this is peft: leave --clock out" in capsys.readouterr().err


def test_an_export_of_the_base_says_so_and_all_its_files_can_be_read_alike(checkpoint, tmp_path, capsys):
    assert main(["export", "--model", str(checkpoint), "--route", "1111", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "the export is the base model" in printed
    assert "second copies" not in printed
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    (tmp_path / "any").write_text("")
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "any").stat().st_mode}, "as any new file"


def test_a_tokenizer_with_a_folder_of_its_own_is_exported_whole_and_replaced(checkpoint, tmp_path):
    """Several chat templates are saved in a folder."""
    routed = RoutedModel.wrap(str(checkpoint))
    template = routed.tokenizer.chat_template
    routed.tokenizer.chat_template = {"default": template, "tools": template}
    try:
        for _ in range(2):
            export(routed, Route.parse("1011"), tmp_path / "out")
    finally:
        routed.tokenizer.chat_template = template
    inside = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert [path.stat().st_mode & 0o111 for path in inside] == [0o111]
    check_export(tmp_path / "out")


def test_a_static_policy_exports_and_routers_do_not(checkpoint, tmp_path, capsys):
    routed = RoutedModel.wrap(str(checkpoint))
    routed.policy = Route.parse("1011")
    routed.save_pretrained(tmp_path / "static")
    assert main(["export", "--policy", str(tmp_path / "static"), "--out", str(tmp_path / "out")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 3
    from drllm.policies.routers import RouterConfig, Routers

    routed.policy = Routers(RouterConfig(L, routed.hidden_size))
    routed.save_pretrained(tmp_path / "routers")
    assert main(["export", "--policy", str(tmp_path / "routers"), "--out", str(tmp_path / "no")]) == 2
    assert "decides each prompt's route" in capsys.readouterr().err


def test_sliding_windows_follow_the_path(tmp_path):
    """A window in some blocks only: the check runs past it, and so does this."""
    routed = RoutedModel.wrap(families.build("gemma3_text"))
    window = routed.config.sliding_window
    route = Route.parse("0112")
    done = export(routed, route, tmp_path / "out")
    assert done.n_checked == max(16, window + 8)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    kinds = routed.config.layer_types
    assert loaded.config.layer_types == [kinds[block] for block in route.path]
    long = ids(3 * window)
    with torch.no_grad():
        assert (loaded(long).logits - routed(long, routes=route).logits).abs().max() < 1e-4


def test_an_export_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    """The check reads the written files: spoil them on the way."""
    import drllm.deploy.formats.checkpoint

    written = drllm.deploy.formats.checkpoint.write_weights

    def spoiled(routed, route, place):
        return written(routed, [Route.full(L)], place)

    monkeypatch.setattr(drllm.deploy.formats.checkpoint, "write_weights", spoiled)
    with pytest.raises(UnsupportedModelError, match="logits are off by"):
        export(RoutedModel.wrap(families.build("llama")), Route.parse("1011"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_one_line_and_leaves_nothing(checkpoint, tmp_path, capsys):
    """Really: no file may grow beyond 16 KiB. safetensors says so by an error of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    typed = ["export", "--model", str(checkpoint), "--route", "1011", "--out", str(tmp_path / "out")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))
    try:
        assert main(typed) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("drllm: error: ")
    assert line.endswith(f"{tmp_path / 'out'}; give another path, or make room and run the same command, which resumes")
    assert list(tmp_path.iterdir()) == []
    assert main(typed) == 0


def test_what_export_refuses(tmp_path, checkpoint, capsys):
    routed = RoutedModel.wrap(families.build("llama"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="which no export wrote"):
        export(routed, ROUTES[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for format in FORMATS:
        with pytest.raises(InputError, match=r"the route runs \(1-2\)\*0\.5, and .* can hold no strength"):
            export(routed, Route.full(4).loop(1, 2, 0.5), tmp_path / "damped", format)
    with pytest.raises(InputError, match="runs no block"):
        export(routed, Route.parse("0000"), tmp_path / "none")
    with pytest.raises(InputError, match="has 2 blocks"):
        export(routed, Route.parse("11"), tmp_path / "none")
    for arguments, wanted in (
        (["--model", str(checkpoint)], "give --route or --policy"),
        (["--model", str(checkpoint), "--route", "1211", "--policy", "x"], "both --route and --policy"),
        (["--route", "1211"], "--model is missing"),
    ):
        assert main(["export", *arguments, "--out", str(tmp_path / "none")]) == 2
        assert wanted in capsys.readouterr().err
    assert main(["export", "--model", str(checkpoint), "--route", "1211"]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_an_earlier_export_is_replaced_unless_others_put_something_into_it(tmp_path, capsys):
    routed, out = RoutedModel.wrap(families.build("llama")), tmp_path / "out"
    export(routed, Route.parse("1211"), out)
    export(routed, Route.parse("1011"), out)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3
    (out / "model.gguf").write_text("converted")
    with pytest.raises(InputError, match=r"holds 'model.gguf', which no export wrote"):
        export(routed, Route.parse("1211"), out)
    assert (out / "model.gguf").exists()
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["info", str(out)]) == 2
    assert "not the file that was exported" in capsys.readouterr().err


def test_a_base_on_a_device_map_exports(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = families.build("llama")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = accelerate.dispatch_model(model, places | {f"model.layers.{i}": "cpu" for i in range(L)}, main_device="cpu", force_hooks=True)
    routed = RoutedModel.wrap(model)
    for format in ("checkpoint", "peft"):
        assert export(routed, Route.parse("1201"), tmp_path / format, format).difference < 1e-5


def test_quantised_weights_and_adapters_are_refused_by_name(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao (pip install torchao)")
    peft = pytest.importorskip("peft")
    quantised = families.build("llama", hidden_size=64)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    adapted = peft.get_peft_model(families.build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    for model, says in ((quantised, "are quantised"), (adapted, "merge_and_unload")):
        with pytest.raises(UnsupportedModelError, match=says):
            export(RoutedModel.wrap(model), ROUTES[0], tmp_path / "out")


def test_what_configurations_may_hold(tmp_path):
    """Four end tokens on four blocks are no list of one entry a block; greedy decoding with a temperature loads, but does not save."""
    model = families.build("llama")
    model.config.eos_token_id = [2, 5, 6, 7]
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    export(RoutedModel.wrap(model), Route.parse("0211"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [2, 5, 6, 7]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.do_sample is not True


def test_out_of_memory_is_not_blamed_on_the_family(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(InputError, match="out of memory"):
        export(RoutedModel.wrap(families.build("llama")), Route.parse("1211"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
