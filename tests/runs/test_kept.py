"""Which visited questions become labels: as many as asked for, and enough of them mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm.core.config import SearchConfig
from drllm.core.route import Route
from drllm.runs.labels import kept_in, kept_of
from drllm.runs.records import RouteRecord, write_shard
from record_factory import record, write_verdicts

BASE, OTHER = Route([1, 1]), Route([1, 0])


def visited(kinds: str) -> list[RouteRecord]:
    """Records in order: "r" right already, "m" mended, "w" wrong on every path."""
    chosen = {"r": BASE, "m": OTHER, "w": None}
    return [
        record(name=f"{place}{kind}", base=float(kind == "r"), others=(float(kind == "m"),), routes=(BASE, OTHER), chosen=chosen[kind])
        for place, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "kept", "n_visited", "is_enough"),
    [
        ("rrrr", ["0r", "1r", "2r"], 4, False),  # enough kept, none mends
        ("rrmr", ["0r", "1r", "2m"], 3, True),
        ("wwmrrr", ["2m", "3r", "4r"], 5, True),
        ("rrrwm", ["4m", "1r", "2r"], 5, True),  # it takes the place of the first that does not mend
        ("rrrrrr", ["0r", "1r", "2r"], 6, False),
        ("mm", ["0m", "1m"], 2, False),
        ("", [], 0, False),
    ],
)
def test_kept_by_hand(kinds, kept, n_visited, is_enough):
    found = kept_of(visited(kinds), 3, 0.3)
    assert [one.id for one in found.records] == kept
    assert (len(found.visited), found.is_enough) == (n_visited, is_enough)
    assert found.mended == sum(name.endswith("m") for name in kept)


def authors(kinds: str, n: int, share: float) -> tuple[list[int], int]:
    """The rule as `worker_evaluate` of the authors' code writes it down: places of the kept questions, and how many were visited."""
    kept: list[int] = []
    improved: list[bool] = []
    for place, kind in enumerate(kinds):
        is_improved = kind == "m"
        if kind == "w" or (not is_improved and len(improved) >= n):
            continue
        if len(improved) < n:
            kept.append(place)
            improved.append(is_improved)
        else:
            first = next((at for at, one in enumerate(improved) if not one), None)
            if first is None:
                return kept, place + 1
            kept[first], improved[first] = place, is_improved
        if len(improved) >= n and sum(improved) / len(improved) >= share:
            return kept, place + 1
    return kept, len(kinds)


@given(kinds=st.text("rmw", max_size=40), n=st.integers(1, 8), share=st.floats(0, 1))
def test_it_is_the_authors_rule(kinds, n, share):
    found = kept_of(visited(kinds), n, share)
    kept, n_visited = authors(kinds, n, share)
    assert [one.id for one in found.records] == [f"{place}{kinds[place]}" for place in kept]
    assert len(found.visited) == n_visited


def test_shards_behind_a_missing_one_are_not_looked_at(tmp_path: Path):
    records, config = visited("rwmrr"), SearchConfig(keep=3)
    folder = tmp_path / "search" / "arc_easy"
    write_verdicts(tmp_path, records)
    write_shard(folder, 0, records[:2])
    write_shard(folder, 2, records[4:])
    assert (len(kept_in(folder, config).visited), kept_in(folder, config).is_enough) == (2, False)
    write_shard(folder, 1, records[2:4])
    assert [one.id for one in kept_in(folder, config).records] == ["0r", "2m", "3r"]
    assert len(kept_in(folder, config).visited) == 4
