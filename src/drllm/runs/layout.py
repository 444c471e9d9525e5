"""Where every file of a run folder lies. No other folder of the library knows one of these names."""

from __future__ import annotations

import re
from pathlib import Path

from drllm.policies.saved_config import CONFIG_FILE

# In a task folder, beside its shards.
MANIFEST_FILE = "_plan.json"
# In the folder of a training.
METRICS_FILE = "metrics.jsonl"
CANDIDATES_FILE = "candidates.json"
POINTS_FILE = "knob.json"
LOSSES_FILE, INFLUENCE_FILE, STEPS_FILE = "metrics.json", "influence.json", "steps.json"  # of gates, ShortGPT, TALE
# In the folder of a comparison, or of one method in the harness.
SUMMARY_FILE, ANSWERS_FILE = "summary.json", "answers.parquet"
RESULTS_FILE = "results.json"
ROUTES_FILE = "routes.jsonl"
SAMPLES_FILES = "samples_*.jsonl"  # one a task, whose name stands for the star
SAMPLES_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl")  # the harness's own say when
PAGE_FILE, MARKDOWN_FILE = "report.html", "report.md"  # of a report or reproduction
EXPORT_FILE = "drllm_export.json"  # in an exported checkpoint
_SEARCH, _PATHS, _TRAIN, _EVALUATE, _HARNESS, _REPORT, _REPRODUCE = "search", "paths", "train", "evaluate", "harness", "report", "reproduce"
_SCAN, _VERDICTS, _DECIDED = "scan", "verdicts", "decided"
# What else stands in a run folder, or did: no policy can be called so.
TAKEN = (_SEARCH, _PATHS, _TRAIN, _EVALUATE, _HARNESS, _REPORT, _REPRODUCE, _SCAN, _VERDICTS, _DECIDED, "checkpoint", "features")


class RunFolder:
    """A run folder: the `--out` of a search, evaluation or retrofit. Its methods give paths; those in the plural what is there, sorted.

    Attributes:
        root: the folder itself.
        jobs: which jobs wrote here (`drllm.runs.provenance`).
        finished: which stages of a retrofit, or of the paper's reproduction, are done (`drllm.runs.stages`).
        under_way: seconds of the stage that is at work, or was killed.
        asked, recommendation: what a retrofit was asked for, and which policy it says to deploy, or the base.
        agreed: the same of a retrofit from prompts without labels.
        verdicts: what every question answered along every route (`drllm.runs.store`); decided: which routes policies decided.
        searches, matrices: the task folders of searches, and of dense (question x route) matrices.
        features: states that several trainings learn from.
        healing: what a healing leaves beside its policy.
        nest: what the healings of a nest of routes leave, and the selector among them.
        scan: the map of the model, and what it was made from.
        report: the page of the run with its pictures.
        reproduction: tables and pictures of the paper's reproduction.
    """

    def __init__(self, root: Path):
        self.root = root
        self.jobs, self.finished = root / "run.json", root / "stages.json"
        self.under_way = root / "under-way.json"
        self.asked, self.recommendation = root / "retrofit.json", root / "recommendation.json"
        self.agreed = root / "agreement.json"
        self.verdicts, self.decided = root / _VERDICTS, root / _DECIDED
        self.searches, self.matrices = root / _SEARCH, root / _PATHS
        self.features, self.healing = self.training("features"), HealFolder(self.training("healed"))
        self.nest = self.training("nest")
        self.scan = ScanFolder(root / _SCAN)
        self.report, self.reproduction = root / _REPORT, root / _REPRODUCE

    def search(self, task: str) -> Path:
        """The folder of a task's search: shards of records and their manifest."""
        return self.searches / task

    def matrix(self, task: str) -> Path:
        """What a task's dense matrix is of: which questions and routes."""
        return self.matrices / task

    def policy(self, name: str) -> Path:
        """A trained policy's folder."""
        return self.root / name

    def training(self, policy: str) -> Path:
        """What a training leaves beside its policy."""
        return self.root / _TRAIN / policy

    def nested(self, budget: float) -> HealFolder:
        """The healing of one route of a nest."""
        return HealFolder(self.nest / f"{budget:g}", self.nest)

    def evaluation(self, split: str) -> Path:
        """What evaluations on a split left."""
        return self.root / _EVALUATE / split

    def summary(self, split: str) -> Path:
        """The comparison of all methods on a split."""
        return self.evaluation(split) / SUMMARY_FILE

    def answers(self, split: str) -> Path:
        """What every method decided and answered on a split (`drllm.runs.answers`)."""
        return self.evaluation(split) / ANSWERS_FILE

    def harness(self, split: str, name: str) -> Path:
        """The comparison in lm-evaluation-harness on some tasks."""
        return self.root / _HARNESS / split / name

    def harness_summaries(self) -> list[Path]:
        """The harness's comparisons that are there, sorted."""
        return sorted(self.root.glob(f"{_HARNESS}/*/*/{SUMMARY_FILE}"))

    def policies(self) -> list[Path]:
        """The policies that are there, sorted."""
        return [path.parent for path in sorted(self.root.glob(f"*/{CONFIG_FILE}"))]

    def metrics(self) -> list[Path]:
        """The trainings' metrics that are there, sorted."""
        return sorted(self.root.glob(f"{_TRAIN}/*/{METRICS_FILE}"))

    def summaries(self) -> list[Path]:
        """The evaluations' comparisons that are there, sorted."""
        return sorted(self.root.glob(f"{_EVALUATE}/*/{SUMMARY_FILE}"))


class HealFolder:
    """What a healing leaves beside its policy; those of a nest keep together what they have in common.

    Attributes:
        settings: what was asked for.
        teacher: what the base says of each prompt.
        choice: the KL of every route tried.
        asked: keys of whatever may be a question in a file of prompts.
        report: what it came to.
    """

    def __init__(self, root: Path, common: Path | None = None):
        self.root, common = root, common or root
        self.settings, self.report = root / "settings.json", root / "heal.json"
        self.teacher, self.choice, self.asked = common / "teacher", common / "choice.json", common / "asked.json"


class ScanFolder:
    """What a scan leaves in a run folder.

    Attributes:
        settings: what the scan was asked for.
        result, map: winners, random spans and costs; and every candidate with what it scored.
        best: routes of the last round, the best first, for `--paths`.
    """

    def __init__(self, root: Path):
        self.root = root
        self.settings, self.result, self.map, self.best = root / "settings.json", root / "scan.json", root / "map.csv", root / "best.txt"
