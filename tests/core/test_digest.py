"""The values of digests: they name files and finished work on users' disks, so none may ever change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from drllm.core.digest import digest, file_digest, json_digest, number_of, short_digest
from drllm.core.errors import ArtifactError
from drllm.core.files import read_json


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
