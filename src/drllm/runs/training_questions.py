"""What a run has learned from, so that none of it judges."""

from collections.abc import Mapping
from pathlib import Path

from drllm.core.files import read_json
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import data_of, path_manifests, search_manifests
from drllm.tasks import LoadedTask, drop_overlaps, load_task


def load_unseen(run: Path, read_from: Mapping[str, str | Path | None], split: str = "") -> dict[str, LoadedTask]:
    """Tasks by name, read where this says, without what any task of the run was searched or healed on, wherever that was read from, and
    without questions that stand in a file of prompts that a healing was given.

    For `split` test, a task that the run learned nothing from is asked on its validation part where upstream keeps its test part secret.
    """
    searched: dict[str, LoadedTask] = {}
    for folder, manifest in (search_manifests(run) | path_manifests(run)).items():
        searched[f"{manifest.task} as read for {folder.parent.name}"] = load_task(manifest.task, data_of(folder, manifest.data))
    healing = RunFolder(run).healing
    files = [file for file in (healing.asked, RunFolder(run).nested(1).asked) if file.is_file()]
    keys = {key for file in files for key in read_json(file, "heal again", list)}
    if healing.settings.is_file():
        asked = read_json(healing.settings, "heal again", dict)
        searched |= {f"{name} as read for healing": load_task(name, data_of(run, asked["data"])) for name in asked["tasks"]}
    learned = {one.task.name for one in searched.values()}
    found = {name: load_task(name, data) for name, data in read_from.items()}
    if split == "test":
        found |= {name: one.with_public_test() for name, one in found.items() if name not in learned}
    loaded = drop_overlaps(found | searched, searched, keys)
    return {name: loaded[name] for name in read_from}
