"""`recommend()`: try every kind of policy that can be deployed, name the best on tune, promise on calibrate, or keep the base.

| policy | what it is made from |
|---|---|
| static | the best of the scan's routes on fit and tune questions |
| looped | the scan's best span that runs once more |
| codebook | the scan's routes, of which a selector takes one a prompt |
| routers | the same routes, from which a router a block learns |
| paper | the paper's search, and its routers |
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import GuaranteeConfig, RetrofitConfig, RoutersConfig, ScanConfig, SearchConfig, to_dict
from drllm.core.errors import ArtifactError, BudgetError, InputError, UnsupportedModelError
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.evaluation.calibrate import calibrate
from drllm.evaluation.clock import plain_ms, throughput
from drllm.evaluation.fit import fit_policy, under_policy
from drllm.evaluation.run import evaluate
from drllm.methods.base import pass_limit
from drllm.methods.codebook import CodebookConfig
from drllm.methods.static import StaticConfig
from drllm.methods.training_data import TrainingData
from drllm.model.routed import RoutedModel
from drllm.model.threads import torch_threads
from drllm.policies.saved import load_policy
from drllm.reporting.report import report
from drllm.retrofitting.sizes import N_LISTED, SIMULATIONS, Sizes, sizes_of
from drllm.retrofitting.stages import Stages, data_key
from drllm.runs.layout import RunFolder
from drllm.runs.load import read_summary
from drllm.runs.memo import Memo
from drllm.runs.names import BASE
from drllm.runs.recommendation import Recommendation, write_recommendation
from drllm.runs.summary import SummaryRow
from drllm.scanning.scan import scan
from drllm.scoring.scorer import scorer_of
from drllm.searching.runner import read_routes, search
from drllm.tasks import drop_overlaps, load_task

RECOMMENDED = "recommended"  # the policy's folder
NEAR = 0.5  # passes above the budget that still keep to it
SAVES = 0.05  # passes a prompt that are worth a word
ROUNDS, CLOCK_TOKENS, ANSWER_TOKENS = 8, 16, 48
LOOP = "loop"


def recommend(
    routed: RoutedModel,
    tasks: Sequence[str],
    out: str | Path,
    configs: Mapping[str, Any],
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[Recommendation, dict[str, Any]]:
    """Scan, train every policy that fits into the time, compare them on tune, test the best on calibrate, and report.

    A stage that an earlier call finished is recognised, as in `retrofit`; what fits into the time is settled once and kept.

    Args:
        routed: the model; its policy is not used, and stays what it was.
        tasks: task names.
        out: the run folder.
        configs: by section: `retrofit`, `search`, `resources`, `evaluate`, `gate` (epsilon and delta of the promise).
        data: a file or folder with the questions.
        argv: the command line, for `run.json`.

    Raises:
        InputError: too little time, too few questions, or `out` holds a retrofit by another recipe.

    Returns:
        The recommendation, also in `out/recommendation.json`; and summary (of tune), answer (one question by the base and by the policy),
        report, skipped (names of the stages that were done already).
    """
    resources, finished = configs["resources"], Memo(RunFolder(Path(out)).finished, "stages")
    if "search" in finished and "scan" not in finished:
        raise InputError(f"{out} holds a retrofit by the paper's recipe: go on with --recipe paper, or give another --out")
    with torch_threads(0 if resources.executor == "ray" else resources.threads):
        return _Tries(routed, list(tasks), RunFolder(Path(out)), dict(configs), data, argv).run_all()


@dataclass
class _Tries:
    """One recommendation under way."""

    routed: RoutedModel
    tasks: list[str]
    run: RunFolder
    of: dict[str, Any]
    data: str | Path | None
    argv: Sequence[str] | None
    missed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked: RetrofitConfig = self.of["retrofit"]
        self.kept, self.started = self.asked.kept, time.monotonic()
        key = [self.routed.fingerprint, str(self.routed.model.dtype), self.tasks, data_key(self.data), to_dict(self.asked)]
        self.stages = Stages(self.run, key)

    @property
    def judged(self) -> dict[str, Any]:
        """How answers are judged, of every stage."""
        return {name: getattr(self.of["search"], name) for name in ("reward", "metric", "max_new_tokens", "max_step_tokens")}

    @cached_property
    def sizes(self) -> Sizes:
        """What fits into the time, settled by the first call."""
        return Sizes(**self.stages.run("what fits into the time", self.judged, [], self._sizes))

    def _sizes(self) -> dict[str, Any]:
        loaded = drop_overlaps({name: load_task(name, self.data) for name in self.tasks})
        available = {name: {split: len(rows) for split, rows in one.examples.items()} for name, one in loaded.items()}
        spent = plain_ms(self.routed, self.tasks, self.judged["reward"], None if self.data is None else str(self.data))
        found = sizes_of(self.routed.n_layers, spent, self.asked.minutes, available, self.asked.kinds)
        say(f"the base takes {spent:.0f} ms a question; a scan on {found.scanned} questions, {found.tuned} tune questions a task")
        return found.to_json()

    def run_all(self) -> tuple[Recommendation, dict[str, Any]]:
        """Every stage."""
        self._scan()
        self._list()
        self._train()
        tried = [name for name in ("static", "looped", "codebook", "routers", "paper") if self._is_there(name)]
        dealt = [f"shuffled-{name}" for name in tried if name in ("codebook", "routers", "paper")]
        split = self._compare("tune", [BASE, *tried, *dealt], self.sizes.tuned)
        summary = read_summary(self.run.summary(split))
        best = self._best({row.method: row for row in summary.pooled}, tried)
        found = self._promised(best, tried) if best is not None else self._recommendation(None, tried)
        write_recommendation(self.run.recommendation, found)
        answer = self.stages.run("generate", {"tokens": ANSWER_TOKENS, "deploy": found.deploy}, [], lambda: self._answer(found.deploy))
        written = self.stages.run("report", {"as": "page", "found": found.to_json()}, [self.run.report], lambda: report(self.run.root).name)
        return found, {"summary": summary, "answer": answer, "report": self.run.report / written, "skipped": self.stages.skipped}

    def _scan(self) -> None:
        sizes = self.sizes
        config = ScanConfig(self.asked.kinds, questions=sizes.scanned, max_span=sizes.max_span, fresh=0, **self.judged)

        def work() -> str:
            scan(self.routed, self.tasks, config, self.run.root, self.data, self.argv, self.of["resources"])
            return str(self.run.scan.best.name)

        self.stages.run("scan", to_dict(config), [self.run.scan.root], work)

    @cached_property
    def routes(self) -> list[Route]:
        """The scan's best, the base first."""
        full = Route.full(self.routed.n_layers)
        return [full, *(route for route in read_routes(self.run.scan.best)[:N_LISTED] if route != full)]

    def _list(self) -> None:
        config = SearchConfig(splits=("fit", "tune"), limit=self.sizes.listed, verify=False, **self.judged)
        given = (self.routed, self.tasks, config, self.run.root, self.data, self.argv, self.routes, self.of["resources"])
        self.stages.run("the best routes on every question", to_dict(config), [self.run.matrices], lambda: str(search(*given)))

    def _train(self) -> None:
        """Every policy; one that cannot be made is named with the reason."""
        budget = {"budget": self.kept}
        self._make("static", StaticConfig(use_tune=True, **budget))
        self._make("looped", {"kept": self.kept}, self._looped)
        self._make("codebook", CodebookConfig(**budget))
        self._make("routers", RoutersConfig(**budget))
        if not self.sizes.searched:
            self.missed["paper"] = f"its search does not fit into {self.asked.minutes:g} minutes"
            return
        config = replace(self.of["search"], limit=self.sizes.searched, n_simulations=SIMULATIONS)
        given = (self.routed, self.tasks, config, self.run.root, self.data, self.argv)
        self.stages.run("search", to_dict(config), [self.run.searches], lambda: str(search(*given, resources=self.of["resources"])))
        self._make("paper", RoutersConfig(preset="paper"), method="routers")

    def _make(self, name: str, config: Any, work: Callable[[], None] | None = None, method: str = "") -> None:
        def fit() -> dict[str, str]:
            try:
                if work is None:
                    fit_policy(self.routed, self.run.root, method or name, config, self.argv, tasks=self.tasks, name=name)
                else:
                    work()
            except (InputError, ArtifactError, UnsupportedModelError) as error:  # refused in one line, which the box names
                return {"missed": str(error)}
            return {}

        settings = config if isinstance(config, dict) else to_dict(config)
        if found := self.stages.run(f"train {name}", settings, [self.run.policy(name)], fit):
            self.missed[name] = found["missed"]

    def _looped(self) -> None:
        looped = [route for route in self.routes if route.loops and route.n_passes <= pass_limit(self.kept, self.routed.n_layers)]
        if not looped:
            raise BudgetError("no span that runs once more is among the scan's best within the budget")
        policy = TrainingData(self.routed, self.run.root, self.tasks).constant(looped[0])
        with under_policy(self.routed, policy):
            self.routed.save_pretrained(self.run.policy("looped"))

    def _is_there(self, name: str) -> bool:
        return name not in self.missed and self.run.policy(name) in self.run.policies()

    def _compare(self, split: str, methods: Sequence[str], limit: int) -> str:
        """Name of the evaluation's folder."""
        config = replace(self.of["evaluate"], split=split, limit=limit, **self.judged)
        given = (self.routed, methods, self.tasks, self.run.root, config, self.data, self.argv, self.of["resources"])
        settings = to_dict(config) | {"methods": list(methods)}
        self.stages.run(f"compare on {split}", settings, [self.run.evaluation(config.folder)], lambda: evaluate(*given).split)
        return config.folder

    def _best(self, rows: Mapping[str, SummaryRow], tried: Sequence[str]) -> SummaryRow | None:
        """The policy named on tune: of those within the budget that gain or save anything, the most right answers, then fewest passes."""
        limit = pass_limit(self.kept, self.routed.n_layers) + NEAR
        saves = [name for name in tried if rows[name].mean_passes < self.routed.n_layers - SAVES]
        useful = [name for name in tried if rows[name].mean_passes <= limit and (rows[name].difference > 0 or name in saves)]
        return max((rows[name] for name in useful), key=lambda row: (row.difference, -row.mean_passes), default=None)

    def _promised(self, best: SummaryRow, tried: list[str]) -> Recommendation:
        """What calibrate questions say of the policy that tune named."""
        calibrated = self.sizes.calibrated
        split = self._compare("calibrate", [BASE, best.method], calibrated)
        row = next(row for row in read_summary(self.run.summary(split)).pooled if row.method == best.method)
        gate: GuaranteeConfig = self.of["gate"]
        config = GuaranteeConfig("calibrate", gate.epsilon, gate.delta, calibrated)

        def test() -> dict[str, Any]:
            policy = load_policy(self.run.policy(best.method), self.routed.identity)
            chosen, found = calibrate(self.routed, self.run.root, policy, config, self.argv, self.tasks)
            if found.point is not None:
                with under_policy(self.routed, chosen):
                    self.routed.save_pretrained(self.run.policy(RECOMMENDED))
            return {"promise": found.sentence, "promised": found.point is not None, "is_static": chosen.route is not None}

        tested = self.stages.run("promise", to_dict(config) | {"policy": best.method}, [], test)
        clock = self.stages.run("seconds", {"policy": best.method, "tokens": CLOCK_TOKENS}, [], lambda: self._seconds(best.method))
        deploy = tested["promised"] and (row.is_gain is True or row.mean_passes < self.routed.n_layers - SAVES)
        return self._recommendation(best, tried, deploy=RECOMMENDED if deploy else "", calibrate=row, **tested, **clock)

    def _recommendation(self, best: SummaryRow | None, tried: list[str], **found: Any) -> Recommendation:
        about = {"model": self.routed.base_id, "objective": self.asked.objective, "kept": self.kept, "tried": tried, "tune": best}
        spent = self.stages.seconds / 60
        named = {"deploy": "", "best": best.method if best is not None else ""} | found
        return Recommendation(**about, **named, missed=self.missed, minutes=round(spent, 2), sizes=self.sizes.to_json())

    def _seconds(self, name: str) -> dict[str, float]:
        """An answer's seconds against the base's, one prompt at a time, in turns on tune questions."""
        data = TrainingData(self.routed, self.run.root, self.tasks)
        prompts = [list(question.context_ids) for _, questions in data.tune(ROUNDS) for question in questions]
        policy: Any = load_policy(self.run.policy(name), self.routed.identity)
        policy = policy.to(self.routed.device) if hasattr(policy, "to") else policy
        [row] = throughput(self.routed, policy, prompts, (1,), CLOCK_TOKENS, ROUNDS)
        return {key: row[key] for key in ("ratio", "ratio_low", "ratio_high")}

    def _answer(self, deploy: str) -> dict[str, Any]:
        """One tune question, answered by the base and by the policy, from the very prompt that the scan showed the model."""
        loaded = drop_overlaps({name: load_task(name, self.data) for name in self.tasks})[self.tasks[0]]
        scorer = scorer_of(self.routed, loaded.task, self.of["search"])
        ids = scorer.question(loaded.task, loaded.select("tune", 1)[0]).context_ids
        given: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "min_new_tokens": 1, "do_sample": False}
        found = {"prompt": self.routed.tokenizer.decode(ids, skip_special_tokens=True)}
        policies = {BASE: Route.full(self.routed.n_layers)}
        policies |= {deploy: load_policy(self.run.policy(deploy), self.routed.identity)} if deploy else {}
        for name, policy in policies.items():
            [output] = self.routed.generate(input_ids=torch.tensor([ids], device=self.routed.device), policy=policy, **given)
            found[name] = {"text": output.text, "route": str(output.route), "n_passes": output.route.n_passes}
        return found
