"""The whole retrofit in one call: search, train, evaluate, generate one answer, report. Finished stages are recognised and skipped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drllm.core.config import EvaluateConfig, GuaranteeConfig, Resources, SearchConfig, to_dict
from drllm.core.errors import ArtifactError
from drllm.core.files import TEMPORARY_SUFFIX, write_json
from drllm.core.progress import say
from drllm.evaluation.fit import fit_policy
from drllm.evaluation.run import evaluate
from drllm.methods.base import get_method
from drllm.model.routed import RoutedModel
from drllm.policies import saved as artifact
from drllm.policies.card import CARD_FILE
from drllm.reporting.report import report
from drllm.reporting.summary_table import verdict
from drllm.runs.load import read_summary
from drllm.scoring.scorer import make_scorer
from drllm.searching.runner import search
from drllm.tasks import drop_overlaps, load_task

TRAINED = ("static", "routers")
EVALUATED = ("base", "static", "routers", "random", "shuffled")
ANSWER_TOKENS = 48
PIPELINE_FILE = "pipeline.json"


def retrofit(
    routed: RoutedModel,
    tasks: Sequence[str],
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    search_config: SearchConfig | None = None,
    evaluate_config: EvaluateConfig | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
    resources: Resources | None = None,
    guarantee_config: GuaranteeConfig | None = None,
) -> dict[str, Any]:
    """Search, train `static` and `routers`, evaluate both with base and controls, answer one question, and report.

    A stage is done when its configuration, the weights and the stages before it are those of an earlier call and its files are there: the
    same call again takes seconds. Each stage says so in a line of `drllm.core.progress`.

    Args:
        routed: the model; its policy is not used, and stays what it was.
        tasks: task names.
        out: the run folder.
        options: those of each method, by its name; default: its defaults.
        search_config, evaluate_config: every knob.
        guarantee_config: if it names a split, each policy must pass the gate on it or is the base (`docs/policies.md`).
        data: a JSON-lines file with the questions.
        argv: the command line, for `run.json`.
        resources: what the search and the evaluation run on.

    Returns:
        summary (see `evaluate`), headline (does the policy help?), answer (prompt, text, route, n_passes), report and policy (paths),
        guarantees (the sentence of each gated policy), skipped (names of the stages that were done already).

    Raises:
        ArtifactError: `out` holds the run of another model, data or configuration.
    """
    out = Path(out)
    evaluate_config = evaluate_config or EvaluateConfig()
    options = {name: get_method(name).config() for name in TRAINED} | dict(options or {})
    search_config = search_config or SearchConfig()
    stages = _Stages(out, [routed.fingerprint, str(routed.model.dtype), list(tasks), _data_key(data)])

    stages.run(
        "search", to_dict(search_config), ["search"],
        lambda: str(search(routed, tasks, search_config, out, data, argv, resources=resources)),
    )  # fmt: skip
    for method in TRAINED:
        config = options[method]
        stages.run(
            f"train {method}",
            to_dict(config) | {"gate": to_dict(guarantee_config or GuaranteeConfig())},
            [method],
            lambda method=method, config=config: str(fit_policy(routed, out, method, config, argv, guarantee_config)),
        )
    split = evaluate_config.folder
    stages.run(
        f"evaluate on the {split} split", to_dict(evaluate_config), [f"evaluate/{split}"],
        lambda: evaluate(routed, EVALUATED, tasks, out, evaluate_config, data, argv, resources).split,
    )  # fmt: skip
    answer = stages.run(
        "generate", {"tokens": ANSWER_TOKENS}, [], lambda: _answer(routed, tasks, out, evaluate_config.split, search_config, data)
    )
    written = stages.run("report", {"as": "page"}, ["report"], lambda: report(out).name)
    summary = read_summary(out / "evaluate" / split / "summary.json")
    guarantees = {name: artifact.read(out / name).guarantee for name in TRAINED}
    return {
        "summary": summary,
        "guarantees": {name: found["sentence"] for name, found in guarantees.items() if found is not None},
        "headline": verdict(summary, "routers"),
        "answer": answer,
        "report": out / "report" / written,
        "policy": out / "routers",
        "skipped": stages.skipped,
    }


def _answer(
    routed: RoutedModel, tasks: Sequence[str], out: Path, split: str, config: SearchConfig, data: str | Path | None
) -> dict[str, Any]:
    """One question of the evaluated split, answered under the routers' policy, from the very prompt that the search showed the model."""
    loaded = drop_overlaps({name: load_task(name, data) for name in tasks})[tasks[0]]
    scorer = make_scorer(routed, loaded.task, config.reward, config.max_step_tokens, config.metric, config.max_new_tokens)
    prompt_ids = scorer.question(loaded.task, loaded.select(split, 1)[0]).context_ids
    policy = artifact.load_policy(out / "routers", routed)
    input_ids = torch.tensor([prompt_ids], dtype=torch.long, device=routed.device)
    output = routed.generate(input_ids=input_ids, policy=policy, max_new_tokens=ANSWER_TOKENS, min_new_tokens=1, do_sample=False)[0]
    prompt = routed.tokenizer.decode(prompt_ids, skip_special_tokens=True)
    return {"prompt": prompt, "text": output.text, "route": str(output.route), "n_passes": output.route.n_passes}


class _Stages:
    """Which stages are done, in `pipeline.json`: a key of all that determines each, digests of its files, and its result.

    A stage's key holds the key of the stage before it, so a change makes everything after it run again.
    """

    def __init__(self, out: Path, start: Any):
        self.out = out
        self.path = out / PIPELINE_FILE
        self.key = _digest(start)
        self.skipped: list[str] = []
        self.done: dict[str, Any] = {}
        if self.path.is_file():
            try:
                self.done = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ArtifactError(f"{self.path} is not readable ({error}): delete it, finished work is found again") from None

    def run(self, name: str, config: Any, folders: Sequence[str], work: Callable[[], Any]) -> Any:
        """The result of the stage: remembered when it is done, else of `work`."""
        self.key = _digest([self.key, name, config])
        entry = self.done.get(name)
        if entry is not None and entry["key"] == self.key and entry["files"] == self._files(folders):
            self.skipped.append(name)
            say(f"{name}: done already ({entry['seconds']:.0f} s)")
            return entry["result"]
        say(f"{name} ...")
        start = time.monotonic()
        result = work()
        seconds = time.monotonic() - start
        self.done[name] = {"key": self.key, "seconds": round(seconds, 3), "files": self._files(folders), "result": result}
        write_json(self.path, {"stages": self.done})
        say(f"{name}: {seconds:.0f} s")
        return result

    def _files(self, folders: Sequence[str]) -> dict[str, str]:
        paths = sorted(path for folder in folders for path in (self.out / folder).rglob("*") if path.is_file())
        paths = [path for path in paths if path.suffix != TEMPORARY_SUFFIX and path.name != CARD_FILE]  # a card is written anew
        return {path.relative_to(self.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _data_key(data: str | Path | None) -> str | None:
    """A digest of the files' bytes: another content under the same name is other data. A missing file is refused by `load_task`."""
    if data is None or not Path(data).exists():
        return None
    paths = sorted(Path(data).rglob("*.jsonl")) if Path(data).is_dir() else [Path(data)]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()[:16]
