"""`drllm records info|merge|export` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.cli.main import main
from drllm.runs.records import read_records, read_shard
from record_factory import ROUTES, full_record, record, task_folder

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `drllm records`."""
    code = main(["records", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two runs of one search, one of another model, and things that are none."""
    for name, ids in (("a", ("q1", "q2")), ("b", ("q2", "q3"))):
        task_folder(tmp_path / name / "search" / "arc_easy", [full_record(one) for one in ids], questions=name)
    task_folder(tmp_path / "other" / "search" / "arc_easy", [record(name="q4", fingerprint="beef")], 1)
    task_folder(tmp_path / "large" / "search" / "arc_easy", [record(name="q4", base_margin=1e5)], 1)
    task_folder(tmp_path / "broken" / "search" / "arc_easy", [record()], 1)
    (tmp_path / "broken" / "search" / "arc_easy" / "shard-00000.parquet").write_bytes(b"PAR1")
    for kind in ("search", "paths"):
        task_folder(tmp_path / "both" / kind / "arc_easy", [record()], 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    return {"tmp": tmp_path, **{name: tmp_path / name for name in ("a", "b", "other", "large", "broken", "empty", "both")}}


# What is typed and what the one line must say.
MISTAKES = {
    "no action": ([], "the following arguments are required: ACTION"),
    "unknown action": (["inof", "{a}"], "unknown action 'inof'; did you mean 'info'?"),
    "nothing like an action": (["xyzzy", "{a}"], "choose from info, merge, export"),
    "no folder": (["info"], "no folder: write `drllm records info FOLDER`"),
    "unknown flag": (["info", "{a}", "--outt", "x"], "unknown flag --outt; did you mean '--out'?"),
    "float16 of info": (["info", "{a}", "--float16"], "--float16 is for `drllm records export`: leave it out of info"),
    "float16 of merge": (["merge", "{a}", "--out", "{tmp}/x", "--float16"], "leave it out of merge"),
    "info with out": (["info", "{a}", "--out", "{tmp}/x"], "info only prints: leave --out out of it"),
    "export of two": (["export", "{a}", "{b}", "--out", "{tmp}/x.csv"], "export takes one folder, got 2: merge them first"),
    "merge without out": (["merge", "{a}", "{b}"], "--out is missing"),
    "export without out": (["export", "{a}"], "--out is missing"),
    "export of searched and listed routes": (["export", "{both}", "--out", "{tmp}/x.csv"], "holds records of several kinds: export one of"),
    "missing folder": (["info", "{tmp}/none"], "none does not exist: give a run folder"),
    "second folder missing": (["merge", "{a}", "{tmp}/none", "--out", "{tmp}/x"], "none does not exist"),
    "no records": (["info", "{empty}"], "empty holds no search records"),
    "a text file": (["export", "{tmp}/file.txt", "--out", "{tmp}/x.csv"], "file.txt is no shard"),
    "a corrupt shard": (["info", "{broken}"], "is not a readable shard"),
    "merge of a corrupt shard": (["merge", "{a}", "{broken}", "--out", "{tmp}/x"], "is not a readable shard"),
    "other weights": (["merge", "{a}", "{other}", "--out", "{tmp}/x"], "fingerprint = 'f00d'"),
    "merge into records": (["merge", "{a}", "--out", "{b}"], "holds records already: merge into a new folder"),
    "merge into a file": (["merge", "{a}", "--out", "{tmp}/file.txt"], "file.txt"),
    "unknown format": (["export", "{a}", "--out", "{tmp}/x.xlsx"], "expected a name that ends in .parquet, .csv, .jsonl"),
    "export to a shard": (["export", "{a}", "--out", "{a}/search/arc_easy/shard-00009.parquet"], "is the name of a shard"),
    "float16 text": (["export", "{a}", "--out", "{tmp}/x.csv", "--float16"], "float16 margins are for .parquet"),
    "too large for float16": (["export", "{large}", "--out", "{tmp}/x.parquet", "--float16"], "float16 ends at 65504"),
    "export below a file": (["export", "{a}", "--out", "{tmp}/file.txt/x.csv"], "file.txt"),
    "missing yaml": (["info", "{a}", "--config", "{tmp}/no.yaml"], "--config expects an existing YAML file"),
}


@pytest.mark.parametrize(("typed", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(typed, message, folders, capsys):
    before = {path: path.read_bytes() for path in folders["tmp"].rglob("*") if path.is_file()}
    code, out, err = run(capsys, *(argument.format(**folders) for argument in typed))
    assert code == 2
    assert out == ""
    assert err.startswith("drllm: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path: path.read_bytes() for path in folders["tmp"].rglob("*") if path.is_file()} == before


def test_exporting_onto_a_folder_is_one_line(folders, capsys):
    (folders["tmp"] / "x.csv").mkdir()
    code, out, err = run(capsys, "export", folders["a"], "--out", folders["tmp"] / "x.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "x.csv" in err
    assert list((folders["tmp"] / "x.csv").iterdir()) == []


def test_info_prints_tables_by_folder_and_model(folders, capsys):
    tmp = folders["tmp"]
    task_folder(tmp / "a" / "paths" / "piqa", [record("piqa", "q1", split="tune"), record("piqa", "q2", reward="letter")], 1)
    task_folder(tmp / "a" / "paths" / "siqa", [record("siqa", "q1", fingerprint="beef")], 1)
    code, out, err = run(capsys, "info", folders["a"], folders["other"])
    assert (code, err) == (0, "")
    heads = [line for line in out.splitlines() if ": weights " in line]
    assert heads == [
        f"{tmp}/a/search: weights f00d, reward loglik, split fit",
        f"{tmp}/a/paths: weights beef, reward loglik, split fit",
        f"{tmp}/a/paths: weights f00d, reward letter, loglik, split fit, tune",
        f"{tmp}/other/search: weights beef, reward loglik, split fit",
    ]
    first = out[: out.index(heads[1])]
    for title in ("labels: ", "solved, ", "forward passes: ", "checks: "):
        assert first.count(title) == 1
    assert "arc_easy         2         2          2" in first
    one_shard = run(capsys, "info", folders["a"] / "search" / "arc_easy" / "shard-00001.parquet")
    assert one_shard[0] == 0
    assert "arc_easy         1         1          1" in one_shard[1]


def test_info_of_the_first_real_run(capsys):
    code, out, err = run(capsys, "info", ROOT / "results" / "first-run-smollm2-135m-q4")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["all", "423", "320", "167", "39.5", "52.2", "858", "8,674", "68", "27.53", "of", "30"] in rows
    assert ["all", "15,442", "36.5", "0", "0"] in rows
    assert "167 of 270" in out


def test_merge_then_info_and_export_say_how_many(folders, capsys):
    out = folders["tmp"] / "merged"
    code, text, err = run(capsys, "merge", folders["a"], folders["b"], "--out", out)
    assert (code, err) == (0, "")
    assert text == f"{out}/search/arc_easy: 3 records, folders: 2, 1 given again\n"
    assert [one.id for one in read_records(out)] == ["q1", "q2", "q3"]
    assert "arc_easy         3         3          3" in run(capsys, "info", out)[1]
    assert (
        run(capsys, "merge", folders["other"], "--out", folders["tmp"] / "m")[1]
        == f"{folders['tmp']}/m/search/arc_easy: 1 records, folders: 1\n"
    )
    for name, rows in (("x.parquet", 3), ("x.csv", 12), ("x.jsonl", 12)):
        file = folders["tmp"] / "deep" / name
        assert run(capsys, "export", out, "--out", file) == (0, f"{file}: {rows} rows\n", "")
    assert len((folders["tmp"] / "deep" / "x.csv").read_text().splitlines()) == 13
    rows = [json.loads(line) for line in (folders["tmp"] / "deep" / "x.jsonl").read_text().splitlines()]
    assert [row["route"] for row in rows[:4]] == [str(ROUTES[at]) for at in (0, 1, 3, 2)]
    assert len(read_shard(folders["tmp"] / "deep" / "x.parquet")) == 3
    small = folders["tmp"] / "small.parquet"
    assert run(capsys, "export", out, "--float16", "--out", small)[0] == 0
    assert small.read_bytes() != (folders["tmp"] / "deep" / "x.parquet").read_bytes()
    assert repr(read_shard(small)[0].control_margins) == repr(read_records(out)[0].control_margins)  # -2.5 and nan are float16 numbers
    assert run(capsys, "info", small)[0] == 0


def test_records_need_no_torch(folders):
    script = (
        "import sys; from drllm.cli.main import main\n"
        f"a, b, tmp = {str(folders['a'])!r}, {str(folders['b'])!r}, {str(folders['tmp'])!r}\n"
        "typed = ['info', a], ['merge', a, b, '--out', tmp + '/m'], ['export', a, '--out', tmp + '/x.csv']\n"
        "codes = [main(['records', *each]) for each in typed]\n"
        "heavy = sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys())\n"
        "sys.exit(f'{codes} {heavy}' if heavy or any(codes) else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
