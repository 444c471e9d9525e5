"""The layout holds: folders are the layers, functions are short, and only the command line reads arguments."""

import ast
import functools
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp

import drllm
from drllm.core.names import COMMANDS, METHODS, POLICIES

SOURCE = Path(drllm.__file__).parent
ROOT = SOURCE.parents[1]
MAX_FUNCTION, MAX_ARGUMENTS, MAX_ROWS = 60, 8, 10

# What is longer, with the reason. Entries may go, or shrink; none may be added without one.
LONG_FUNCTIONS: dict[str, str] = {}
MANY_ARGUMENTS = {
    "evaluation/harness/model.py:__init__": "as lm-eval calls a model",
    "evaluation/run.py:evaluate": "public",
    "searching/runner.py:search": "public",
}


@functools.cache
def trees() -> dict[str, tuple[str, ast.Module]]:
    texts = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("drllm", cache_dir=None, exclude_type_checking_imports=False)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, (_, tree) in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node


def n_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    found = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in found if argument.arg not in ("self", "cls")])


def beyond(found: dict[str, int], most: int, excused: dict[str, str]) -> str:
    """One line: what is above the limit without an excuse, and excuses nobody needs; empty if all is well."""
    above = {name: value for name, value in found.items() if value > most}
    new = [f"{name} has {value}, at most {most}" for name, value in sorted(above.items()) if name not in excused]
    return "; ".join([*new, *(f"{name} needs no exception any more" for name in sorted(excused.keys() - above.keys()))])


def test_no_two_files_import_each_other():
    imports = {module: graph().find_modules_directly_imported_by(module) for module in graph().modules}
    mutual = {frozenset((a, b)) for a in imports for b in imports[a] if a in imports[b]}
    # A package's __init__ may name what lies in its own folder, which may import the folder.
    mutual = {pair for pair in mutual if not any(a.startswith(f"{b}.") for a, b in itertools.permutations(pair))}
    assert not mutual, f"files that import each other: {sorted(map(sorted, mutual))}"


def test_the_contract_is_rows_of_folders():
    """import-linter holds every import against these rows; here: that they are few, name folders only, and leave none out."""
    contract, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = [[name.strip() for name in row.replace(":", "|").split("|")] for row in contract["layers"]]
    assert len(rows) <= MAX_ROWS, f"{len(rows)} rows, at most {MAX_ROWS}"
    assert not contract.get("ignore_imports"), f"imports that are ignored: {contract['ignore_imports']}"
    named = {name.removeprefix("drllm.") for row in rows for name in row}
    assert all("." not in name for name in named), f"only folders of the package: {sorted(named)}"
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    files = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert folders <= named, f"folders in no row: {sorted(folders - named)}"
    assert named <= folders | files, f"rows of nothing: {sorted(named - folders - files)}"


def spelled_modules() -> Iterator[tuple[str, str]]:
    """(module, text) of each string, docstrings aside, that begins as the name of a module of this package does: "drllm.x.y:z"."""
    for name, (_, tree) in trees().items():
        said = {node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)} - said
        for text in texts:
            if found := re.match(r"drllm(\.\w+)+(?=:|$)", text):
                yield name, found[0]


def test_no_string_names_a_module_above_its_own_layer():
    """What is imported by its name when the program runs keeps the contract, which import-linter cannot see."""
    contract, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    level = {name.strip().removeprefix("drllm."): -n for n, row in enumerate(contract["layers"]) for name in re.split(r"[:|]", row)}
    groups, wrong = {METHODS, POLICIES, COMMANDS}, []  # of entry points, not modules
    for name, text in spelled_modules():
        here, there = name.partition("/")[0], text.split(".")[1]
        if text not in groups and here in level and there in level and here != there and level[there] >= level[here]:
            wrong.append(f"{name} names {text}")
    assert not wrong, wrong
    assert sum(text.split(".")[1] in level for _, text in spelled_modules()) > 8, "there are such strings: the test can fail"


IMPORTING = """
import importlib, json, pkgutil, sys
rows = json.loads(sys.argv[1])
for n, row in enumerate(rows):
    for found in [m for name in row for m in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}.")]:
        if ".serving.engine" not in found.name:  # runs inside vLLM, which is in another environment
            importlib.import_module(found.name)
    above = tuple(f"{name}." for later in rows[n + 1 :] for name in later)
    print(*(f"{' and '.join(row)} import {module}" for module in sys.modules if f"{module}.".startswith(above)), end="", sep=", ")
"""


def test_importing_a_folder_imports_none_above_it():
    """In a process of its own, row by row from below: whatever is imported when modules load."""
    contract, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = [[name.strip() for name in re.split(r"[:|]", row)] for row in reversed(contract["layers"])]
    done = subprocess.run([sys.executable, "-c", IMPORTING, json.dumps(rows)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_functions_are_short():
    """Counted with their signature and docstring left out: what is done, not what is said of it."""
    lengths = {}
    for name, function in functions():
        first = function.body[1] if ast.get_docstring(function) is not None and len(function.body) > 1 else function.body[0]
        assert function.end_lineno is not None
        lengths[name] = max(lengths.get(name, 0), function.end_lineno - first.lineno + 1)
    assert not (found := beyond(lengths, MAX_FUNCTION, LONG_FUNCTIONS)), found


def test_functions_take_few_arguments():
    counts: dict[str, int] = {}
    for name, function in functions():
        counts[name] = max(counts.get(name, 0), n_arguments(function))
    assert not (found := beyond(counts, MAX_ARGUMENTS, MANY_ARGUMENTS)), found


def test_every_folder_says_what_lives_there():
    said = {name: ast.get_docstring(tree) or "" for name, (_, tree) in trees().items() if name.endswith("/__init__.py")}
    short = sorted(name for name, text in said.items() if len(text.splitlines()) < 2)
    assert not short, f"docstrings of less than two lines: {short}"


# Who may write to a stream, draw a bar or set torch's threads, with the reason.
STREAMS = {
    "cli/": "the command line",
    "evaluation/harness/model.py": "the bar that lm-eval's own model shows, switched off as there",
    "evaluation/harness/run.py": "keeps what lm-eval's parser writes, for the error",
    "model/load.py": "keeps the bars of other packages off standard error",
    "model/pool.py": "a worker's own process; gives torch its threads back",
}
_WRITERS = {"print", "tqdm", "set_num_threads", "redirect_stderr", "redirect_stdout", "sys.stdout", "sys.stderr", "torch.set_num_threads"}


def test_the_library_writes_to_no_stream_and_leaves_torch_s_threads_alone():
    found: dict[str, set[str]] = {}
    for name, (_, tree) in trees().items():
        found[name] = _WRITERS & {
            ast.unparse(node).removeprefix("contextlib.") for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)
        }
    outside = {name: sorted(used) for name, used in found.items() if used and not name.startswith(tuple(STREAMS))}
    assert not outside, outside
    idle = [prefix for prefix in STREAMS if not any(used and name.startswith(prefix) for name, used in found.items())]
    assert not idle, f"needs no exception any more: {idle}"


def test_only_the_command_line_reads_arguments():
    found = sorted(
        name
        for name, (_, tree) in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name == "argparse" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "argparse")
    )
    outside = [name for name in found if not name.startswith("cli/")]
    assert not outside, f"argparse outside cli/: {outside}"


def test_every_folder_has_its_tests():
    there = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    folders = {path.parent.name for path in (ROOT / "src" / "drllm").glob("*/__init__.py")}
    assert not folders - there, "tests/ mirrors src/drllm/ (docs/testing.md)"
