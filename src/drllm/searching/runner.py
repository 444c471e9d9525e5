"""Search the questions of each task and write a shard of records a group; the same call resumes.

Everything that determines the records is settled first and written as the manifest of the task folder; then groups are searched, in this
process task by task, or by workers all together, in any order, each ending in one atomic shard.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from drllm.core.config import Resources, SearchConfig, to_dict
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import write_json
from drllm.core.progress import Progress, say
from drllm.core.route import Route
from drllm.model.executors import opened, settled
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads
from drllm.runs.alone import alone_in
from drllm.runs.kept import kept_in
from drllm.runs.layout import PRIOR_FILE, SWEEP_FILE, RunFolder
from drllm.runs.manifest import Manifest, check_manifest, computed_otherwise
from drllm.runs.provenance import running
from drllm.runs.records import read_shard, shard_indices, shard_path, write_shard
from drllm.scoring.generated import DECODED_ANSWERS
from drllm.scoring.scorer import askable, asked_how, questions_digest, said_left_out
from drllm.searching.on_workers import Prepared, search_on_workers, task_progress
from drllm.searching.prior import EditPrior, SweepAnswers, random_routes, read_prior
from drllm.searching.worker import Group, Job, Worker, memory_in_one_line, question_seed
from drllm.tasks import LoadedTask, load_task

N_PROBED = 4  # questions, the base's logits on all of which must be broken for the model to be to blame
MATRIX_SPLITS = ("fit", "tune", "calibrate")


def search(
    routed: RoutedModel,
    tasks: Sequence[str | LoadedTask],
    config: SearchConfig | None = None,
    out: str | Path = "runs/search",
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    routes: Sequence[Route] | None = None,
    resources: Resources | None = None,
    list_name: str = "",
    finished_in_any_type: bool = False,
) -> Path:
    """Find good routes for the fit questions of each task; the same call resumes where an earlier one stopped. Returns the run folder.

    Args:
        routed: the model; its policy is not used.
        tasks: task names; or tasks as they were loaded, such as with some of their questions only.
        config: every option that shapes the records; default `SearchConfig()`.
        out: the run folder; records go to `out/search/<task>/`, with `routes` to `out/paths/<task>/`.
        data: a JSON-lines file, or a folder of them, to read the questions from instead of the data package or the Hub.
        routes: evaluate these on every question instead of searching: a dense (question x route) matrix, the base route first.
        resources: executor, threads, memory; default `Resources()`.
        list_name: of `routes`, where the run has another list already: records go to `out/paths/<task>.<list_name>/`, and methods take
            the routes of all lists that were evaluated on the same questions.
        finished_in_any_type: a task that is searched to its end is taken as it is, also where that was done in another float type.

    Raises:
        InputError: a split that may not be searched, routes of another model's length.
        ArtifactError: `out` holds records of another model, data or configuration, or unreadable ones, or another search works there.
    """
    config, resources, out = config or SearchConfig(), resources or Resources(), Path(out)
    routes = None if routes is None else tuple(dict.fromkeys(routes))
    check_splits(config.splits, routes is not None)
    check_list_name(list_name, routes is not None)
    if routes is not None and any(len(route) != routed.n_layers for route in routes):
        odd = next(route for route in routes if len(route) != routed.n_layers)
        hint = "" if odd.is_in_place else f"; a path that ends before the last block says so, {odd}/{routed.n_layers}"
        raise InputError(f"got routes of other lengths: {odd} has {len(odd)} blocks, the model {routed.n_layers}{hint}")
    resources = settled(routed, resources)
    given = (load_task(task, data) if isinstance(task, str) else task for task in tasks)
    loaded = {found.task.name: found for found in given}
    run = RunFolder(out)
    job, settings = "search" if routes is None else "paths", to_dict(config) | {"resources": to_dict(resources)}
    with (
        alone_in(out, "search"),
        torch_threads(resources.threads),
        opened(routed, resources) as place,
        running(out, job, settings, argv) as entry,
    ):
        entry["tasks"] = {}
        prepared = []
        for name, task_data in loaded.items():
            folder = run.search(name) if routes is None else run.matrix(name, list_name)
            task, counts = _prepare(routed, task_data, config, resources, folder, data, routes, finished_in_any_type)
            entry["tasks"][name] = counts
            if place is None:
                _search_here(routed, resources, task)
            prepared.append(task)
        if place is not None and any(task.todo for task in prepared):
            search_on_workers(place, routed, resources, prepared)
        for task in prepared if config.keep and routes is None else ():
            kept = kept_in(task.folder, config)
            said = f"{len(kept.records)} of {config.keep} kept, {kept.mended} of which mend a wrong answer; {len(kept.visited)} visited"
            say(f"{task.job.task.name}: {said}")
    return out


def read_routes(path: str | Path) -> list[Route]:
    """The routes of a text file, one a line; blank lines and what follows a # are left out.

    Raises `InputError`, naming the line, for anything else, for routes of unequal length, and when there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): --paths expects a text file with one route a line") from None
    routes = []
    for number, line in enumerate(lines, 1):
        if not (text := line.partition("#")[0].strip()):
            continue
        try:
            routes.append(Route.parse(text))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if len(routes[-1]) != len(routes[0]):
            hint = "" if text.isdigit() else f": write {text}/{len(routes[0])} if it skips the last ones"
            raise InputError(
                f"{path}, line {number}: the route has {len(routes[-1])} blocks, the ones before it have {len(routes[0])}{hint}"
            )
    if not routes:
        raise InputError(f"{path} holds no route: write one a line, as digits or as a path")
    return routes


def check_list_name(list_name: str, with_routes: bool) -> None:
    """Refuse a name for what is no list of routes, or one that is no folder's."""
    if list_name and not with_routes:
        raise InputError(f"--list {list_name} names a list of routes: give the list too, --paths FILE")
    if list_name and not re.fullmatch(r"[A-Za-z0-9_-]+", list_name):
        raise InputError(f"--list is {list_name!r}, expected letters, digits, - and _")


def check_splits(splits: Sequence[str], with_routes: bool) -> None:
    """Refuse splits whose answers may not be read; given routes may be evaluated on more of them than may be searched."""
    allowed = MATRIX_SPLITS if with_routes else ("fit",)
    for split in splits:
        if split not in allowed:
            hint = "only fit may be searched" if split in MATRIX_SPLITS else f"choose from {', '.join(MATRIX_SPLITS)}"
            raise InputError(f"split {split!r} cannot be used here: {hint}; a search learns from the answers it reads")
    if not splits:
        raise InputError("no split given: leave --splits out, or name one")


def _prepare(
    routed: RoutedModel,
    task_data: LoadedTask,
    config: SearchConfig,
    resources: Resources,
    folder: Path,
    data: str | Path | None,
    routes: tuple[Route, ...] | None,
    finished_in_any_type: bool,
) -> tuple[Prepared, dict[str, Any]]:
    """What is left to do of one task, its manifest checked or written; and what `run.json` says of it."""
    name, n_layers = task_data.task.name, routed.n_layers
    control: tuple[Route, ...] = ()
    if config.control and routes is None and config.n_simulations:
        control = tuple(random_routes(n_layers, config.n_simulations, config, question_seed(config.seed, name, "control")))
    job = Job(task_data.task, config, None, routes, control)
    planning = Worker(routed, job, resources)
    groups, questions, skipped = _groups(planning, task_data, config)
    done = set(shard_indices(folder))
    if not done and len(questions) >= N_PROBED:  # before there is a manifest that another dtype would not fit
        planning.probe([questions[at * (len(questions) - 1) // (N_PROBED - 1)].example for at in range(N_PROBED)])
    weights = routed.fingerprint  # once: it reads every tensor
    device = "cuda" if resources.executor == "ray" and resources.worker_gpus else routed.device.type
    prompts, reader = asked_how(planning.scorer)
    manifest = Manifest(
        task=name,
        kind=task_data.task.kind if task_data.task.is_own else None,
        source=task_data.source,
        data=None if data is None else str(data),
        model=routed.base_id,
        fingerprint=weights,
        dtype=str(routed.model.dtype),
        device=device,
        # Where they can flip a verdict: matrix products of 16-bit types on the CPU round by how they are shared out.
        threads=resources.threads if device == "cpu" and routed.model.dtype.itemsize == 2 else None,
        packed=planning.scorer.packed,
        config=to_dict(config),
        prompt_format=planning.scorer.prompt_format,
        prompts=prompts,
        reader=reader,
        questions=questions_digest(questions),
        ids=[question.example.id for question in questions],
        skipped=skipped,
        paths=None if routes is None else [str(route) for route in routes],
        control=[str(route) for route in control],
        decoded_rows=None if planning.scorer.shares_across_groups else DECODED_ANSWERS,
    )
    if not (finished_in_any_type and done >= set(range(len(groups))) and computed_otherwise(folder, manifest)):
        check_manifest(folder, manifest)
    for index in sorted(done):  # what is unreadable or not of this search is refused now, not after hours
        _check_shard(shard_path(folder, index), groups[index] if index < len(groups) else [], job, weights)
    counts = {"questions": len(questions), "skipped": len(skipped), "dropped": dict(task_data.dropped), "resumed_groups": len(done)}
    # The longest first: what does not fit memory shows at once, and towards the end no worker is left with a long one.
    todo = [(index, group) for index, group in enumerate(groups) if index not in done][:: 1 if config.keep else -1]
    if todo and config.preset == "default" and routes is None:
        job = replace(job, prior=_prior(planning, questions, folder))
    notes = said_left_out(name, (Counter(skipped.values()) + Counter(task_data.dropped)).elements())
    lengths = [
        questions[min(start + config.group_size, len(questions)) - 1].n_tokens for start in range(0, len(questions), config.group_size)
    ]
    n_done = sum(len(groups[index]) for index in done)
    left = Prepared(job, folder, planning.scorer.packed, planning.scorer.shares_across_groups, todo, lengths, len(questions), n_done, notes)
    return left, {"source": task_data.source, **counts}


def _search_here(routed: RoutedModel, resources: Resources, task: Prepared) -> None:
    """What is left of one task, in this process."""
    with task_progress([task]) as progress, memory_in_one_line():
        groups = takewhile(lambda _: task.is_wanted, task.todo)
        found = Worker(routed, task.job, resources).search(groups, lambda judged: progress.tell(str(judged))) if task.todo else ()
        for index, records in found:
            write_shard(task.folder, index, records)
            progress.advance(len(records))


def _check_shard(path: Path, group: Group, job: Job, fingerprint: str) -> None:
    """Refuse a shard that is unreadable, or holds other records than this search writes there."""
    records = read_shard(path)
    again = "remove it, and it is made again"
    wanted = [(job.task.name, split, example.id, fingerprint) for split, example in group]
    if [(record.task, record.split, record.id, record.fingerprint) for record in records] != wanted:
        raise ArtifactError(f"{path} holds records of other questions or another model than this search: {again}")
    for record in records:
        same = (record.seed, record.reward) == (job.config.seed, job.reward)
        if not record.broken and job.routes is None:  # a broken question has neither control nor checks
            same = same and record.control_routes == job.control and bool(record.checks) == job.config.verify
        if not record.broken and job.routes is not None:
            same = same and record.routes == tuple(dict.fromkeys((Route.full(len(record.routes[0])), *job.routes)))
        if not same:
            raise ArtifactError(f"{path} holds records made with other settings, or by an earlier drllm (question {record.id!r}): {again}")


def _groups(worker: Worker, task_data: LoadedTask, config: SearchConfig) -> tuple[list[Group], list[Any], dict[str, str]]:
    """Groups of questions of similar length, the questions in that order, and id -> reason of those left out."""
    found: list[tuple[Any, str]] = []
    skipped: dict[str, str] = {}
    for split in config.splits:
        rows = task_data.select(split, config.limit)
        lone = {example.id for example in rows if task_data.task.kind == "choice" and len(example.choices) == 1}
        questions, reasons = askable(worker.scorer, task_data.task, [example for example in rows if example.id not in lone])
        found += [(question, split) for question in questions]
        skipped |= dict.fromkeys(sorted(lone), "one choice only, which is always right") | reasons
    if not found:
        raise InputError(f"{task_data.task.name} has no question that can be searched ({next(iter(skipped.values()), 'none given')})")
    if not config.keep:  # else in the order of the split, in which they are visited
        found.sort(key=lambda pair: (pair[0].n_tokens, pair[0].example.id))
    size = config.group_size
    groups = [[(split, question.example) for question, split in found[start : start + size]] for start in range(0, len(found), size)]
    return groups, [question for question, _ in found], skipped


def _prior(worker: Worker, questions: Sequence[Any], folder: Path) -> EditPrior | None:
    """The prior over edits: read back, or from a sweep over some questions of all lengths, which resumes."""
    n_questions = min(worker.job.config.sweep_questions, len(questions))
    if not n_questions:
        return None
    if not (folder / PRIOR_FILE).is_file():
        with Progress(f"single edits {worker.job.task.name}", n_questions) as progress:
            progress.print(f"trying every single edit on {n_questions} questions first")
            examples = [questions[at * len(questions) // n_questions].example for at in range(n_questions)]
            prior = worker.sweep(examples, progress, answered := SweepAnswers(folder / SWEEP_FILE))
        write_json(folder / PRIOR_FILE, prior.to_json())
        answered.remove()
    return read_prior(folder)
