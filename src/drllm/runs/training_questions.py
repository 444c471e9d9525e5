"""What a run has learned from, so that none of it judges."""

from __future__ import annotations

from pathlib import Path

from drllm.runs.manifest import path_manifests, search_manifests
from drllm.tasks import LoadedTask, load_task


def run_sources(run: Path) -> dict[str, LoadedTask]:
    """Every source that a run's searches and dense matrices read their questions from, each task and part by a name of its own."""
    manifests = [(folder, manifest) for found in (search_manifests(run), path_manifests(run)) for folder, manifest in found.items()]
    return {
        f"{manifest.task} as read for {folder.parent.name}, part {n}": load_task(manifest.task, part.data)
        for folder, manifest in manifests
        for n, part in enumerate(manifest.parts)
    }
