"""Shards of records: whole or absent, the same bytes for the same search, refused when they are not ours."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drllm import records
from drllm.errors import ArtifactError, InputError
from drllm.files import TEMPORARY_SUFFIX, remove_partials, write_bytes, write_json, write_text
from drllm.records import RouteRecord, check_plan, read_plan, read_records, read_shard, shard_indices, shard_path, write_shard
from drllm.routes import Route

PLAN = {
    "task": "arc_easy", "data": None, "model": "tiny", "fingerprint": "f00d", "questions": "d1ge57",
    "config": {"seed": 0, "n_simulations": 50}, "ids": ["q1", "q2", "q3"],
}  # fmt: skip


def record(task: str = "arc_easy", name: str = "q1", base: float = 0.0, others: tuple[float, ...] = (1.0,)) -> RouteRecord:
    """A record of a model of four blocks whose second route is chosen when it is right."""
    rewards = (base, *others)
    routes = tuple(Route.parse(text) for text in ("1111", "0111", "1121", "1001"))[: len(rewards)]
    chosen = next((route for route, reward in zip(routes[::-1], rewards[::-1], strict=True) if reward == 1.0), None)
    verdicts = tuple(reward == 1.0 for reward in rewards)
    margins = tuple(np.float32(reward - 0.3).item() for reward in rewards)
    return RouteRecord(task, name, 4, base == 1.0, margins[0], chosen, routes, rewards, margins, verdicts, verdicts, 5, "f00d", "loglik")


reals = st.floats(width=32, allow_nan=False)


@st.composite
def any_record(draw) -> RouteRecord:
    n = draw(st.integers(1, 6))
    layers = draw(st.integers(1, 40))
    route = st.lists(st.sampled_from([0, 1, 2]), min_size=layers, max_size=layers).map(Route)
    routes = (Route.full(layers), *draw(st.lists(route, min_size=n - 1, max_size=n - 1)))
    some = st.lists(st.none() | st.booleans(), min_size=n, max_size=n).map(tuple)
    margins = tuple(draw(st.lists(reals, min_size=n, max_size=n)))
    return RouteRecord(
        task=draw(st.text(st.characters(codec="utf-8"), max_size=8)), id=draw(st.text(st.characters(codec="utf-8"))),
        n_choices=draw(st.integers(0, 9)), base_correct=draw(st.booleans()), base_margin=margins[0],
        chosen=draw(st.none() | st.sampled_from(routes)), routes=routes, rewards=tuple(draw(st.lists(reals, min_size=n, max_size=n))),
        margins=margins, acc=draw(some), acc_norm=draw(some), seed=draw(st.integers(0, 2**63 - 1)), fingerprint="f00d", reward="boxed",
    )  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record(), max_size=5))
def test_what_is_written_is_read(tmp_path, some):
    write_shard(tmp_path, 0, some)
    assert read_shard(shard_path(tmp_path, 0)) == some


def test_margins_that_do_not_exist_are_nan(tmp_path):
    generated = RouteRecord(
        "gsm8k", "q", 0, True, math.nan, Route.full(2), (Route.full(2),), (1.0,), (math.nan,), (None,), (None,), 0, "f", "boxed"
    )
    write_shard(tmp_path, 0, [generated])
    (back,) = read_shard(shard_path(tmp_path, 0))
    assert math.isnan(back.base_margin)
    assert math.isnan(back.margins[0])
    assert (back.base_acc, back.base_acc_norm) == (None, None)


def test_equal_records_give_equal_bytes_in_another_process_too(tmp_path):
    some = [record(name=f"q{n}") for n in range(20)]
    write_shard(tmp_path / "a", 3, some)
    write_shard(tmp_path / "b", 3, copy.deepcopy(some))
    first = shard_path(tmp_path / "a", 3).read_bytes()
    assert shard_path(tmp_path / "b", 3).read_bytes() == first
    code = (
        "import sys; from pathlib import Path; from drllm.records import *; folder = Path(sys.argv[1])\n"
        "write_shard(folder / 'c', 3, read_shard(shard_path(folder / 'a', 3)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert shard_path(tmp_path / "c", 3).read_bytes() == first
    write_shard(tmp_path / "b", 3, [*some[:-1], record(name="other")])
    assert shard_path(tmp_path / "b", 3).read_bytes() != first


@pytest.mark.parametrize(
    ("base", "others", "kept", "improved"),
    [(0.0, (1.0,), True, True), (1.0, (0.0,), True, False), (0.0, (0.0, 0.0), False, False), (1.0, (1.0,), True, False)],
)
def test_kept_and_improved(base, others, kept, improved):
    one = record(base=base, others=others)
    assert (one.kept, one.improved) == (kept, improved)
    assert one.base_acc is one.base_acc_norm is one.base_correct


def test_entries_must_match_the_routes():
    good = record()
    for change in ({"rewards": (1.0,)}, {"acc": ()}, {"routes": good.routes[:1]}):
        with pytest.raises(InputError, match="one entry an evaluated route"):
            RouteRecord(**{**vars(good), **change})
    with pytest.raises(InputError, match="one entry an evaluated route"):
        RouteRecord(**{**vars(good), **dict.fromkeys(("routes", "rewards", "margins", "acc", "acc_norm"), ())})


def test_all_records_of_a_run_by_task_then_shard(tmp_path):
    for task, index in (("piqa", 0), ("arc_easy", 100000), ("arc_easy", 11), ("arc_easy", 2)):
        write_shard(tmp_path / task, index, [record(task, f"{index}-{n}") for n in range(2)])
    (tmp_path / "arc_easy" / f"shard-00003.parquet.77{TEMPORARY_SUFFIX}").write_bytes(b"PAR1")
    (tmp_path / "arc_easy" / "shard-copy.parquet").write_bytes(b"not ours")
    names = [(one.task, one.id) for one in read_records(tmp_path)]
    assert names == [("arc_easy", f"{index}-{n}") for index in (2, 11, 100000) for n in range(2)] + [("piqa", "0-0"), ("piqa", "0-1")]
    assert read_records(tmp_path / "piqa") == read_records(tmp_path)[-2:]
    assert shard_indices(tmp_path / "arc_easy") == [2, 11, 100000]
    assert shard_indices(tmp_path / "none") == read_records(tmp_path / "none") == []


def test_a_folder_named_like_a_partition_adds_nothing(tmp_path):
    write_shard(tmp_path / "task=7" / "lr=3", 0, [record()])
    assert read_records(tmp_path) == [record()]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_shard_is_refused_or_harmless(tmp_path, data):
    """Any byte changed, or the end cut off: one line that says what to do, never another exception or other records."""
    some = [record(name=f"q{n}", base=n % 2) for n in range(3)]
    write_shard(tmp_path, 0, some)
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes(damaged)
    refusal = None
    try:
        found = read_shard(path)
    except ArtifactError as error:
        refusal, found = str(error), some
    assert found == some
    assert refusal is None or (str(path) in refusal and "\n" not in refusal)
    assert refusal is not None or len(damaged) == len(whole)


def _rewrite(path, change):
    table = change(pq.ParquetFile(path).read())
    pq.write_table(table, path)


def test_foreign_and_newer_shards_are_refused(tmp_path):
    path = shard_path(tmp_path, 0)
    with pytest.raises(ArtifactError, match="not a readable shard"):
        read_shard(path)
    write_shard(tmp_path, 0, [record()])
    _rewrite(path, lambda table: table.replace_schema_metadata({"drllm_schema": str(records.SCHEMA_VERSION + 1)}))
    with pytest.raises(ArtifactError, match="upgrade drllm"):
        read_shard(path)
    for change in (
        lambda table: table.replace_schema_metadata({}),
        lambda table: table.replace_schema_metadata({"drllm_schema": "one"}),
        lambda table: table.drop_columns(["chosen"]),
        lambda table: table.set_column(2, "n_choices", pa.array(["4"])),
    ):
        write_shard(tmp_path, 0, [record()])
        _rewrite(path, change)
        with pytest.raises(ArtifactError, match="holds no drllm search records"):
            read_shard(path)


@pytest.mark.parametrize(("column", "value"), [("chosen", "11x1"), ("routes", ["1111", "3111"]), ("routes", None), ("routes", [])])
def test_broken_records_are_refused(tmp_path, column, value):
    path = shard_path(tmp_path, 0)
    write_shard(tmp_path, 0, [record()])

    def change(table):
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array([value], field.type))

    _rewrite(path, change)
    with pytest.raises(ArtifactError, match=r"broken record.*digest differ"):
        read_shard(path)
    _rewrite(path, lambda table: table.replace_schema_metadata({"drllm_schema": str(records.SCHEMA_VERSION)}))
    with pytest.raises(ArtifactError, match=r"broken record \((?!its content)"):
        read_shard(path)


def test_the_same_plan_goes_on(tmp_path):
    check_plan(tmp_path / "new", PLAN)
    before = (tmp_path / "new" / "plan.json").read_bytes()
    check_plan(tmp_path / "new", copy.deepcopy(PLAN))
    check_plan(tmp_path / "new", {**PLAN, "ids": tuple(PLAN["ids"])})  # what JSON cannot tell apart is the same
    assert (tmp_path / "new" / "plan.json").read_bytes() == before
    assert read_plan(tmp_path / "new") == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "beef"}, "fingerprint = 'f00d', now it is 'beef'"),
        ({"config": {"seed": 1, "n_simulations": 40}}, "config.seed = 0, now it is 1"),
        ({"config": {"seed": 0}}, "config.n_simulations = 50, now it is (not set)"),
        ({"config": {"seed": 0, "n_simulations": 50, "new": 1}}, "config.new = (not set), now it is 1"),
        ({"ids": ["q1", "q9", "q8"]}, "ids[1] = 'q2', now it is 'q9'"),
        ({"ids": ["q1"]}, "ids = a list of 3, now it is a list of 1"),
        ({"data": "a.jsonl"}, "data = None, now it is 'a.jsonl'"),
        ({"dtype": None}, "dtype = (not set), now it is None"),
        ({"ids": None}, "ids = a list of 3, now it is None"),
    ],
)
def test_another_plan_is_refused_and_names_the_first_difference(tmp_path, change, message):
    check_plan(tmp_path, PLAN)
    with pytest.raises(ArtifactError) as caught:
        check_plan(tmp_path, {**PLAN, **change})
    assert message in str(caught.value)
    assert "use another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_plan(tmp_path) == PLAN


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"task": "arc_easy"}', ""])
def test_a_foreign_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"plan\.json is not"):
        check_plan(tmp_path, PLAN)
    assert (tmp_path / "plan.json").read_text() == text


def test_a_plan_cleans_what_a_killed_process_left(tmp_path):
    left = tmp_path / f"shard-00001.parquet.123{TEMPORARY_SUFFIX}"
    left.write_bytes(b"half")
    write_shard(tmp_path, 0, [record()])
    check_plan(tmp_path, PLAN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "shard-00000.parquet"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    """SIGKILL between the temporary file and the rename, the worst moment."""
    write_shard(tmp_path, 0, [record()])
    whole = shard_path(tmp_path, 0).read_bytes()
    code = (
        "import os, signal, sys; from pathlib import Path; from drllm.records import *\n"
        "Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_shard(Path(sys.argv[1]), 0, [])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert shard_path(tmp_path, 0).read_bytes() == whole
    assert len(list(tmp_path.glob(f"*{TEMPORARY_SUFFIX}"))) == 1
    assert read_records(tmp_path) == [record()]
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.parquet"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    for write in (lambda: write_json(path, {}), lambda: write_text(path, "x"), lambda: write_bytes(path, b"x")):
        with pytest.raises(OSError, match="no space"):
            write()
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
