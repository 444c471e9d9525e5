"""benchmarks/gpu.py, on a tiny model of the CPU: every part but serving, and the file it writes."""

from __future__ import annotations

import json

import pytest

import families
import gpu
import runs
from byte_tokens import byte_tokenizer

pytestmark = [pytest.mark.long, pytest.mark.gpu]


def test_every_part_is_clocked_and_kept(data, tmp_path, monkeypatch):
    runs.model().unwrap().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(gpu, "SERVE_PYTHON", tmp_path / "none")
    sizes = ["--questions", "8", "--simulations", "4", "--steps", "2", "--held-out", "8", "--dtype", "float32"]
    where = ["--device", families.DEVICE, "--data", str(data), "--out", str(tmp_path / "bench.json")]
    assert gpu.main(["--model", str(tmp_path / "model"), *sizes, *where]) == 0
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert bool(found["card"]) == found["device"].startswith("cuda")
    assert found["plain_ms"] > 0
    for part in ("search", "scan"):
        assert found[part]["paths"] > 8
        assert found[part]["pf_a_path"] * found[part]["paths"] * found["plain_ms"] == pytest.approx(1000 * found[part]["seconds"])
    assert found["heal"]["steps"] == 2
    assert "no serving environment" in found["serve"]["not run"]
