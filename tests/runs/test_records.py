"""Shards of records: whole or absent, the same bytes for the same search, refused when they are not ours."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import TEMPORARY_SUFFIX, write_bytes
from drllm.runs import records
from drllm.runs.records import Check, RouteRecord, encode, read_records, read_shard, same_record, shard_indices, shard_path, write_shard
from record_factory import ROUTES, any_record, control, full_record, record

RESULTS = Path(__file__).parents[2] / "results" / "first-run-smollm2-135m-q4"


@pytest.mark.long
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record(), max_size=5))
def test_what_is_written_is_read(tmp_path, some):
    write_shard(tmp_path, 0, some)
    assert repr(read_shard(shard_path(tmp_path, 0))) == repr(some)  # as text: nan differs from itself


def test_every_field_has_a_column(tmp_path):
    write_shard(tmp_path, 0, [full_record()])
    schema = pq.read_schema(shard_path(tmp_path, 0))
    assert schema.names == [field.name for field in fields(RouteRecord)]
    check = schema.field("checks").type.value_type
    assert [check.field(at).name for at in range(check.num_fields)] == [field.name for field in fields(Check)]


@pytest.mark.long
def test_equal_records_give_equal_bytes_in_another_process_too(tmp_path):
    some = [full_record(f"q{n}") for n in range(20)]
    write_shard(tmp_path / "a", 3, some)
    write_shard(tmp_path / "b", 3, copy.deepcopy(some))
    first = shard_path(tmp_path / "a", 3).read_bytes()
    assert shard_path(tmp_path / "b", 3).read_bytes() == first
    code = (
        "import sys; from pathlib import Path; from drllm.runs.records import *; folder = Path(sys.argv[1])\n"
        "write_shard(folder / 'c', 3, read_shard(shard_path(folder / 'a', 3)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert shard_path(tmp_path / "c", 3).read_bytes() == first
    write_shard(tmp_path / "b", 3, [*some[:-1], full_record("other")])
    assert shard_path(tmp_path / "b", 3).read_bytes() != first


def test_a_record_is_the_same_as_its_copy_though_nan_differs_from_itself():
    one = full_record()
    assert same_record(one, replace(one, control_margins=(-2.5, float("nan"))))
    for change in ({"seed": 6}, {"control_margins": (-2.5, 0.0)}, {"checks": one.checks[:1]}, {"chosen": None}, {"split": "tune"}):
        assert not same_record(one, replace(one, **change)), change


@pytest.mark.parametrize(
    ("base", "others", "kept", "improved"),
    [(0.0, (1.0,), True, True), (1.0, (0.0,), True, False), (0.0, (0.0, 0.0), False, False), (1.0, (1.0,), True, False)],
)
def test_kept_and_improved(base, others, kept, improved):
    one = record(base=base, others=others)
    assert (one.kept, one.improved) == (kept, improved)


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


@pytest.mark.long
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


def test_a_damaged_page_is_noticed_by_its_checksum(tmp_path):
    write_shard(tmp_path, 0, [record()])
    path = shard_path(tmp_path, 0)
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset - 1] ^= 1  # the end of the dictionary page
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"not a readable shard \(.*CRC checksum"):
        read_shard(path)


def _rewrite(path, change):
    table = change(pq.ParquetFile(path).read())
    pq.write_table(table, path)


def test_foreign_and_newer_shards_are_refused(tmp_path):
    path = shard_path(tmp_path, 0)
    with pytest.raises(ArtifactError, match=r"not a readable shard \(.*Failed to open.*\): delete it and run the search again$"):
        read_shard(path)
    write_shard(tmp_path, 0, [record()])
    _rewrite(path, lambda table: table.replace_schema_metadata({"drllm_schema": str(records.SCHEMA_VERSION + 1)}))
    with pytest.raises(ArtifactError, match="upgrade drllm"):
        read_shard(path)
    for change in (
        lambda table: table.replace_schema_metadata({}),
        lambda table: table.replace_schema_metadata({"drllm_schema": "one"}),
        lambda table: table.replace_schema_metadata({"drllm_schema": "0"}),
        lambda table: table.replace_schema_metadata({"drllm_schema": b"\xff"}),
        lambda table: table.drop_columns(["chosen"]),
        lambda table: table.set_column(2, "n_choices", pa.array(["4"])),
        lambda table: table.set_column(4, "base_margin", table["base_margin"].cast(pa.float16())),  # all margins or none
        lambda table: table.select(list(reversed(table.schema.names))),
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
    with pytest.raises(ArtifactError, match=r"broken record \(its content and its digest differ\): delete it and run the search again$"):
        read_shard(path)
    _rewrite(path, lambda table: table.replace_schema_metadata({"drllm_schema": str(records.SCHEMA_VERSION)}))
    with pytest.raises(ArtifactError, match=r"broken record \((?!its content)"):
        read_shard(path)


@pytest.mark.parametrize(
    ("change", "solved", "by_control"),
    [
        ({}, True, None),
        (control(True), True, True),
        (control(False, True), True, True),  # the search stopped at its first try, and might have had more
        ({"others": (0.0, 0.0), **control(False, True)}, False, True),
        ({"base": 1.0, **control(True)}, False, False),
        ({"others": (), **control(True)}, False, True),
    ],
)
def test_the_control_has_as_many_tries_as_the_search_may_take(change, solved, by_control):
    one = record(**change)
    assert (one.improved, one.control_solved) == (solved, by_control)


def test_the_checks_of_a_route_by_name():
    base, kept, other = ROUTES[:3]
    one = record(checks=(Check(base, "fp32", False, 0.0), Check(kept, "fp32", True, 0.1), Check(kept, "rotated:1", False, -0.1)))
    assert one.verified(kept) == {"fp32": True, "rotated:1": False}
    assert one.verified(other) == {}


def test_control_and_split_are_checked():
    for change in ({"control_routes": ()}, {"control_correct": (True,)}, {"control_margins": ()}):
        with pytest.raises(InputError, match="one entry a route of the baseline"):
            replace(full_record(), **change)
    assert record(split="calibrate").split == "calibrate"
    for split in ("test", "", "train"):
        with pytest.raises(InputError, match="expected one of fit, tune, calibrate"):
            record(split=split)


SCHEMA_1 = pa.schema(
    {
        "task": pa.string(),
        "id": pa.string(),
        "n_choices": pa.int32(),
        "base_correct": pa.bool_(),
        "base_margin": pa.float32(),
        "chosen": pa.string(),
        "routes": pa.list_(pa.string()),
        "rewards": pa.list_(pa.float32()),
        "margins": pa.list_(pa.float32()),
        "acc": pa.list_(pa.bool_()),
        "acc_norm": pa.list_(pa.bool_()),
        "seed": pa.int64(),
        "fingerprint": pa.string(),
        "reward": pa.string(),
    }
)
_TEXTS, _FLAGS = pa.list_(pa.string()), pa.list_(pa.bool_())


def schema_3(margin: pa.DataType) -> pa.Schema:
    """Written out, so that no change of a name, an order or a type goes unseen: files of earlier versions must stay readable."""
    check = pa.struct({"route": pa.string(), "check": pa.string(), "correct": pa.bool_(), "margin": margin})
    return pa.schema(
        {
            "task": pa.string(),
            "id": pa.string(),
            "n_choices": pa.int32(),
            "base_correct": pa.bool_(),
            "base_margin": margin,
            "chosen": pa.string(),
            "routes": _TEXTS,
            "rewards": pa.list_(pa.float32()),
            "margins": pa.list_(margin),
            "acc": _FLAGS,
            "acc_norm": _FLAGS,
            "seed": pa.int64(),
            "fingerprint": pa.string(),
            "reward": pa.string(),
            "split": pa.string(),
            "control_routes": _TEXTS,
            "control_correct": _FLAGS,
            "control_margins": pa.list_(margin),
            "checks": pa.list_(check),
            "strict": _FLAGS,
            "lenient": _FLAGS,
            "forms": _TEXTS,
        }
    )


@pytest.mark.parametrize(("float16", "margin"), [(False, pa.float32()), (True, pa.float16())])
def test_the_columns_of_schema_3_stay_as_they_are(tmp_path, float16, margin):
    write_bytes(tmp_path / "one.parquet", encode([full_record()], float16=float16))
    assert pq.read_schema(tmp_path / "one.parquet").remove_metadata() == schema_3(margin) == records._schema(margin)


ROW_1 = {
    "task": "arc_easy",
    "id": "q1",
    "n_choices": 4,
    "base_correct": False,
    "base_margin": -0.25,
    "chosen": "0111",
    "routes": ["1111", "0111"],
    "rewards": [0.0, 1.0],
    "margins": [-0.25, 0.5],
    "acc": [False, True],
    "acc_norm": [None, False],
    "seed": 5,
    "fingerprint": "f00d",
    "reward": "loglik",
}


def _write_schema_1(path: Path, row: dict, digest_of: dict, version: str = "1", schema: pa.Schema = SCHEMA_1) -> None:
    digest = hashlib.sha256(json.dumps([digest_of]).encode()).hexdigest()
    table = pa.Table.from_pylist([row], schema=schema.with_metadata({"drllm_schema": version, "drllm_digest": digest}))
    pq.write_table(table, path)


def test_schema_1_is_read_with_the_defaults_of_what_it_lacks(tmp_path):
    path = shard_path(tmp_path, 0)
    _write_schema_1(path, ROW_1, digest_of=ROW_1)
    (found,) = read_records(tmp_path)
    assert found == RouteRecord(
        task="arc_easy",
        id="q1",
        n_choices=4,
        base_correct=False,
        base_margin=-0.25,
        chosen=ROUTES[1],
        routes=ROUTES[:2],
        rewards=(0.0, 1.0),
        margins=(-0.25, 0.5),
        acc=(False, True),
        acc_norm=(None, False),
        seed=5,
        fingerprint="f00d",
        reward="loglik",
        split="fit",
        control_routes=(),
        control_correct=(),
        control_margins=(),
        checks=(),
    )
    _write_schema_1(path, {**ROW_1, "seed": 6}, digest_of=ROW_1)
    with pytest.raises(ArtifactError, match="digest differ"):
        read_shard(path)
    _write_schema_1(path, ROW_1, digest_of=ROW_1, version="2")
    with pytest.raises(ArtifactError, match="holds no drllm search records"):
        read_shard(path)
    write_shard(tmp_path, 0, [record()])
    _rewrite(path, lambda table: table.replace_schema_metadata({"drllm_schema": "1"}))
    with pytest.raises(ArtifactError, match="holds no drllm search records"):
        read_shard(path)


@pytest.mark.parametrize("margin", [pa.float32(), pa.float16()])
def test_schema_2_is_read_without_what_readers_say(tmp_path, margin):
    lacking = {"strict": (), "lenient": (), "forms": ()}
    one = replace(full_record(), base_margin=-0.25, margins=(-0.25, 0.5), **lacking)
    path = tmp_path / "two.parquet"
    write_bytes(path, encode([one], float16=margin == pa.float16()))
    table = pq.read_table(path).drop_columns(list(lacking))
    digest = hashlib.sha256(json.dumps(table.cast(pa.schema(list(schema_3(pa.float32()))[:-3])).to_pylist()).encode()).hexdigest()
    pq.write_table(table.replace_schema_metadata({"drllm_schema": "2", "drllm_digest": digest}), path)
    assert repr(read_shard(path)) == repr([one])


def test_the_records_of_the_first_real_run_are_read():
    found = read_records(RESULTS)
    assert pq.read_schema(next(RESULTS.rglob("shard-00000.parquet"))).metadata[b"drllm_schema"] == b"2"
    assert len(found) == 423
    assert sum(one.improved for one in found) == 167
    assert {(one.split, one.control_routes, one.checks) for one in found} == {("fit", (), ())}


def test_float16_margins_are_read_back_as_the_file_holds_them(tmp_path):
    path = tmp_path / "all.parquet"
    some = [full_record("q1", margins=(0.1, -0.3)), full_record("q2", base_margin=math.nan, margins=(math.inf, -math.inf))]
    write_bytes(path, encode(some, float16=True))
    schema = pq.read_schema(path)
    assert schema.field("base_margin").type == schema.field("control_margins").type.value_type == pa.float16()
    assert schema.field("rewards").type.value_type == pa.float32()
    back = read_shard(path)
    assert back[0].margins == tuple(float(np.float16(margin)) for margin in (0.1, -0.3))
    assert back[0].margins != tuple(float(np.float32(margin)) for margin in (0.1, -0.3))
    assert math.isnan(back[1].base_margin)
    assert back[1].margins == (math.inf, -math.inf)
    rounded = [
        replace(one, base_margin=float(np.float16(one.base_margin)), margins=now.margins) for one, now in zip(some, back, strict=True)
    ]
    assert repr(back) == repr(rounded)
    write_bytes(path, encode(back))  # what was rounded once stays as it is
    assert repr(read_shard(path)) == repr(back)
    write_bytes(path, encode(some, float16=True))
    _rewrite(path, lambda table: table.set_column(11, "seed", pa.array([5, 6])))
    with pytest.raises(ArtifactError, match="digest differ"):
        read_shard(path)


def test_a_higher_level_makes_a_smaller_file_of_the_same_records(tmp_path):
    some = [full_record(f"question {n * n}") for n in range(300)]
    small = encode(some, level=15)
    assert len(small) < len(encode(some)) < len(encode(some, level=-5))
    write_bytes(tmp_path / "small.parquet", small)
    assert repr(read_shard(tmp_path / "small.parquet")) == repr(some)


@pytest.mark.parametrize(
    "change",
    [
        {"base_margin": 65520.0},
        {"margins": (0.0, -1e6)},
        {"control_margins": (0.0, 65520.0)},
        {"checks": (Check(ROUTES[0], "fp32", True, -65520.0),)},
    ],
)
def test_a_margin_beyond_float16_is_refused(change):
    one = replace(full_record("q7"), **change)
    encode([one])
    with pytest.raises(InputError, match=r"question 'q7' is .*float16 ends at 65504"):
        encode([full_record(), one], float16=True)


def test_the_last_margins_that_float16_holds(tmp_path):
    (tmp_path / "a.parquet").write_bytes(encode([record(margins=(65519.0, -65504.0))], float16=True))
    assert read_shard(tmp_path / "a.parquet")[0].margins == (65504.0, -65504.0)


def _changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return float(np.nextafter(np.float32(value), np.float32(9), dtype=np.float32))
    if isinstance(value, list):
        return [*value[:-1], _changed(value[-1])]
    if isinstance(value, dict):
        return {**value, "correct": not value["correct"]}
    return value + 1 if isinstance(value, int) else f"0{value[1:]}" if value[0] == "1" else f"1{value[1:]}"


@pytest.mark.parametrize("column", [field.name for field in fields(RouteRecord)])
def test_a_value_that_changed_is_detected(tmp_path, column):
    path = shard_path(tmp_path, 0)
    write_shard(tmp_path, 0, [replace(full_record(), control_margins=(0.0, 0.5))])

    def change(table):
        field = table.schema.field(column)
        value = table[column].to_pylist()[0]
        return table.set_column(table.schema.get_field_index(column), field, pa.array([_changed(value)], field.type))

    _rewrite(path, change)
    with pytest.raises(ArtifactError, match=r"broken record.*digest differ"):
        read_shard(path)
