"""Models that come in parts as data packages: joined, checked, and unpacked once where they are large."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from drllm import InputError, Route, RoutedModel
from drllm.model import packages
from drllm.model.packages import PackagedModel

gguf_files = pytest.importorskip("gguf_files", reason="needs gguf (pip install gguf)")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "drllm"


@pytest.fixture
def parts(tmp_path, monkeypatch) -> PackagedModel:
    """A tiny GGUF file in two installed packages."""
    whole = gguf_files.write_tiny(tmp_path / "tiny.gguf", quantised=True, with_tokens=True).read_bytes()
    for number, data in enumerate((whole[:1000], whole[1000:]), 1):
        folder = tmp_path / "site" / f"tiny_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("")
        (folder / f"part{number:02d}.bin").write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "site")
    names = tuple((f"tiny_part{number}", f"data/part{number:02d}.bin") for number in (1, 2))
    packaged = PackagedModel("tiny.gguf", names, "pip install tiny", hashlib.sha256(whole).hexdigest())
    monkeypatch.setitem(packages.PACKAGED, "tiny", packaged)
    return packaged


def test_parts_are_joined_once_and_their_digest_is_checked(parts, cache, tmp_path):
    whole = parts.path("tiny")
    assert whole.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert whole.parent == cache
    before = whole.stat().st_mtime_ns
    assert parts.path("tiny").stat().st_mtime_ns == before
    whole.unlink()
    other = PackagedModel(parts.file, parts.parts, parts.install, "0" * 64)
    with pytest.raises(InputError, match=r"the parts of tiny\.gguf have sha256 \w{16}\.\.\., expected 0{16}.*--force-reinstall"):
        other.path("tiny")
    assert not whole.exists()


def test_it_is_unpacked_once_a_type_and_is_the_file(parts, cache):
    first = RoutedModel.wrap("tiny")
    assert (first.base_id, first.model.dtype) == ("tiny", torch.bfloat16)
    (folder,) = (path for path in (cache / "unpacked").iterdir() if path.is_dir())
    assert sorted(path.suffix for path in folder.iterdir() if path.suffix == ".safetensors") == [".safetensors"]
    plain = RoutedModel.wrap(str(parts.path("tiny")))
    assert plain.fingerprint == first.fingerprint
    ids, route = torch.arange(40, 60)[None], Route.parse("0-2,1-3")
    wanted = plain(ids, routes=route).logits
    in_full = [RoutedModel.wrap(name, dtype=torch.float32)(ids, routes=route).logits for name in ("tiny", str(parts.path("tiny")))]
    assert torch.equal(*in_full), "in float32 it is the file, not what was rounded"
    assert (in_full[0] - wanted.float()).abs().max() > 1e-3
    made = {path: path.stat().st_mtime_ns for path in sorted((cache / "unpacked").rglob("*"))}
    again = RoutedModel.wrap("tiny")
    assert again.tokenizer("the sea")["input_ids"] == plain.tokenizer("the sea")["input_ids"]
    assert again.fingerprint == first.fingerprint
    assert torch.equal(RoutedModel.wrap("tiny", dtype=torch.float32)(ids, routes=route).logits, in_full[1])
    assert not getattr(again.model.config, "quantization_config", None)
    assert torch.equal(again(ids, routes=route).logits, wanted)
    assert {path: path.stat().st_mtime_ns for path in sorted((cache / "unpacked").rglob("*"))} == made


def test_what_a_killed_unpacking_left_is_cleared_and_another_file_is_unpacked_anew(parts, cache):
    RoutedModel.wrap("tiny")
    (folder,) = (path for path in (cache / "unpacked").iterdir() if path.is_dir())
    shutil.rmtree(folder)
    left = folder.parent / f".{folder.name}-killed" / "whole"
    left.mkdir(parents=True)
    RoutedModel.wrap("tiny")
    assert [path for path in (cache / "unpacked").iterdir() if path.is_dir()] == [folder]
    os.utime(parts.path("tiny"), (1, 1))
    RoutedModel.wrap("tiny")
    assert len([path for path in (cache / "unpacked").iterdir() if path.is_dir()]) == 2


def test_a_cache_folder_that_cannot_be_written_to_costs_time_alone(parts, cache, caplog):
    caplog.set_level(logging.INFO, "drllm")
    wanted = RoutedModel.wrap("tiny").fingerprint
    shutil.rmtree(cache / "unpacked")
    (cache / "unpacked").write_text("in the way")
    assert RoutedModel.wrap("tiny").fingerprint == wanted
    assert "cannot keep tiny unpacked in" in caplog.text
