"""What a run has learned from, so that none of it judges."""

from collections.abc import Mapping
from pathlib import Path

from drllm.runs.manifest import data_of, path_manifests, search_manifests
from drllm.tasks import LoadedTask, drop_overlaps, load_task


def load_unseen(run: Path, read_from: Mapping[str, str | Path | None]) -> dict[str, LoadedTask]:
    """Tasks by name, read where this says, without what any task of the run was searched on, wherever its search read that from."""
    searched = {}
    for folder, manifest in (search_manifests(run) | path_manifests(run)).items():
        named = f"{manifest.task} as read for {folder.parent.name}, part "
        searched |= {f"{named}{n}": load_task(manifest.task, data_of(folder, part.data)) for n, part in enumerate(manifest.parts)}
    loaded = drop_overlaps({name: load_task(name, data) for name, data in read_from.items()} | searched, searched)
    return {name: loaded[name] for name in read_from}
