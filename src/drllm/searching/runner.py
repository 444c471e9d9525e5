"""Search the questions of each task, a shard of records a group, or ask them all along given routes; the same call resumes."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drllm.core.config import Resources, SearchConfig, to_dict
from drllm.core.errors import ArtifactError, InputError
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.model.routed import RoutedModel
from drllm.runs.labels import kept_in
from drllm.runs.layout import RunFolder
from drllm.runs.manifest import Manifest, check_manifest, computed_otherwise, read_manifest
from drllm.runs.provenance import alone_in, running
from drllm.runs.records import RECORD_SPLITS, RouteRecord, read_shard, shard_indices, shard_path
from drllm.runs.store import Asked
from drllm.scoring.asking import Ask, Bench, asking
from drllm.scoring.base import Question
from drllm.scoring.inquiries import Ticket, Wanted
from drllm.scoring.scorer import askable, asked_how, questions_digest, said_left_out, scorer_of
from drllm.searching.edits import random_routes
from drllm.searching.worker import Searching, question_seed
from drllm.tasks import LoadedTask, load_task

N_PROBED = 4  # questions, the base's logits on all of which must be broken for the model to be to blame


def search(
    routed: RoutedModel,
    tasks: Sequence[str | LoadedTask],
    config: SearchConfig | None = None,
    out: str | Path = "runs/search",
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    routes: Sequence[Route] | None = None,
    resources: Resources | None = None,
    finished_in_any_type: bool = False,
) -> Path:
    """Find good routes for the fit questions of each task; the same call resumes where an earlier one stopped. Returns the run folder.

    Args:
        routed: the model; its policy is not used.
        tasks: names; or tasks as they were loaded, such as with some of their questions only.
        out: the run folder; records go to `out/search/<task>/`, verdicts to `out/verdicts/`.
        data: a JSON-lines file, or a folder of them, to read the questions from instead of the data package or the Hub.
        routes: ask every question along these instead of searching: a dense (question x route) matrix, the base route first. Another call
            with other routes adds them.
        finished_in_any_type: a task that is searched to its end is taken as it is, also where that was done in another float type.

    Raises:
        InputError: a split that may not be searched, routes of another model's length.
        ArtifactError: `out` holds records of another model, data or configuration, or unreadable ones, or another search works there.
    """
    config, out = config or SearchConfig(), Path(out)
    routes = None if routes is None else tuple(dict.fromkeys(routes))
    check_splits(config.splits, routes is not None)
    if routes is not None and any(len(route) != routed.n_layers for route in routes):
        odd = next(route for route in routes if len(route) != routed.n_layers)
        hint = "" if odd.is_in_place else f"; a path that ends before the last block says so, {odd}/{routed.n_layers}"
        raise InputError(f"got routes of other lengths: {odd} has {len(odd)} blocks, the model {routed.n_layers}{hint}")
    loaded = [load_task(task, data) if isinstance(task, str) else task for task in tasks]
    with alone_in(out, "search"), asking(routed, out, resources or Resources()) as bench:
        settings = to_dict(config) | {"resources": to_dict(bench.resources)}
        with running(out, "search" if routes is None else "paths", settings, argv) as entry:
            entry["tasks"] = {}
            prepared = {one.task.name: _Prepared.of(bench, one, config, data) for one in loaded}
            if routes is None:
                _search(bench, prepared, finished_in_any_type, entry["tasks"])
            else:
                _answer(bench, prepared, routes, entry["tasks"])
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


def check_splits(splits: Sequence[str], with_routes: bool) -> None:
    """Refuse splits whose answers may not be read; given routes may be evaluated on more of them than may be searched."""
    allowed = RECORD_SPLITS if with_routes else ("fit",)
    for split in splits:
        if split not in allowed:
            hint = "only fit may be searched" if split in RECORD_SPLITS else f"choose from {', '.join(RECORD_SPLITS)}"
            raise InputError(f"split {split!r} cannot be used here: {hint}; a search learns from the answers it reads")
    if not splits:
        raise InputError("no split given: leave --splits out, or name one")


@dataclass(frozen=True)
class _Prepared:
    """One task: the questions that can be asked, each with its split; and id -> why not of others."""

    loaded: LoadedTask
    config: SearchConfig
    scorer: Any
    questions: list[Question]
    splits: list[str]
    skipped: dict[str, str]
    manifest: Manifest

    @classmethod
    def of(cls, bench: Bench, loaded: LoadedTask, config: SearchConfig, data: str | Path | None) -> "_Prepared":
        """`InputError` where no question can be asked, or the base's logits are broken on all."""
        routed, task = bench.routed, loaded.task
        scorer = scorer_of(routed, task, config, bench.resources.cache_bytes)
        found: list[tuple[Question, str]] = []
        skipped: dict[str, str] = {}
        for split in config.splits:
            rows = loaded.select(split, config.limit)
            lone = {example.id for example in rows if task.kind == "choice" and len(example.choices) == 1}
            questions, reasons = askable(scorer, task, [example for example in rows if example.id not in lone])
            found += [(question, split) for question in questions]
            skipped |= dict.fromkeys(sorted(lone), "one choice only, which is always right") | reasons
        if not found:
            raise InputError(f"{task.name} has no question that can be searched ({next(iter(skipped.values()), 'none given')})")
        if not config.keep:  # else in the order of the split, in which they are visited
            found.sort(key=lambda pair: (pair[0].n_tokens, pair[0].example.id))
        questions, splits = [question for question, _ in found], [split for _, split in found]
        conditions, (prompts, reader) = bench.conditions(scorer), asked_how(scorer)
        manifest = Manifest(
            task=task.name,
            kind=task.kind if task.is_own else None,
            source=loaded.source,
            data=None if data is None else str(data),
            model=routed.base_id,
            fingerprint=conditions.weights,
            dtype=conditions.dtype,
            device=bench.routed.device.type,
            threads=bench.resources.threads if bench.rounds_by_threads else None,
            config=to_dict(replace(config, prompts=prompts) if prompts else config),
            prompt_format=scorer.prompt_format,
            prompts=prompts,
            reader=reader,
            conditions=asdict(conditions),
            counts=Ask(scorer, task, config, "", [], []).counts,
            questions=questions_digest(questions),
            ids=[question.example.id for question in questions],
            asked=[question.digest for question in questions],
            splits=splits,
            skipped=skipped,
        )
        return cls(loaded, config, scorer, questions, splits, skipped, manifest)

    def counts(self, n_resumed: int) -> dict[str, Any]:
        found = {"source": self.loaded.source, "questions": len(self.questions), "skipped": len(self.skipped)}
        return found | {"dropped": dict(self.loaded.dropped), "resumed_groups": n_resumed}

    @property
    def notes(self) -> list[str]:
        """How many questions are left out, and why, in lines."""
        return said_left_out(self.loaded.task.name, (Counter(self.skipped.values()) + Counter(self.loaded.dropped)).elements())

    def ask(self, questions: Sequence[Question], split: str, routes: Sequence[Route]) -> Ask:
        """Some of its questions, all along the same routes."""
        return Ask(self.scorer, self.loaded.task, self.config, split, questions, [routes] * len(questions))

    def probe(self) -> None:
        """Refuse a model whose logits are NaN or infinite on all of some questions; a single such question is recorded as broken."""
        if len(self.questions) < N_PROBED:
            return
        probed = [self.questions[at * (len(self.questions) - 1) // (N_PROBED - 1)] for at in range(N_PROBED)]
        if all(verdict.broken for [verdict] in self.scorer.score_all(probed, [Route.full(self.scorer.routed.n_layers)])):
            found = f"the logits are NaN or infinite on all of {N_PROBED} questions ({probed[0].example.id}, ...)"
            raise InputError(f"{found}: try --dtype bfloat16 or float32, or another model")


def _answer(bench: Bench, prepared: dict[str, _Prepared], routes: Sequence[Route], told: dict[str, Any]) -> None:
    """Every question along the base's route and these, and those that an earlier call has listed."""
    asks = []
    for name, task in prepared.items():
        folder, full = RunFolder(bench.run).matrix(name), Route.full(bench.routed.n_layers)
        if not folder.is_dir():
            task.probe()
        manifest = check_manifest(folder, task.manifest.changed(paths=list(map(str, dict.fromkeys([full, *routes])))))
        listed = [Route.parse(text, len(full)) for text in manifest.paths or ()]
        for split in task.config.splits:
            mine = [question for question, of in zip(task.questions, task.splits, strict=True) if of == split]
            asks.append(task.ask(mine, split, listed))
        told[name] = task.counts(0)
        for note in task.notes:
            say(note)
    bench.ensure(asks, f"paths {next(iter(prepared)) if len(prepared) == 1 else f'{len(prepared)} tasks'}")


def _search(bench: Bench, prepared: dict[str, _Prepared], finished_in_any_type: bool, told: dict[str, Any]) -> None:
    """What is left of each task, by trees."""
    jobs: list[Searching] = []
    tickets: list[Ticket] = []
    notes, n_done = [], 0
    for name, task in prepared.items():
        config, folder, size = task.config, RunFolder(bench.run).search(name).resolve(), task.config.group_size
        starts = range(0, len(task.questions), size)
        groups = [[*zip(task.questions[at : at + size], task.splits[at : at + size], strict=True)] for at in starts]
        control: tuple[Route, ...] = ()
        if config.control and config.n_simulations:
            seed = question_seed(config.seed, name, "control")
            control = tuple(random_routes(bench.routed.n_layers, config.n_simulations, config, seed))
        done = set(shard_indices(folder))
        if not done:  # before there is a manifest that another dtype would not fit
            task.probe()
        manifest = task.manifest.changed(control=list(map(str, control)))
        as_it_is = finished_in_any_type and done >= set(range(len(groups))) and computed_otherwise(folder, manifest)
        there = read_manifest(folder) if as_it_is else check_manifest(folder, manifest)
        for index in sorted(done):  # what is unreadable or not of this search is refused now, not after hours
            _check_shard(shard_path(folder, index), groups[index] if index < len(groups) else [], there)
        told[name] = task.counts(len(done))
        notes += task.notes
        n_done += sum(len(groups[index]) for index in done)
        todo = [index for index in range(len(groups)) if index not in done]
        if not todo:
            continue
        left = tuple(question.digest for index in todo for question, _ in groups[index])
        made = (task.loaded.task, config, task.scorer.packed, task.scorer.shares_across_groups, bench.store.shards.folder)
        for index in todo:
            group = [Wanted(split, question.example) for question, split in groups[index]]
            tickets.append(Ticket(len(jobs), index, group, groups[index][-1][0].n_tokens))
        jobs.append(Searching(*made, manifest.under, folder, manifest.counts, left, control))

    @functools.cache
    def read(path: Path) -> list[RouteRecord]:
        """A shard's records, read once: it never changes, and is asked for before every group."""
        return read_shard(path, bench.store)

    def is_wanted(job: Any) -> bool:
        """Whether more groups are to be searched: no, where the search keeps a number of questions and has them."""
        return not job.config.keep or not kept_in(job.folder, job.config, read).is_enough

    label = f"search {next(iter(prepared)) if len(prepared) == 1 else f'{len(prepared)} tasks'}"
    for note in notes:
        say(note)
    bench.do(jobs, tickets, label, sum(len(task.questions) for task in prepared.values()), n_done, is_wanted)
    for name, task in prepared.items():
        if task.config.keep:
            kept = kept_in(RunFolder(bench.run).search(name).resolve(), task.config, read)
            found = f"{len(kept.records)} of {task.config.keep} kept, {kept.mended} of which mend a wrong answer"
            say(f"{name}: {found}; {len(kept.visited)} visited")


def _check_shard(path: Path, group: Sequence[tuple[Question, str]], manifest: Manifest) -> None:
    """Refuse a shard that is unreadable, or holds other records than the search of this manifest writes there."""
    records, config, again = read_shard(path), manifest.search_config, "remove it, and it is made again"
    wanted = [(Asked(manifest.task, split, question.example.id, question.digest), manifest.under) for question, split in group]
    if [(record.asked, record.conditions) for record in records] != wanted:
        raise ArtifactError(f"{path} holds records of other questions or another model than this search: {again}")
    for record in records:
        same = record.seed == config.seed
        if not record.broken:  # a broken question has neither control nor checks
            same = same and list(map(str, record.control_routes)) == manifest.control and bool(record.checks) == config.verify
        if not same:
            raise ArtifactError(f"{path} holds records made with other settings, or by an earlier drllm (question {record.id!r}): {again}")
