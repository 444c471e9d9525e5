"""Compare the base and the policies of a run on the same held-out questions, question by question.

example:
  drllm evaluate --out runs/a --methods base,static,routers --split tune
"""

import importlib.util
from pathlib import Path

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common, add_section, split_words
from drllm.core.config import OF_COMPARISONS, EvaluateConfig
from drllm.core.errors import InputError
from drllm.methods.base import method_names
from drllm.runs.layout import SUMMARY_FILE, RunFolder
from drllm.runs.manifest import path_manifests, search_manifests
from drllm.runs.names import check_methods, owner_of

SHOWN = ("out", "methods", "tasks", "data", "split", "limit", "harness", "harness_args", "model", "dtype", "seed")  # by --help


def run(job: Job) -> Lines:
    out, config, methods = Path(job.out), job.config("evaluate"), job.common.methods
    if job.arguments.harness or job.arguments.harness_args:
        yield from _run_harness(job, out, config)
        return
    check_methods(methods, out, method_names())
    searched = {manifest.task for manifest in (search_manifests(out) | path_manifests(out)).values()}
    tasks = job.tasks() if job.common.tasks else tuple(sorted(searched))
    model, dtype = job.searched_model(out)
    if not tasks:
        job.need("tasks")
    from drllm.evaluation.run import evaluate
    from drllm.reporting.summary_table import render, verdict

    summary = evaluate(job.load(model, dtype), methods, tasks, out, config, job.data, job.argv, job.config("resources"))
    yield render(summary)
    for method in methods:
        if method != "base" and not owner_of(method):
            yield verdict(summary, method)
    yield f"summary: {RunFolder(out).summary(config.folder)}"


def _run_harness(job: Job, out: Path, config: EvaluateConfig) -> Lines:
    methods = job.common.methods
    if baselines := {name for name in methods if name.partition("-")[0] in ("random", "shuffled")}:
        raise InputError(f"baseline {min(baselines)!r} cannot run under --harness: `drllm evaluate` without it compares with baselines")
    tasks = job.need("tasks")
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-evaluation-harness is not installed: pip install '.[eval]' in a clone of drllm")
    harness_args = split_words("--harness-args", job.arguments.harness_args)
    model, dtype = job.searched_model(out) if out.is_dir() else (job.need("model"), "")
    from drllm.evaluation.harness.compare import render
    from drllm.evaluation.harness.run import evaluate_harness, harness_folder, render_routing

    summary = evaluate_harness(job.load(model, dtype), methods, tasks, out, config, job.data, harness_args, job.argv)
    yield render_routing(summary)
    if summary["rows"]:
        yield render(summary["rows"], summary["reference"])
    yield f"summary: {harness_folder(out, tasks, config, harness_args) / SUMMARY_FILE}"


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out", "methods")
    add_section(parser, "evaluate")
    add_section(parser, "resources", OF_COMPARISONS, about="where and how it runs; no verdict depends on them")
    group = parser.add_argument_group("lm-evaluation-harness (docs/harness.md)")
    group.add_argument("--harness", action="store_true", help="run the harness's tasks instead; drllm_* names are its offline ones")
    group.add_argument("--harness-args", default="", metavar="TEXT", help='any of its options, such as --harness-args="--num_fewshot 5"')
