"""The store: what is written is read, shards are whole or absent, and refused when they are not ours."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drllm.core.errors import ArtifactError
from drllm.core.files import TEMPORARY_SUFFIX
from drllm.core.route import Route
from drllm.runs import shards
from drllm.runs.shards import Shards, content_digest
from drllm.runs.store import VERDICTS, Asked, Conditions, Decided, Store, Verdict
from record_factory import CONDITIONS, ROUTES, any_verdict, verdict

ASKED = [Asked("arc_easy", "fit", f"q{n}", f"digest {n}") for n in range(3)]
ROWS = [(one, route, verdict(route == ROUTES[1], 0.25 * n)) for n, one in enumerate(ASKED) for route in ROUTES]


def test_what_is_written_is_found_by_question_under_the_same_conditions(tmp_path):
    store = Store(tmp_path / "verdicts")
    assert store.find(CONDITIONS, ["digest 1"]) == {"digest 1": {}}
    store.write("one", CONDITIONS, ROWS)
    for place in (store, Store(tmp_path / "verdicts")):  # the same process, and another
        found = place.find(CONDITIONS, ["digest 1", "elsewhere"], "acc_norm")
        assert found["elsewhere"] == {}
        assert found["digest 1"] == {route: verdict(route == ROUTES[1], 0.25) for route in ROUTES}
    for name in ("weights", "dtype", "reward", "prompts", "settings"):
        assert store.find(replace(CONDITIONS, **{name: "other"}), ["digest 1"])["digest 1"] == {}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_verdict(), min_size=1, max_size=4))
def test_every_verdict_is_read_back_as_it_was(tmp_path, some):
    store = Store(tmp_path / str(abs(hash(repr(some)))))
    store.write("one", CONDITIONS, [(ASKED[0]._replace(question=str(n)), ROUTES[0], one) for n, one in enumerate(some)])
    for n, one in enumerate(some):
        counts = "acc_norm" if one.acc is not None else "lenient" if one.strict is not None else "correct"
        assert repr(store.find(CONDITIONS, [str(n)], counts)[str(n)][ROUTES[0]]) == repr(one)


def test_which_verdict_of_a_row_counts_is_for_the_reader_to_say(tmp_path):
    compared = Verdict(True, 0.5, acc=False, acc_norm=True, margin_acc=-1.0, margin_acc_norm=0.5)
    read = Verdict(False, strict=False, lenient=True, form="unclosed", n_new=15)
    store = Store(tmp_path)
    store.write("one", CONDITIONS, [(ASKED[0], ROUTES[0], compared), (ASKED[1], ROUTES[0], read)])
    told = {counts: store.find(CONDITIONS, ["digest 0"], counts)["digest 0"][ROUTES[0]] for counts in ("acc", "acc_norm")}
    assert [(one.correct, one.margin) for one in told.values()] == [(False, -1.0), (True, 0.5)]
    read_by = [store.find(CONDITIONS, ["digest 1"], counts)["digest 1"][ROUTES[0]] for counts in ("strict", "lenient")]
    assert [one.correct for one in read_by] == [False, True]
    assert {(one.form, one.n_new) for one in read_by} == {("unclosed", 15)}
    assert all(math.isnan(one.margin) for one in read_by)


def test_equal_rows_give_equal_bytes_in_another_process_too_and_a_shard_never_changes(tmp_path):
    Store(tmp_path / "a").write("one", CONDITIONS, ROWS)
    code = "import sys; from pathlib import Path; from test_store import *; Store(Path(sys.argv[1])).write('one', CONDITIONS, ROWS)"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support"), *sys.path]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, env={"PYTHONPATH": ":".join(folders)})
    first = (tmp_path / "a" / "one.parquet").read_bytes()
    assert (tmp_path / "b" / "one.parquet").read_bytes() == first
    Store(tmp_path / "a").write("one", CONDITIONS, ROWS[:1])
    assert (tmp_path / "a" / "one.parquet").read_bytes() == first
    Store(tmp_path / "a").write("none", CONDITIONS, [])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["one.parquet"]


def test_what_another_process_wrote_is_seen_and_what_it_left_half_written_is_not(tmp_path):
    store = Store(tmp_path)
    store.write("one", CONDITIONS, ROWS[:4])
    assert len(store.shards.table()) == 4
    Store(tmp_path).write("two", CONDITIONS, ROWS[4:])
    (tmp_path / f"three.parquet.{2**22 + 1}{TEMPORARY_SUFFIX}").write_bytes(b"PAR1")
    assert len(store.shards.table()) == 12
    store.shards.clear_partials()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet", "two.parquet"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_shard_is_refused_or_harmless(tmp_path, data):
    """Any byte changed, or the end cut off: one line that says what to do, never another exception or other rows."""
    path = tmp_path / "one.parquet"
    path.unlink(missing_ok=True)
    Store(tmp_path).write("one", CONDITIONS, ROWS)
    whole, table = path.read_bytes(), Store(tmp_path).shards.table()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes(damaged)
    refusal = ""
    try:
        found = Store(tmp_path).shards.table()
    except ArtifactError as error:
        refusal, found = str(error), table
    assert found.equals(table)
    assert "\n" not in refusal
    assert str(path) in refusal or len(damaged) == len(whole)


def _rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.ParquetFile(path).read()), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.replace_schema_metadata({"drllm_schema": str(shards.SCHEMA_VERSION + 1)}), "upgrade drllm"),
        (lambda table: table.replace_schema_metadata({}), "is no table of this kind"),
        (lambda table: table.replace_schema_metadata({"drllm_schema": b"\xff"}), "is no table of this kind"),
        (lambda table: table.drop_columns(["acc"]), "is no table of this kind"),
        (lambda table: table.select(list(reversed(table.schema.names))), "is no table of this kind"),
    ],
)
def test_foreign_and_newer_shards_are_refused(change, message, tmp_path):
    Store(tmp_path).write("one", CONDITIONS, ROWS)
    _rewrite(tmp_path / "one.parquet", change)
    with pytest.raises(ArtifactError, match=message):
        Store(tmp_path).shards.table()


@pytest.mark.parametrize("column", VERDICTS.names)
def test_a_value_that_changed_is_detected(column, tmp_path):
    Store(tmp_path).write("one", CONDITIONS, ROWS)

    def change(table: pa.Table) -> pa.Table:
        field, values = table.schema.field(column), table[column].to_pylist()
        other = {"string": "another", "bool": not values[5], "float": 7.5, "int32": 7}[str(field.type)]
        return table.set_column(table.schema.get_field_index(column), field, pa.array([*values[:5], other, *values[6:]], field.type))

    _rewrite(tmp_path / "one.parquet", change)
    with pytest.raises(ArtifactError, match=r"broken row \(its content and its digest differ\): delete it and run the same command again"):
        Store(tmp_path).shards.table()


def test_decisions_are_found_by_policy_question_and_conditions(tmp_path):
    decided, digests = Decided(tmp_path), [one.question for one in ASKED]
    decided.write("policy a", CONDITIONS, list(zip(ASKED, ROUTES, strict=False)))
    assert Decided(tmp_path).find("policy a", CONDITIONS, digests) == dict(zip(digests, ROUTES, strict=False))
    assert decided.find("policy b", CONDITIONS, digests) == decided.find("policy a", Conditions("w", "t", "r"), digests) == {}
    assert decided.shards.has(decided.name("policy a", CONDITIONS, digests))


def test_routes_of_any_form_are_kept(tmp_path):
    routes = [Route.parse(text) for text in ("1111", "0-2,1-3", "0-2,(1-2)*0.5,3", "0-1,0-1/4", "0-1,1,1,1-3")]
    Store(tmp_path).write("one", CONDITIONS, [(ASKED[0], route, verdict(True)) for route in routes])
    assert list(Store(tmp_path).find(CONDITIONS, ["digest 0"])["digest 0"]) == routes
    assert Shards(tmp_path, VERDICTS).table()["n_passes"].to_pylist() == [route.n_passes for route in routes]


def test_a_digest_tells_every_value_apart():
    columns = product(([[1]], [[2]]), ([0], [None]), (["x"], ["y"]))
    assert len({content_digest(pa.table({"a": a, "b": pa.array(b, pa.int64()), "c": c})) for a, b, c in columns}) == 8
