"""The whole retrofit in one call: search, train, evaluate, generate one answer, report. Finished stages are recognised and skipped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drllm.core.config import SECTIONS, to_dict
from drllm.core.errors import ArtifactError
from drllm.evaluation.fit import fit_policy
from drllm.evaluation.run import evaluate
from drllm.methods.base import get_method
from drllm.model.executors import threads_here
from drllm.model.routed import RoutedModel
from drllm.policies.saved_config import read_config
from drllm.reporting.report import report
from drllm.reporting.summary_table import verdict
from drllm.retrofitting.one_answer import ANSWER_TOKENS, one_answer
from drllm.retrofitting.stages import Stages, data_key
from drllm.runs.layout import RunFolder
from drllm.runs.load import read_summary
from drllm.searching.runner import search

TRAINED = ("static", "routers")
EVALUATED = ("base", "static", "routers", "random", "shuffled")


def retrofit(
    routed: RoutedModel,
    tasks: Sequence[str],
    out: str | Path,
    configs: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Search, train `static` and `routers`, evaluate both with base and blind baselines, answer one question, and report.

    A stage is done when its configuration, the weights and the stages before it are those of an earlier call and its files are there: the
    same call again takes seconds. Each stage says so in a line of `drllm.core.progress`.

    Args:
        routed: the model; its policy is not used, and stays what it was.
        tasks: task names.
        out: the run folder.
        configs: by the sections of a YAML file: `search`, `resources` and `evaluate`; `gate`, which may name a split on which each policy
            must pass or is the base (`docs/policies.md`); `static` and `routers`. Defaults, with preset `paper`, for those left out.
        data: a JSON-lines file with the questions.
        argv: the command line, for `run.json`.

    Returns:
        summary (see `evaluate`), headline (does the policy help?), answer (prompt, text, route, n_passes), report and policy (paths),
        guarantees (the sentence of each policy that was tested), skipped (names of the stages that were done already).

    Raises:
        ArtifactError: `out` holds the run of another model, data or configuration.
    """
    run = RunFolder(Path(out))
    if run.asked.is_file():
        raise ArtifactError(f"{out} holds a retrofit by --recipe auto: go on with that, or give another --out")
    of = {name: kind() for name, kind in SECTIONS.items()} | {name: get_method(name).config() for name in TRAINED}
    of |= {name: replace(of[name], preset="paper") for name in ("search", "routers")} | dict(configs or {})
    resources, split = of["resources"], of["evaluate"].folder
    stages = Stages(run, [routed.fingerprint, str(routed.model.dtype), list(tasks), data_key(data)])

    def found_by_search() -> str:
        return str(search(routed, tasks, of["search"], run.root, data, argv, resources=resources))

    def trained(method: str) -> Callable[[], str]:
        return lambda: str(fit_policy(routed, run.root, method, of[method], argv, of["gate"]))

    def compared() -> str:
        return evaluate(routed, EVALUATED, tasks, run.root, of["evaluate"], data, argv, resources).split

    with threads_here(resources):
        stages.run("search", to_dict(of["search"]), [run.searches], found_by_search)
        for name in TRAINED:
            stages.run(f"train {name}", to_dict(of[name]) | {"gate": to_dict(of["gate"])}, [run.policy(name)], trained(name))
        stages.run(f"evaluate on the {split} split", to_dict(of["evaluate"]), [run.evaluation(split)], compared)
        answer = stages.run("generate", {"tokens": ANSWER_TOKENS}, [], lambda: _answer(routed, tasks, run, of, data))
        written = stages.run("report", {"as": "page"}, [run.report], lambda: report(run.root).name)
    summary = read_summary(run.summary(split))
    guarantees = {name: read_config(run.policy(name)).guarantee for name in TRAINED}
    sentences = {name: found["sentence"] for name, found in guarantees.items() if found is not None}
    found = {"summary": summary, "guarantees": sentences, "headline": verdict(summary, "routers"), "answer": answer}
    return found | {"report": run.report / written, "policy": run.policy("routers"), "skipped": stages.skipped}


def _answer(routed: RoutedModel, tasks: Sequence[str], run: RunFolder, of: Mapping[str, Any], data: str | Path | None) -> dict[str, Any]:
    """One question of the evaluated split, answered under the routers' policy."""
    policy = routed.load_policy(run.policy("routers"))
    found = one_answer(routed, tasks, data, of["search"], of["evaluate"].split, {"routers": policy})
    return {"prompt": found["prompt"]} | found["routers"]
