"""Files are whole or absent, whatever happens while they are written; the values of digests, which name files, never change."""

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.core.digest import digest, file_digest, json_digest, number_of, short_digest
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX, read_json, read_json_lines, remove_partials, write_bytes, write_json, write_text
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
    assert len(list(tmp_path.glob(f".*{TEMPORARY_SUFFIX}"))) == 1, "pandas passes files with a dot by"
    assert json.loads(path.read_text()) == [1]
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    """Behind its first byte, as on a full disk."""
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (lambda: write_json(path, {}), lambda: write_text(path, "xy"), lambda: write_bytes(path, b"xy")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            with pytest.raises(OSError, match=r"File too large.*a\.json"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
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


def test_digests_are_plain_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00x")
    assert digest("é") == hashlib.sha256("é".encode()).hexdigest()
    assert short_digest(b"ab") == hashlib.sha256(b"ab").hexdigest()[:16]
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"\x00x").hexdigest()
    assert number_of("0:arc_easy:q1") == int.from_bytes(hashlib.sha256(b"0:arc_easy:q1").digest()[:8], "big")


def test_json_is_named_with_and_without_the_order_of_its_keys():
    value = {"b": [1, None, "é"], "a": 0.5}
    assert json_digest(value) == hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
    assert json_digest(value, sort_keys=True) == hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
    assert json_digest(value) != json_digest(dict(reversed(value.items()))) == json_digest({"a": 0.5, "b": [1, None, "é"]})
    assert json_digest({"p": Path("a")}, default=str) == json_digest({"p": "a"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not readable JSON (Expecting property name"),
        (b"\xff", "is not readable JSON ('utf-8' codec"),
        (b"[]", "holds a list, expected a dict"),
        (None, "is not readable JSON ([Errno 2]"),
    ],
)
def test_json_that_is_not_what_was_expected_is_refused_with_advice(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError) as refused:
        read_json(tmp_path / "a.json", "delete it", dict)
    assert str(refused.value).startswith(f"{tmp_path / 'a.json'} {said}")
    assert str(refused.value).endswith(": delete it")
