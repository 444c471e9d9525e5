"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX, read_json_lines, remove_partials, write_bytes, write_json, write_text
from drllm.model.packages import PackagedModel


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    """SIGKILL between the temporary file and the rename, the worst moment."""
    path = tmp_path / "a.json"
    write_json(path, [1])
    code = (
        "import os, signal, sys; from pathlib import Path; from drllm.core.files import *\n"
        "Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_json(Path(sys.argv[1]), [2])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert len(list(tmp_path.glob(f"*{TEMPORARY_SUFFIX}"))) == 1
    assert json.loads(path.read_text()) == [1]
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    for write in (lambda: write_json(path, {}), lambda: write_text(path, "x"), lambda: write_bytes(path, b"x")):
        with pytest.raises(OSError, match="no space"):
            write()
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_json_lines_are_read_with_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028\x85y"}\n\n3\n', encoding="utf-8")
    assert read_json_lines(path, "") == [(1, {"a": "x\u2028\x85y"}), (3, 3)], "what splitlines() takes for the end of a line is none"
    for content, where in ((b"{}\n{", ", line 2"), (b"\xff", "")):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"a\.jsonl is not readable JSON lines{where} \(.*: do it again$"):
            read_json_lines(path, "do it again")
    with pytest.raises(ArtifactError, match="not readable JSON lines"):
        read_json_lines(tmp_path / "none.jsonl", "")


def test_parts_of_a_packaged_model_are_joined_once(tmp_path, monkeypatch):
    """Several data packages hold one file: joined in the cache folder, again where the copy is torn, refused where a part is missing."""
    for name, data in (("part_one_of_it", b"ab"), ("part_two_of_it", b"cd")):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").touch()
        (tmp_path / "packages" / name / "x.part").write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = PackagedModel("x.gguf", (("part_one_of_it", "x.part"), ("part_two_of_it", "x.part")), "pip install it")
    path = model.path("x")
    assert path.read_bytes() == b"abcd"
    assert path.is_relative_to(tmp_path / "cache")
    path.write_bytes(b"abc")
    assert model.path("x").read_bytes() == b"abcd"
    before = path.stat().st_mtime_ns
    assert model.path("x").stat().st_mtime_ns == before
    (tmp_path / "packages" / "part_two_of_it" / "x.part").unlink()
    with pytest.raises(InputError, match=r"needs the data package that holds x\.gguf: run `pip install it`"):
        model.path("x")
    assert PackagedModel("x.part", (("part_one_of_it", "x.part"),), "").path("x").parent.name == "part_one_of_it"
