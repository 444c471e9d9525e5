"""Where every file of a run folder lies. No other folder of the library knows one of these names."""

from __future__ import annotations

import re
from pathlib import Path

from drllm.policies.saved_config import CONFIG_FILE

# In a task folder, beside its shards.
MANIFEST_FILE = "_plan.json"
# In the folder of a training.
METRICS_FILE, _HEALED = "metrics.jsonl", "heal.json"
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
    """A run folder: the `--out` of a search, evaluation or retrofit. Its methods give paths; those in the plural what is there, sorted."""

    def __init__(self, root: Path):
        self.root = root
        self.jobs = root / "run.json"  # which jobs wrote here (`drllm.runs.provenance`)
        self.finished = root / "stages.json"  # which stages of a retrofit or reproduction are done (`drllm.runs.stages`)
        self.under_way = root / "under-way.json"  # seconds of the stage that is at work, or was killed
        self.asked = root / "retrofit.json"  # what a retrofit was asked for
        self.recommendation = root / "recommendation.json"  # which policy it says to deploy, or the base
        self.agreed = root / "agreement.json"  # the same of a retrofit from prompts without labels
        self.verdicts = root / _VERDICTS  # what every question answered along every route (`drllm.runs.store`)
        self.decided = root / _DECIDED  # which routes policies decided
        self.searches, self.matrices = root / _SEARCH, root / _PATHS  # task folders of searches, and of dense (question x route) matrices
        self.features = self.training("features")  # states that several trainings learn from
        self.healing = HealFolder(self.training("healed"))
        self.nest = self.training("nest")  # what the healings of a nest of routes leave, and the selector among them
        self.scan = ScanFolder(root / _SCAN)
        self.report, self.reproduction = root / _REPORT, root / _REPRODUCE  # pages with their pictures

    def search(self, task: str) -> Path:
        return self.searches / task

    def matrix(self, task: str) -> Path:
        """What a task's dense matrix is of: which questions and routes."""
        return self.matrices / task

    def policy(self, name: str) -> Path:
        return self.root / name

    def training(self, policy: str) -> Path:
        """What a training leaves beside its policy."""
        return self.root / _TRAIN / policy

    def healed(self) -> list[Path]:
        """What the healing came to, of each route."""
        return sorted(self.healing.root.glob(f"**/{_HEALED}"))

    def nested(self, budget: float) -> HealFolder:
        """The healing of one route of a nest."""
        return HealFolder(self.nest / f"{budget:g}", self.nest)

    def evaluation(self, split: str) -> Path:
        return self.root / _EVALUATE / split

    def summary(self, split: str) -> Path:
        return self.evaluation(split) / SUMMARY_FILE

    def answers(self, split: str) -> Path:
        """What every method decided and answered on a split (`drllm.runs.answers`)."""
        return self.evaluation(split) / ANSWERS_FILE

    def harness(self, split: str, name: str) -> Path:
        """The comparison in lm-evaluation-harness on some tasks."""
        return self.root / _HARNESS / split / name

    def harness_summaries(self) -> list[Path]:
        return sorted(self.root.glob(f"{_HARNESS}/*/*/{SUMMARY_FILE}"))

    def policies(self) -> list[Path]:
        return [path.parent for path in sorted(self.root.glob(f"*/{CONFIG_FILE}"))]

    def metrics(self) -> list[Path]:
        return sorted(self.root.glob(f"{_TRAIN}/*/{METRICS_FILE}"))

    def summaries(self) -> list[Path]:
        return sorted(self.root.glob(f"{_EVALUATE}/*/{SUMMARY_FILE}"))


class HealFolder:
    """What a healing leaves beside its policy; those of a nest keep together what they have in `common`."""

    def __init__(self, root: Path, common: Path | None = None):
        self.root, common = root, common or root
        self.settings, self.report = root / "settings.json", root / _HEALED  # what was asked for, and what it came to
        self.teacher = common / "teacher"  # what the base says of each prompt
        self.choice = common / "choice.json"  # the KL of every route tried
        self.asked = common / "asked.json"  # keys of whatever may be a question in a file of prompts


class ScanFolder:
    """What a scan leaves in a run folder."""

    def __init__(self, root: Path):
        self.root, self.settings = root, root / "settings.json"
        self.result, self.map = root / "scan.json", root / "map.csv"  # what was found; and every candidate with what it scored
        self.best = root / "best.txt"  # routes of the last round, the best first, for `--paths`
