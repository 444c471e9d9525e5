"""`drllm records info|merge|export` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drllm.cli.main import main
from drllm.runs.records import read_records
from record_factory import full_record, record, task_folder

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
    task_folder(tmp_path / "broken" / "search" / "arc_easy", [record()], 1)
    (tmp_path / "broken" / "verdicts" / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    return {"tmp": tmp_path, **{name: tmp_path / name for name in ("a", "b", "other", "broken", "empty")}}


# What is typed and what the one line must say.
MISTAKES = {
    "no action": ([], "the following arguments are required: ACTION"),
    "unknown action": (["inof", "{a}"], "unknown action 'inof'; did you mean 'info'?"),
    "nothing like an action": (["xyzzy", "{a}"], "choose from info, merge, export"),
    "no folder": (["info"], "no folder: write `drllm records info FOLDER`"),
    "unknown flag": (["info", "{a}", "--outt", "x"], "unknown flag --outt; did you mean '--out'?"),
    "filtered merge": (
        ["merge", "{a}", "--out", "{tmp}/x", "--task", "piqa"],
        "--task picks rows to show or export: leave it",
    ),
    "info with out": (["info", "{a}", "--out", "{tmp}/x"], "info only prints: leave --out out of it"),
    "export of two": (["export", "{a}", "{b}", "--out", "{tmp}/x.csv"], "export takes one folder, got 2: merge them first"),
    "merge without out": (["merge", "{a}", "{b}"], "--out is missing"),
    "export without out": (["export", "{a}"], "--out is missing"),
    "missing folder": (["info", "{tmp}/none"], "none does not exist: give a run folder"),
    "second folder missing": (["merge", "{a}", "{tmp}/none", "--out", "{tmp}/x"], "none does not exist"),
    "no verdicts": (["info", "{empty}"], "empty holds no verdicts: give a run folder"),
    "no such rows": (["export", "{a}", "--out", "{tmp}/x.csv", "--task", "piqa"], "holds no such rows: name another task"),
    "a text file": (["export", "{tmp}/file.txt", "--out", "{tmp}/x.csv"], "file.txt is not a readable shard"),
    "a corrupt shard": (["info", "{broken}"], "is not a readable shard"),
    "merge of a corrupt shard": (["merge", "{a}", "{broken}", "--out", "{tmp}/x"], "is not a readable shard"),
    "merge into verdicts": (["merge", "{a}", "--out", "{b}"], "holds verdicts already: merge into a new folder"),
    "merge into a file": (["merge", "{a}", "--out", "{tmp}/file.txt"], "file.txt"),
    "unknown format": (["export", "{a}", "--out", "{tmp}/x.xlsx"], "expected a name that ends in .parquet, .csv, .jsonl"),
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


def test_exporting_again_replaces_the_file_and_a_merge_wants_a_folder(folders, capsys):
    out = folders["tmp"] / "rows.csv"
    out.write_text("of before\n", encoding="utf-8")
    assert run(capsys, "export", folders["a"], "--out", out)[0] == 0
    assert "of before" not in out.read_text(encoding="utf-8")
    assert run(capsys, "merge", folders["a"], folders["b"], "--out", out)[2] == f"drllm: error: --out {out} is a file: give a folder\n"


def test_info_counts_the_store_and_describes_the_search(folders, capsys):
    code, out, err = run(capsys, "info", folders["a"], folders["other"])
    assert (code, err) == (0, "")
    assert out.count("weights") == 2
    assert ["f00d", "torch.float32", "arc_easy", "fit", "loglik", "2", "4", "8", *["50.0"] * 2] in [
        line.split() for line in out.splitlines()
    ]
    first = out[: out.index(str(folders["other"]))]
    assert first.count("less blind: ") == 1
    assert ["arc_easy", "2", "2", "2"] in [line.split()[:4] for line in first.splitlines()]
    (shard, *_) = (folders["a"] / "verdicts").iterdir()
    assert "less blind" not in run(capsys, "info", shard)[1]
    assert "1001" not in run(capsys, "info", folders["a"], "--route", "0111;1111")[1]


def test_merge_then_info_and_export_say_how_many(folders, capsys):
    out = folders["tmp"] / "merged"
    code, text, err = run(capsys, "merge", folders["a"], folders["b"], "--out", out)
    assert (code, err) == (0, "")
    assert text.splitlines() == [
        f"{out}/verdicts: 12 rows, from 2 runs; 4 were given again",
        f"{out}/search/arc_easy: not made, several runs have it: the same search in {out} looks its verdicts up",
    ]
    assert run(capsys, "merge", folders["a"], "--out", f"{out}-alone")[1].splitlines()[1] == f"{out}-alone/search/arc_easy: copied"
    assert [one.id for one in read_records(Path(f"{out}-alone") / "search")] == ["q1", "q2"]
    for name, more, rows in (("x.parquet", (), 12), ("x.csv", (), 12), ("x.jsonl", ("--route", "1111;0111"), 6)):
        file = folders["tmp"] / "deep" / name
        assert run(capsys, "export", out, "--out", file, *more) == (0, f"{file}: {rows} rows\n", "")
    assert len((folders["tmp"] / "deep" / "x.csv").read_text().splitlines()) == 13
    rows = [json.loads(line) for line in (folders["tmp"] / "deep" / "x.jsonl").read_text().splitlines()]
    assert {row["route"] for row in rows} == {"1111", "0111"}
    assert run(capsys, "info", folders["tmp"] / "deep" / "x.parquet")[0] == 0


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
