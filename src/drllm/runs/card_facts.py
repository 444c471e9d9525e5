"""What a run folder tells of one of its policies, for the policy's model card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.core.errors import ArtifactError
from drllm.core.files import read_json
from drllm.policies.card import CardFacts
from drllm.policies.saved_config import policy_digest
from drllm.runs.layout import RunFolder

if TYPE_CHECKING:
    from drllm.policies.saved import SavedPolicy


def card_facts(folder: Path) -> CardFacts:
    """Of the policy in `folder`, whose parent is the run folder, if it is one: figures of these very files, and the run's commands."""
    run = RunFolder(folder.parent)
    if not run.jobs.is_file():
        return CardFacts()
    commands = [shlex.join(["drllm", *job["argv"][1:]]) for job in _read(run.jobs, list) if Path(job["argv"][0]).name == "drllm"]
    return CardFacts(folder.name, tuple(_summaries(run, folder.name, policy_digest(folder))), tuple(dict.fromkeys(commands)))


def refresh_card(folder: Path) -> SavedPolicy:
    """Write the card of a saved policy anew, with what its run folder tells by now; the policy, whose files were found whole."""
    from drllm.policies.saved import open_folder

    saved = open_folder(folder)
    saved.write_card(card_facts(folder))
    return saved


def _summaries(run: RunFolder, method: str, digest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split or harness split, summary) of every evaluation of these very files; a torn or foreign file is no evaluation of them."""
    for path in [*run.summaries(), *run.harness_summaries()]:
        summary = _read(path, dict)
        if summary.get("policies", {}).get(method) == digest:
            place = "in lm-evaluation-harness, " if "routing" in summary else ""
            yield f"{place}{summary['split']} split", summary


def _read(path: Path, kind: type) -> Any:
    """Empty for a torn or foreign file."""
    try:
        return read_json(path, "", kind)
    except ArtifactError:
        return kind()
