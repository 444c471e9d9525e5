"""The header of a GGUF file, as the gguf package reads it; and copies."""

from __future__ import annotations

import pytest

from drllm.model.gguf_header import list_entry, number_entry, read_header, same_bytes, sliding_blocks, text_entry, write_copy

gguf = pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")
from gguf_files import write_tiny  # noqa: E402


def test_it_reads_what_the_gguf_package_reads(tmp_path):
    path = write_tiny(tmp_path / "a.gguf", quantised=True, some__list=[1, 2, 3], some__texts=["a", "bc"])
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(header.entries) == list(fields)
    for name, field in fields.items():
        entry, kinds = header.entries[name], [int(kind) for kind in field.types]
        assert [entry.kind, *([] if entry.item_kind is None else [entry.item_kind])] == kinds
        if name == "llama.some.texts":
            assert entry.value is None
        else:
            value = field.contents()
            assert (list(entry.value) if entry.is_list else entry.value) == value
    assert header.architecture == "llama"
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in reader.tensors]
    data = path.read_bytes()
    for tensor, twin in zip(header.tensors, reader.tensors, strict=True):
        assert data[tensor.start : tensor.start + twin.n_bytes] == twin.data.tobytes()
        assert tensor.n_bytes >= twin.n_bytes


def test_a_copy_has_the_entries_and_tensors_that_it_is_given(tmp_path):
    header = read_header(write_tiny(tmp_path / "a.gguf", quantised=True))
    new = {"llama.n": number_entry(4, 7), "llama.flags": list_entry(7, [True, False]), "llama.text": text_entry("ünter")}
    tensors = [(tensor.name, tensor) for tensor in reversed(header.tensors)]
    write_copy(header, tmp_path / "b.gguf", header.entries | new, tensors)
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    assert reader.get_field("llama.n").contents() == 7
    assert reader.get_field("llama.flags").contents() == [True, False]
    assert reader.get_field("llama.text").contents() == "ünter"
    assert [tensor.name for tensor in reader.tensors] == [name for name, _ in tensors]
    written = read_header(tmp_path / "b.gguf")
    assert all(same_bytes(header, tensor, written, twin) for (_, tensor), twin in zip(tensors, written.tensors, strict=True))
    assert not same_bytes(header, tensors[0][1], written, written.tensors[-1])
    write_copy(header, tmp_path / "c.gguf", header.entries, [(tensor.name, tensor) for tensor in header.tensors])
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_sliding_blocks_are_read_where_they_are_listed_or_their_period_is_stated(tmp_path):
    assert sliding_blocks(write_tiny(tmp_path / "a.gguf", "gemma3")) is None
    stated = write_tiny(tmp_path / "b.gguf", "gemma3", attention__sliding_window_pattern=3)
    assert sliding_blocks(stated) == (True, True, False, True)
    assert sliding_blocks(write_tiny(tmp_path / "d.gguf", "gemma2", attention__sliding_window_pattern=3)) is None
    listed = write_tiny(tmp_path / "c.gguf", "gemma3", attention__sliding_window_pattern=[True, False, False, True])
    assert sliding_blocks(listed) == (True, False, False, True)
