"""GGUF to GGUF: the gguf package and transformers read what the path says, and every tensor is the base's, byte for byte.

llama.cpp itself runs such files in `tests/real/test_real_llama_cpp.py`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from byte_tokens import byte_tokenizer
from drllm import InputError, Route, RoutedModel, UnsupportedModelError
from drllm.cli.main import main
from drllm.deploy.export import check_export, export
from drllm.deploy.formats.gguf_file import LARGEST, PERIODS, changed_entries
from drllm.model.load import load_base, stated_pattern

gguf = pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")
from gguf_files import write_tiny  # noqa: E402

pytestmark = pytest.mark.long

ROUTES = [Route.parse(text, 4) for text in ("1011", "1202", "0-2,1-3", "2,0,3,1", "0-3,1-3,2-3")]
# Where every second block is full attention, these come at even steps: every third, second, third, none, all.
WINDOWED = [Route.parse(text, 4) for text in ("1011", "0-3,2-3", "0,2-3,0,2-3", "1010", "0101")]


def wrapped(path: Path) -> RoutedModel:
    return RoutedModel.wrap(str(path), byte_tokenizer(), dtype=torch.float32)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@torch.no_grad()
def test_blocks_follow_the_path_and_their_bytes_stay(arch, tmp_path):
    windows = {"attention__sliding_window_pattern": 2} if arch == "gemma3" else {}
    base = write_tiny(tmp_path / "base.gguf", arch, quantised=True, **windows)
    routed, before = wrapped(base), {tensor.name: tensor for tensor in gguf.GGUFReader(base).tensors}
    for number, route in enumerate(WINDOWED if arch == "gemma3" else ROUTES):
        done = export(routed, route, tmp_path / f"out{number}", "gguf")
        assert done.difference <= 1e-5 * 10
        file = tmp_path / f"out{number}" / f"out{number}.gguf"
        reader = gguf.GGUFReader(file)
        assert reader.get_field(f"{arch}.block_count").contents() == route.n_passes
        assert reader.get_field("drllm.route").contents() == str(route)
        found = {tensor.name: tensor for tensor in reader.tensors}
        expected = {name for name in before if not name.startswith("blk.")}
        for place, block in enumerate(route.path):
            expected |= {name.replace(f"blk.{block}.", f"blk.{place}.") for name in before if name.startswith(f"blk.{block}.")}
        assert set(found) == expected
        for name, tensor in found.items():
            parts = name.split(".")
            twin = before[".".join(["blk", str(route.path[int(parts[1])]), *parts[2:]]) if parts[0] == "blk" else name]
            assert (tensor.tensor_type, tuple(tensor.shape)) == (twin.tensor_type, tuple(twin.shape))
            assert np.array_equal(tensor.data, twin.data)
        sizes = [-(-tensor.n_bytes // 32) * 32 for tensor in reader.tensors]
        offsets = [tensor.data_offset - reader.data_offset for tensor in reader.tensors]
        assert offsets == [0, *itertools.accumulate(sizes[:-1])], "llama.cpp wants running sums"
        again = sum(
            t.n_bytes
            for name, t in found.items()
            if (p := name.split("."))[0] == "blk" and route.path[int(p[1])] in route.path[: int(p[1])]
        )
        assert done.copied_bytes == again
        loaded, _ = load_base(str(file), torch.float32, tokenizer=byte_tokenizer())
        ids = torch.arange(40, 70)[None]
        assert (loaded(ids).logits - routed(ids, routes=route).logits).abs().max() <= 1e-4
        if arch == "gemma3":
            kinds = ["sliding_attention", "full_attention"] * 2
            assert routed.config.layer_types == kinds
            assert loaded.config.layer_types == [kinds[block] for block in route.path]
    assert not list(tmp_path.glob(".*"))


def test_a_modelfile_and_a_card_lie_beside_the_file(tmp_path, capsys):
    base = write_tiny(tmp_path / "base.gguf")
    out = tmp_path / "looped"
    routed = wrapped(base)
    export(routed, ROUTES[2], out, "gguf")
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "drllm_export.json", "looped.gguf"]
    assert "FROM ./looped.gguf" in (out / "Modelfile").read_text()
    card = (out / "README.md").read_text()
    assert "tags: [drllm, adaptive-depth, rys]" in card
    assert "runs 1-2 again after 2" in card
    check_export(out)
    assert main(["info", str(out)]) == 0
    assert "6 blocks instead of 4" in capsys.readouterr().out
    export(routed, ROUTES[0], out, "gguf")
    assert gguf.GGUFReader(out / "looped.gguf").get_field("llama.block_count").contents() == 3


def test_arrays_by_layer_follow_the_path(tmp_path):
    """Of what llama.cpp knows by layer; an array that is as long by accident stays."""
    counts, sizes, sections = [4, 2, 4, 1], [64, 32, 64, 16], [1, 2, 3, 4]
    lists = {"attention__head_count_kv_x": counts, "feed_forward_x": sizes, "rope__dimension_sections": sections, "longer": [1, 2, 3, 4, 5]}
    reader = gguf.GGUFReader(write_tiny(tmp_path / "base.gguf", **lists))
    for route in ROUTES:
        changed = changed_entries(reader, route)
        assert changed["llama.attention.head_count_kv_x"].value == [counts[block] for block in route.path]
        assert changed["llama.feed_forward_x"].value == [sizes[block] for block in route.path]
        assert changed["llama.block_count"].value == route.n_passes
        assert set(changed) == {"llama.attention.head_count_kv_x", "llama.feed_forward_x", "llama.block_count"}


def test_a_period_of_windows_is_stated_where_the_path_changes_it(tmp_path):
    """llama.cpp reads a period of Gemma 3, and passes over a list: with one it would run another model without a word."""
    key, n_blocks = "gemma3.attention.sliding_window_pattern", 12
    reader = gguf.GGUFReader(write_tiny(tmp_path / "base.gguf", "gemma3", n_blocks=n_blocks))
    kept = Route.full(n_blocks).loop(0, 5)
    assert key not in changed_entries(reader, kept), "six blocks more: every sixth is full attention still"
    assert key not in changed_entries(reader, Route.parse("1" * 11 + "0"))
    assert changed_entries(reader, Route.parse("0-1,5-7,11"))[key].value == 3
    with pytest.raises(UnsupportedModelError, match=r"\(n = 6\), and on this path they come otherwise: loop or skip 6 blocks"):
        changed_entries(reader, Route.full(n_blocks).loop(4, 6))
    listed = gguf.GGUFReader(write_tiny(tmp_path / "listed.gguf", "gemma3", attention__sliding_window_pattern=[True, False, True, True]))
    assert changed_entries(listed, Route.parse("0,2,3/4"))[key].value == 6, "three sliding ones"
    with pytest.raises(UnsupportedModelError, match="on this path they come otherwise: serve it with drllm"):
        changed_entries(listed, ROUTES[2])
    third = gguf.GGUFReader(write_tiny(tmp_path / "third.gguf", "gemma2", attention__sliding_window_pattern=3))
    with pytest.raises(UnsupportedModelError, match="n = 3"):
        changed_entries(third, Route.full(4))
    every_second = gguf.GGUFReader(write_tiny(tmp_path / "second.gguf", "gemma3", attention__sliding_window_pattern=2))
    assert changed_entries(every_second, ROUTES[0])[key].value == 3
    gemma2 = gguf.GGUFReader(write_tiny(tmp_path / "gemma2.gguf", "gemma2"))
    assert "gemma2.attention.sliding_window_pattern" not in changed_entries(gemma2, Route.full(4).loop(2, 3))
    with pytest.raises(UnsupportedModelError, match="n = 2"):
        changed_entries(gemma2, Route.parse("0,2,3/4"))


def test_what_is_refused(tmp_path):
    base = write_tiny(tmp_path / "base.gguf")
    routed = wrapped(base)
    with pytest.raises(InputError, match=r"runs \(1-2\)\*0.5, and a GGUF file can hold no strength"):
        export(routed, Route.parse("0-2,(1-2)*0.5,3"), tmp_path / "out", "gguf")
    routed.base_id = "someone/model"
    with pytest.raises(InputError, match=r"no \.gguf file: export a checkpoint, then convert it"):
        export(routed, ROUTES[0], tmp_path / "out", "gguf")
    for arch, count in LARGEST.items():
        reader = gguf.GGUFReader(write_tiny(tmp_path / f"{arch}.gguf", arch, n_blocks=count))
        with pytest.raises(UnsupportedModelError, match=f"scales the attention of a {arch} of {count} blocks otherwise"):
            changed_entries(reader, Route.full(count).loop(0, 1))
        changed_entries(reader, Route.full(count).edit(0, *[0] * 6).loop(6, 11))  # as many blocks as before
    reader = gguf.GGUFReader(write_tiny(tmp_path / "other.gguf", "mamba"))
    with pytest.raises(UnsupportedModelError, match=r"its code in llama\.cpp was not read"):
        changed_entries(reader, ROUTES[0])
    assert set(PERIODS) == set(LARGEST)
    assert not (tmp_path / "out").exists()


def test_sliding_blocks_are_read_where_they_are_listed_or_their_period_is_stated(tmp_path):
    assert stated_pattern(write_tiny(tmp_path / "a.gguf", "gemma3")) is None
    for name, stated in (("b", 3), ("c", [True, False, False, True]), ("d", [1, 0, 0, 1])):
        path = write_tiny(tmp_path / f"{name}.gguf", "gemma3", attention__sliding_window_pattern=stated)
        assert stated_pattern(path) == (3 if stated == 3 else (True, False, False, True))
        kinds = load_base(str(path), tokenizer=byte_tokenizer())[0].config.layer_types
        assert [kind == "sliding_attention" for kind in kinds] == ([True, True, False, True] if stated == 3 else list(map(bool, stated)))
