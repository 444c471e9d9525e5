"""`recommend()`: try every kind of policy that can be deployed, name the best on tune, promise on calibrate, or keep the base."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from drllm.core.config import PromiseConfig, RetrofitConfig, RoutersConfig, ScanConfig, SearchConfig, to_dict
from drllm.core.errors import ArtifactError, BudgetError, InputError, UnsupportedModelError
from drllm.core.files import write_json
from drllm.core.progress import say
from drllm.core.route import Route
from drllm.core.text import type_name
from drllm.evaluation.calibrate import calibrate
from drllm.evaluation.clock import batched_ms
from drllm.evaluation.fit import fit_policy, save_as
from drllm.evaluation.run import evaluate
from drllm.healing.heal import heal
from drllm.healing.prompts import task_prompts
from drllm.healing.training import need_peft
from drllm.methods.codebook import CodebookConfig
from drllm.methods.static import StaticConfig
from drllm.methods.training_data import TrainingData
from drllm.model.pool import threads_here
from drllm.model.routed import RoutedModel
from drllm.reporting.report import report
from drllm.retrofitting.choice import NAMES, best_on_tune, constant_accuracy, is_worth_it
from drllm.retrofitting.claim import claim_folder, claimed_if_begun, data_key
from drllm.retrofitting.dry_run import counted, loaded_tasks, questions_of
from drllm.retrofitting.pace import CLOCK_TOKENS, FEWEST_STEPS, HEALING, answer_seconds, costs_of_healing, token_ms
from drllm.retrofitting.sizes import FEWEST, LISTED, N_LISTED, Sizes, TimeLeft, sizes_of
from drllm.runs.layout import RunFolder
from drllm.runs.load import read_summary
from drllm.runs.names import BASE
from drllm.runs.provenance import alone_in
from drllm.runs.recommendation import Recommendation
from drllm.runs.stages import Stages
from drllm.runs.summary import SummaryRow
from drllm.scanning.scan import scan
from drllm.searching.runner import read_routes, search

A_PROMPT = ("codebook", "routers")  # those that look at prompts, beside which their own routes are dealt to others
PROMISED = "promised"  # the folder of the policy that kept its promise, at the operating point that did
NEAR = 0.017  # of the base's passes above the budget that still keep to it: half a block of thirty
# As a reader is told of the stages; what stands between them takes no time.
STEPS = (
    ("what fits into the time",),
    ("scan",),
    (LISTED,),
    tuple(f"train {name}" for name in NAMES),
    ("compare on tune",),
    ("promise", "compare on calibrate", "seconds of answers"),
    ("report",),
)


def recommend(
    routed: RoutedModel,
    tasks: Sequence[str],
    out: str | Path,
    configs: Mapping[str, Any],
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[Recommendation, dict[str, Any]]:
    """Scan, train every policy that fits into the time, compare them on tune, test the best on calibrate, and report.

    A stage that an earlier call finished is recognised; what fits into the time is settled once and kept.

    Args:
        routed: the model; its policy is not used, and stays what it was.
        configs: by section: `retrofit`, `search`, `heal`, `resources`, `evaluate`, `promise` (epsilon and delta of the promise).
        data: a file or folder with the questions.

    Returns:
        The recommendation, also in `out/recommendation.json`; and summary (of tune), report, skipped (stages that were done already).

    Raises:
        InputError: too little time, or too few questions.
        ArtifactError: `out` holds another run, or a retrofit that was asked for something else.
    """
    resources = configs["resources"]
    with threads_here(resources), alone_in(Path(out), "retrofit"), claimed_if_begun(RunFolder(Path(out))):
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
    compared: list[SummaryRow] = field(default_factory=list)  # on tune
    out_of_time: bool = False

    def __post_init__(self) -> None:
        self.asked: RetrofitConfig = self.of["retrofit"]
        self.limit = (self.asked.kept + NEAR) * self.routed.n_layers
        about = {"model": self.routed.fingerprint, "dtype": str(self.routed.model.dtype), "tasks": self.tasks, "data": data_key(self.data)}
        settings = about | self.judged | to_dict(self.asked)
        claim_folder(self.run, settings)
        self.stages = Stages(self.run, STEPS, settings)

    @property
    def judged(self) -> dict[str, Any]:
        """How answers are judged, of every stage."""
        return {name: getattr(self.of["search"], name) for name in ("reward", "metric", "max_new_tokens", "max_step_tokens")}

    @cached_property
    def sizes(self) -> Sizes:
        """What fits into the time, settled by the first call."""
        return Sizes(**self.stages.then("what fits into the time", {}, [], self._sizes))

    def _sizes(self) -> dict[str, Any]:
        available = questions_of(loaded_tasks(self.tasks, self.data))
        for part in (part for line in counted(available, self.of["promise"]) for part in line.strip("\n").splitlines()):
            say(part)
        ms = batched_ms(self.routed, self.tasks, SearchConfig(**self.judged), self.data)
        found = sizes_of(self.routed.n_layers, ms, self.asked, available)
        say(f"the base takes {found.plain_ms:.0f} ms a question: a scan on {found.scanned}, {found.tuned} tune questions a task at most")
        return asdict(found)

    def run_all(self) -> tuple[Recommendation, dict[str, Any]]:
        self._scan()
        self._list()
        self._train()
        made = self.run.policies()
        tried = [name for name in NAMES if self.run.policy(name) in made and name not in self.missed]
        methods = [BASE, *tried, *(f"shuffled-{name}" for name in tried if name in A_PROMPT)]
        n_tune = self.stages.then("tune questions", {}, [], self._left.tune_questions)
        summary = read_summary(self.run.summary(self._compare("tune", methods, n_tune)))
        self.compared = summary.pooled
        rows = [row for row in self.compared if row.method in tried]
        best = best_on_tune(rows, self.asked.objective, self.limit, self.of["promise"].epsilon)
        beyond = best_on_tune(rows, self.asked.objective, math.inf, self.of["promise"].epsilon)
        found = self._recommendation(None, tried, beyond=beyond) if best is None else self._promised(best, tried)
        write_json(self.run.recommendation, found.to_json())
        written = self.stages.then(
            "report", {"as": "page", "found": found.to_json()}, [self.run.report], lambda: report(self.run.root).name
        )
        return found, {"summary": summary, "report": self.run.report / written, "skipped": self.stages.skipped}

    def _scan(self) -> None:
        sizes = self.sizes
        config = ScanConfig(self.asked.kinds, questions=sizes.scanned, max_span=sizes.max_span, fresh=0, **self.judged)

        def work() -> str:
            scan(self.routed, self.tasks, config, self.run.root, self.data, self.argv, self.of["resources"])
            return self.run.scan.best.name

        self.stages.then("scan", to_dict(config), [self.run.scan.root], work)

    @cached_property
    def routes(self) -> list[Route]:
        """The scan's best, those within the budget first, behind the base."""
        full = Route.full(self.routed.n_layers)
        found = [route for route in read_routes(self.run.scan.best) if route != full]
        return [full, *sorted(found, key=lambda route: route.n_passes > self.limit)[:N_LISTED]]

    def _list(self) -> None:
        config = SearchConfig(splits=("fit", "tune"), limit=self.sizes.listed, verify=False, **self.judged)
        given = (self.routed, self.tasks, config, self.run.root, self.data, self.argv, self.routes, self.of["resources"])
        self.stages.then(LISTED, to_dict(config), [self.run.matrices], lambda: str(search(*given)))

    def _train(self) -> None:
        """Every policy; one that cannot be made is named with the reason."""
        budget: dict[str, Any] = {"budget": min(1.0, self.asked.kept)}
        self._make("static", StaticConfig(use_tune=True, **budget))
        if self.asked.kept > 1:
            self._make("looped", {}, self._looped)
        self._make("codebook", CodebookConfig(**budget))
        pointed = min(self.sizes.tuned, max(FEWEST, self.sizes.tuned // 2))  # each at a forward or so for each operating point
        self._make("routers", RoutersConfig(tune_questions=pointed, **budget))
        if self.asked.kept < 1:
            self._heal()

    def _heal(self) -> None:
        """A route within the budget, and the adapter that as many steps train as `HEALING` of the time left before the promise bears."""
        try:
            need_peft()
        except InputError as error:  # which may be installed by the next call
            self.missed["healed"] = str(error)
            return
        judged = {"reward": self.judged["reward"], "max_step_tokens": self.judged["max_step_tokens"]}
        config = replace(self.of["heal"], budget=self.asked.kept, **judged)

        def fitting() -> dict[str, int]:
            prompts = task_prompts(self.routed, self.tasks, self.data, config)
            choosing, step = costs_of_healing(prompts, config, (self.asked.kept,), self.routed.n_layers)
            tokens = HEALING * 1000 * self._left.before_the_promise / token_ms(self.routed, prompts)
            return {"steps": min(config.steps, int((tokens - choosing) / step)), "held_out": min(config.held_out, len(prompts) // 4)}

        found = self.stages.then("steps of healing", to_dict(config) | {"targets": list(config.targets)}, [], fitting)
        if found["steps"] < min(FEWEST_STEPS, config.steps):
            self.missed["healed"] = f"{self.asked.minutes:g} minutes are too short to heal a route"
            self.out_of_time = True
            return
        config = replace(config, **found)
        self._make(
            "healed", to_dict(config), lambda: heal(self.routed, self.run.root, None, self.tasks, self.data, None, config, self.argv)
        )

    def _make(self, name: str, config: Any, work: Callable[[], object] | None = None) -> None:
        """Train it, or remember that it cannot be made; a file that cannot be read may be mended, and is not remembered."""

        def fit() -> dict[str, str]:
            try:
                if work is None:
                    fit_policy(self.routed, self.run.root, name, config, self.argv, tasks=self.tasks)
                else:
                    work()
            except (InputError, UnsupportedModelError) as error:
                return {"missed": str(error)}
            return {}

        settings = config if isinstance(config, dict) else to_dict(config)
        try:
            if found := self.stages.then(f"train {name}", settings, [self.run.policy(name)], fit):
                self.missed[name] = found["missed"]
        except ArtifactError as error:
            self.missed[name] = str(error)

    def _looped(self) -> None:
        looped = [route for route in self.routes if route.loops]
        if not looped:
            raise BudgetError("no span that runs once more is among the scan's best")
        save_as(self.routed, TrainingData(self.routed, self.run.root, self.tasks).constant(looped[0]), self.run.policy("looped"))

    def _compare(self, split: Any, methods: Sequence[str], limit: int) -> str:
        """Name of the evaluation's folder, whose summary is that of the last comparison there."""
        config = replace(self.of["evaluate"], split=split, limit=limit, **self.judged)
        given = (self.routed, methods, self.tasks, self.run.root, config, self.data, self.argv, self.of["resources"])
        self.stages.then(
            f"compare on {split}",
            to_dict(config) | {"methods": list(methods)},
            [self.run.evaluation(config.folder)],
            lambda: evaluate(*given).split,
        )
        return config.folder

    def _promised(self, best: SummaryRow, tried: list[str]) -> Recommendation:
        """What calibrate questions say of the policy that tune named, at the operating point that it has: they choose nothing."""
        asked: PromiseConfig = self.of["promise"]
        policy = self.routed.load_policy(self.run.policy(best.method))
        ask = partial(self._left.calibrate_questions, decides=policy.route is None)
        limit = self.stages.then("calibrate questions", {"policy": best.method}, [], ask)
        config = PromiseConfig("calibrate", asked.epsilon, asked.delta, limit)

        def test() -> dict[str, Any]:
            chosen, found = calibrate(self.routed, self.run.root, policy, config, self.argv, self.tasks, True, self.of["resources"])
            shutil.rmtree(self.run.policy(PROMISED), ignore_errors=True)  # of another promise
            if found.point is not None:
                save_as(self.routed, chosen, self.run.policy(PROMISED))
            return {"promise": found.sentence, "promised": found.point is not None}

        tested = self.stages.then(
            "promise", to_dict(config) | {"policy": best.method, "point": "its own"}, [self.run.policy(PROMISED)], test
        )
        name = PROMISED if tested["promised"] else best.method
        summary = read_summary(self.run.summary(self._compare("calibrate", [BASE, name], limit)))
        row = next(row for row in summary.pooled if row.method == name)
        kept = self.routed.load_policy(self.run.policy(name))
        data = TrainingData(self.routed, self.run.root, self.tasks)
        about = {"policy": name, "tokens": CLOCK_TOKENS}
        clock = self.stages.then("seconds of answers", about, [], lambda: answer_seconds(self.routed, data, kept))
        wanted = is_worth_it(row, self.asked.objective, self.limit, clock["ratio_high"])
        deploy = tested["promised"] and wanted
        loaded, about = loaded_tasks(self.tasks, self.data), {"route": str(kept.route or ""), "is_chat": kept.prompt_format == "chat"}
        about["constant"] = constant_accuracy({name: task.select("calibrate", limit) for name, task in loaded.items()})
        about["tested_in"] = type_name(self.routed.model.dtype)
        about["available"] = sum(len(task.select("calibrate")) for task in loaded.values())
        return self._recommendation(best, tried, deploy=PROMISED if deploy else "", calibrate=row, **about, **tested, **clock)

    @property
    def _left(self) -> TimeLeft:
        return TimeLeft(self.stages, self.asked.minutes, self.sizes, self.run, len(self.routes) - 1, len(self.tasks))

    def _recommendation(self, best: SummaryRow | None, tried: list[str], **found: Any) -> Recommendation:
        about = {"model": self.routed.base_id, "objective": self.asked.objective, "tried": tried, "tune": best}
        named = {"deploy": "", "best": best.method if best is not None else "", "budget": self.asked.budget} | found
        named |= {"epsilon": self.of["promise"].epsilon, "delta": self.of["promise"].delta, "out_of_time": self.out_of_time}
        about |= {"asked_minutes": self.asked.minutes, "minutes": round(self.stages.seconds / 60, 2), "missed": self.missed}
        about["dealt"] = next((row.accuracy for row in self.compared if row.method == f"shuffled-{named['best']}"), math.nan)
        routes = {name: self.routed.load_policy(self.run.policy(name)).route for name in tried}
        about |= {"tuned": self.compared[0].n, "routes": {name: str(route) for name, route in routes.items() if route is not None}}
        return Recommendation(**about, **named)
