"""`scan()`: the map of a model. Every span is run again, or skipped, and raced; the best are measured again beside random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drllm.core.config import Resources, ScanConfig, to_dict
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json, write_json, write_text
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.core.text import type_name
from drllm.model.families import RESCALING, has_experts
from drllm.model.routed import RoutedModel
from drllm.runs.layout import RunFolder, ScanFolder
from drllm.runs.manifest import differences
from drllm.runs.provenance import running
from drllm.runs.scan_result import CLAIMED, RANDOM, WINNER, Cell, Cost, Measured, Said, ScanResult, read_scan, write_scan
from drllm.scanning.claims import Claim, claim, compared, stages_of
from drllm.scanning.measure import by_chance, means, measured
from drllm.scanning.questions import Questions, TaskQuestions, choose, least_sure_first
from drllm.scanning.race import Standing, by_round, first_and_of_kinds, race, schedule, scores
from drllm.scanning.spans import Candidate, candidates, forwards_a_question, random_spans
from drllm.scoring.asking import asking
from drllm.tasks import load_task

N_LISTED = 32  # routes of best.txt, at most
ORDER = "least sure first"  # of the questions of a race; one of the first version asked them as they came


def scan(
    routed: RoutedModel,
    tasks: Sequence[str],
    config: ScanConfig | None = None,
    out: str | Path = "runs/scan",
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    resources: Resources | None = None,
    claimed: Mapping[Route, Said] | None = None,
) -> ScanResult:
    """Map a model: what running each span of blocks once more, or skipping it, does to its answers. The same call resumes.

    All candidates answer a few questions, the better ones of each kind twice as many, and so on (`drllm.scanning.race`). The best are named
    and then measured again on questions that chose nothing, beside as many random spans of the same kinds and lengths: what is left of the
    lead, and what a span has that was drawn blindly. Each claim stands beside the same change at other blocks; earlier calls' claims stay.

    Args:
        routed: the model; its policy is not used.
        out: the run folder; all goes to `out/scan/`: `scan.json`, `map.csv`, and `best.txt`, a list for `drllm search --paths`.
        data: as of `drllm.search`.
        claimed: routes that somebody says help, and what is said of them; measured on the same new questions as the winners.

    Raises:
        InputError: too few questions, a route of another model's length.
        ArtifactError: `out` holds a scan of another model, or with other settings.
    """
    config, resources, out, claimed = config or ScanConfig(), resources or Resources(), Path(out), claimed or {}
    check_claims(claimed, config)
    if odd := [route for route in claimed if len(route) != routed.n_layers]:
        raise InputError(f"route {odd[0]} leads through {len(odd[0])} blocks, the model has {routed.n_layers}")
    loaded = {name: load_task(name, data) for name in tasks}
    folder = RunFolder(out).scan
    with (
        asking(routed, out, resources, scanning=True) as bench,
        running(out, "scan", to_dict(config) | {"resources": to_dict(bench.resources)}, argv),
    ):
        asked: dict[str, object] = {"model": routed.fingerprint, "dtype": type_name(routed.model.dtype)}
        asked |= {"order": ORDER, "tasks": list(loaded), "data": None if data is None else str(data)} | to_dict(config)
        _check_settings(folder, asked)
        for note in _notes(routed):
            say(f"scan: {note}")
        raced, fresh = choose(routed, loaded, config)
        if not folder.settings.is_file():  # not before the questions are known to be enough
            folder.root.mkdir(parents=True, exist_ok=True)
            write_json(folder.settings, asked)
        return _Scan(Questions(bench, loaded, config), folder, raced, fresh).run(claimed)


def check_claims(claimed: Mapping[Route, Said], config: ScanConfig) -> None:
    """Refuse what measures nothing: no race and no claim, or a claim without questions to measure it on."""
    if not config.questions and not claimed:
        raise InputError("--questions 0 races nothing: name a route to measure with --claimed, or ask for questions")
    if claimed and not config.fresh:
        raise InputError("--claimed needs questions to measure the route on: leave --fresh 0 out")


def _notes(routed: RoutedModel) -> Iterator[str]:
    """What the reader of a map should know of the model."""
    if has_experts(routed.config):
        yield "a mixture of experts rounds by what else is in a step: spans of nearly equal score may change places in another run"
    if routed.config.model_type in RESCALING:
        yield f"blocks of {routed.config.model_type} scale the states they are given, so a loop scales them once more"


def _check_settings(folder: ScanFolder, settings: dict[str, object]) -> None:
    """Refuse to go on with another scan's rounds."""
    if not folder.settings.is_file():
        if folder.root.is_dir() and any(folder.root.iterdir()):
            raise ArtifactError(f"{folder.root} holds a scan without {folder.settings.name}, which says of what: use another --out")
        return
    found = read_json(folder.settings, "remove that folder and scan again", dict)
    for key, before, now in differences(found, settings):
        raise ArtifactError(f"{folder.root} was scanned with {key} = {before}, now it is {now}: use another --out, or the same settings")


@dataclass
class _Scan:
    """One scan under way."""

    questions: Questions
    folder: ScanFolder
    raced: TaskQuestions
    fresh: TaskQuestions

    def __post_init__(self) -> None:
        self.config, self.n_layers = self.questions.config, self.questions.bench.routed.n_layers
        self.pool = candidates(self.n_layers, self.config.kinds, self.config.strength, self.config.max_span)
        self.sizes = schedule(len(self.raced), self.config.first_questions) if self.raced else []
        self.cost = Cost(race=0, full=self._forwards(self.pool, len(self.raced)), random=0, fresh=0)

    def run(self, claimed: Mapping[Route, Said]) -> ScanResult:
        said = {**self._claimed_before(), **claimed}
        claims = [claim(route, self.config) for route in said]
        for name, forwards in stages_of(self.n_layers, len(self.raced), len(self.fresh), claims, self.config).items():
            say(f"scan: about {forwards:,.0f} plain forwards for {name}")
        standing = self._race() if self.raced else None
        winners = [] if standing is None else self._winners(standing)
        whole = candidates(self.n_layers, self.config.kinds, self.config.strength)  # random spans of the winners' kinds and lengths
        rivals = random_spans(winners, whole, self.config.seed) if self.fresh and winners else []
        rows, by_group = self._measure(standing, winners, rivals)
        for one in claims:
            part, beside = self._claim(one)
            rows, by_group = rows + [row.changed(**said[one.one.route]._asdict()) for row in part], by_group + beside
        say(f"scan: in all {self.cost.total:,.0f} plain forwards")
        result = self._result(rows, by_group, standing)
        write_scan(self.folder, result, self._cells(standing))
        return result

    def _forwards(self, chosen: Sequence[Candidate], n_questions: int) -> float:
        """Plain forwards that so many questions cost along the base's route and these."""
        return n_questions * forwards_a_question(self.n_layers, chosen)

    def _order(self) -> None:
        """Ask the base first, and the questions that it is least sure of before the others, where answers have margins."""
        say(f"scan: the base on {len(self.raced)} questions; the race begins with those whose margins are smallest")
        _, margins = self.questions.ask([Route.full(self.n_layers)], self.raced, self.config.split, "scan: the base")
        order = least_sure_first([task for task, _ in self.raced], margins[:, 0])
        self.raced = [self.raced[place] for place in order]
        self.cost = self.cost.changed(race=self._forwards([], len(self.raced)))

    def _race(self) -> Standing:
        self._order()
        number = 0

        def ask(alive: list[int], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            nonlocal number
            number += 1
            chosen = [self.pool[one] for one in alive]
            say(f"scan: round {number} of {len(self.sizes)}: {len(alive)} candidates, {stop - start} new questions")
            self.cost = self.cost.changed(race=self.cost.race + self._forwards(chosen, stop - start))
            asked = self.raced[start:stop]
            return self.questions.ask([one.route for one in chosen], asked, self.config.split, f"scan: round {number}")

        standing = race([one.kind for one in self.pool], self.sizes, self.config.winners, ask)
        share = f", {self.cost.share:.0%} of asking every span every question" if len(self.sizes) > 1 else ""
        say(f"scan: the race cost {self.cost.race:,.0f} plain forwards{share}")
        self._write_best(standing)
        return standing

    def _winners(self, standing: Standing) -> list[Candidate]:
        """The best of all, then the best of each kind that is not among them."""
        ranked = [self.pool[one] for one in standing.ranking]
        return [ranked[place] for place in first_and_of_kinds([one.kind for one in ranked], self.config.winners)]

    def _write_best(self, standing: Standing) -> None:
        """The routes of the last round, before any further question is read."""
        lines = [f"# the best of {len(self.pool)} candidates on {len(self.raced)} questions, the best first; for drllm search --paths"]
        for one in standing.ranking[:N_LISTED]:
            found = self.pool[one]
            lines.append(f"{found.route}  # {found.kind} {found.first}-{found.last}, score {standing.score_C[one]:+.4f}")
        write_text(self.folder.best, "\n".join(lines) + "\n")

    def _claimed_before(self) -> dict[Route, Said]:
        """Claims that an earlier call measured here, which stay."""
        if not self.folder.result.is_file():
            return {}
        rows = read_scan(self.folder).in_group(CLAIMED)
        return {Route.parse(row.route, self.n_layers): Said(row.gain, row.source) for row in rows}

    def _claim(self, one: Claim) -> tuple[list[Measured], list[Measured]]:
        self.cost = self.cost.changed(fresh=self.cost.fresh + one.forwards(len(self.fresh)))
        found, _ = self.questions.ask(one.routes, self.fresh, self.config.fresh_split, "scan: claims")
        return compared(one, found, [task for task, _ in self.fresh], self.config)

    def _measure(
        self, standing: Standing | None, winners: list[Candidate], rivals: list[Candidate]
    ) -> tuple[list[Measured], list[Measured]]:
        """The rows of the comparison, and the means over winners and random spans."""
        verdicts: dict[tuple[str, bool], np.ndarray] = {}  # (group, fresh) -> (Q, 1 + R)
        if standing is not None:
            places = [standing.last.index(self.pool.index(one)) for one in winners]
            verdicts[WINNER, False] = standing.verdicts_QR[:, [0, *(1 + place for place in places)]]
        if standing is not None and rivals:
            say(f"scan: {len(rivals)} random spans on the {len(self.raced)} questions that chose")
            found, margins = self.questions.ask([one.route for one in rivals], self.raced, self.config.split, "scan: random spans")
            self.cost = self.cost.changed(random=self._forwards(rivals, len(self.raced)))
            order = np.argsort(-scores(found, margins)[:, 1:].mean(0), kind="stable")  # as the winners are: the best of them first
            rivals = [rivals[place] for place in order]
            verdicts[RANDOM, False] = found[:, [0, *(1 + order)]]
        groups = {WINNER: winners, RANDOM: rivals}
        both = [one for part in groups.values() for one in part]
        if self.fresh and both:
            say(f"scan: {len(winners)} winners and {len(rivals)} random spans on {len(self.fresh)} questions that chose nothing")
            self.cost = self.cost.changed(fresh=self._forwards(both, len(self.fresh)))
            found, _ = self.questions.ask([one.route for one in both], self.fresh, self.config.fresh_split, "scan: measuring again")
            verdicts[WINNER, True] = found[:, : 1 + len(winners)]
            verdicts[RANDOM, True] = found[:, [0, *range(1 + len(winners), 1 + len(both))]]
        tasks = {False: [task for task, _ in self.raced], True: [task for task, _ in self.fresh]}
        rows = [row for group, part in groups.items() for row in measured(group, part, verdicts, tasks, self.config)]
        return rows, means(groups, verdicts, tasks, self.config)

    def _result(self, rows: list[Measured], by_group: list[Measured], standing: Standing | None) -> ScanResult:
        routed, config = self.questions.bench.routed, self.config
        kinds = [] if standing is None else [self.pool[one].kind for one in standing.last]
        return ScanResult(
            model=routed.base_id,
            fingerprint=routed.fingerprint,
            dtype=type_name(routed.model.dtype),
            n_layers=self.n_layers,
            kinds=list(config.kinds),
            strength=config.strength,
            tasks=list(self.questions.loaded),
            sources={name: task.source for name, task in self.questions.loaded.items()},
            split=config.split,
            fresh_split=config.fresh_split,
            sizes=self.sizes,
            candidates=by_round([one.kind for one in self.pool], len(self.sizes), config.winners) if self.sizes else [],
            cost=self.cost,
            rows=rows,
            means=by_group,
            chance=None if standing is None else by_chance(standing.verdicts_QR, standing.margins_QR, kinds, config),
            notes=list(_notes(routed)),
        )

    def _cells(self, standing: Standing | None) -> list[Cell]:
        """Every candidate, by kind, then by its span."""
        if standing is None:
            return []
        cells = []
        for at, one in enumerate(self.pool):
            place = {"kind": one.kind, "first": one.first, "last": one.last, "route": str(one.route), "passes": one.route.n_passes}
            scored = float(standing.score_C[at]), float(standing.accuracy_C[at])
            cells.append(Cell(**place, questions=int(standing.n_C[at]), score=scored[0], accuracy=scored[1]))
        return sorted(cells, key=lambda cell: (self.config.kinds.index(cell.kind), cell.first, cell.last))
