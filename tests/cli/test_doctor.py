"""`drllm doctor`: what is here, and what is not with the command that brings it."""

from __future__ import annotations

import sys

import pytest

from drllm.cli import doctor
from drllm.cli.main import main
from drllm.core.names import version_of


def test_it_names_versions_processor_memory_and_parts(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {version_of('torch')}, transformers {version_of('transformers')}" in out
    assert "torch takes" in out
    assert "bfloat16 on the processor: " in out
    assert "GPU" in out
    assert "GGUF models" in out


def test_what_is_missing_stands_beside_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("gguf", "matplotlib") else version_of(name))
    assert main(["doctor"]) == 0
    lines = {line.strip().partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["GGUF models"].endswith("gguf not here: pip install gguf")
    assert lines["pictures and the report"].endswith("matplotlib not here: pip install '.[demo]' in a clone")
    assert lines["PEFT adapters"].endswith("installed")


def test_without_torch_it_still_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "torch" else version_of(name))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch is missing: pip install torch" in out
    assert "GGUF models" in out


@pytest.mark.parametrize(
    ("flags", "said"), [("x amx_bf16 avx512_bf16", "AMX, fast"), ("avx512_bf16", "AVX-512, fast"), ("avx2", "give --dtype float32")]
)
def test_what_bfloat16_costs_is_read_off_the_processor(tmp_path, monkeypatch, flags, said):
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags : {flags}\n")
    monkeypatch.setattr(doctor, "Path", lambda _: info)
    assert said in doctor._bfloat16()
