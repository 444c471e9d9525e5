"""Only `runs/` knows the file names of a run folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import drllm
from drllm.core.errors import InputError
from drllm.policies.saved_config import CONFIG_FILE
from drllm.runs import layout
from drllm.runs.layout import RunFolder
from drllm.runs.names import check_name

SOURCES = Path(drllm.__file__).parent
FILES = (
    *("run.json", "stages.json", "_plan.json", "metrics.jsonl", "candidates.json", "knob.json", "summary.json", "answers.parquet"),
    *("results.json", "routes.jsonl", "metrics.json", "influence.json", "steps.json", "report.html", "report.md", "drllm_export.json"),
)
BY_TASK = ("samples_",)  # how names of files begin that differ by task
FOLDERS = ("search", "paths", "verdicts", "decided", "train", "evaluate", "harness", "report", "reproduce")


def spelled(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of strings in code, docstrings aside, that name a file of a run folder, or a folder where paths are joined."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        if is_text and ((name := node.value.rsplit("/", 1)[-1]) in FILES or name.startswith(BY_TASK)):
            yield node.lineno, node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            right = node.right.values[0] if isinstance(node.right, ast.JoinedStr) and node.right.values else node.right
            if isinstance(right, ast.Constant) and str(right.value).split("/")[0] in FOLDERS:
                yield node.lineno, str(right.value)


def test_the_search_finds_what_it_should():
    found = 'x / "run.json"\nx.glob("evaluate/*/summary.json")\nx / f"train/{name}"\ny = "a run.json"\n"""doc"""\nsection = "search"\n'
    found += 'f"samples_{name}.jsonl"\nre.compile(r"samples_(.+?)\\.jsonl")\nx.rglob("samples_*.jsonl")\n"reproduce/*/report.html"\n'
    assert sorted(line for line, _ in spelled(found)) == [1, 2, 3, 7, 8, 9, 10]


def test_no_other_folder_knows_a_file_name_of_a_run_folder():
    odd = [
        f"{path.relative_to(SOURCES)}:{line}: {text!r}"
        for path in sorted(SOURCES.rglob("*.py"))
        if path.relative_to(SOURCES).parts[0] != "runs"
        for line, text in spelled(path.read_text(encoding="utf-8"))
    ]
    assert odd == [], "take the path from drllm.runs.layout"


def test_names_on_disk_stay():
    """Users' scripts hold them."""
    run = RunFolder(Path("r"))
    found = {
        "run.json": run.jobs,
        "stages.json": run.finished,
        "search/t": run.search("t"),
        "paths/t": run.matrix("t"),
        "verdicts": run.verdicts,
        "decided": run.decided,
        "p": run.policy("p"),
        "train/p": run.training("p"),
        "train/features": run.features,
        "evaluate/tune": run.evaluation("tune"),
        "evaluate/tune/summary.json": run.summary("tune"),
        "evaluate/tune/answers.parquet": run.answers("tune"),
        "harness/tune/a+b": run.harness("tune", "a+b"),
        "report": run.report,
        "reproduce": run.reproduction,
    }
    assert [path.as_posix() for path in found.values()] == [f"r/{name}" for name in found]
    constants = {name: value for name, value in vars(layout).items() if name.endswith("_FILE") and name != "CONFIG_FILE"}
    assert sorted(constants.values()) == sorted(set(FILES) - {"run.json", "stages.json"})


def test_what_stands_in_a_run_folder_is_found(tmp_path):
    run = RunFolder(tmp_path)
    policies = [run.policy(name) / CONFIG_FILE for name in "ba"]
    for path in (*policies, run.summary("tune"), run.answers("tune"), run.training("a") / layout.METRICS_FILE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [path.name for path in run.policies()] == ["a", "b"]
    assert run.summaries() == [run.summary("tune")]
    assert run.metrics() == [run.training("a") / layout.METRICS_FILE]


@pytest.mark.parametrize("name", [*FOLDERS, "base"])
def test_no_policy_is_called_like_a_folder_of_the_run(name):
    with pytest.raises(InputError, match="another folder of the run"):
        check_name(name)
