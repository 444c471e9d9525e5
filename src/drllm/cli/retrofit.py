"""Try every kind of policy within some minutes, and recommend one to deploy, or the base.

Finished stages are skipped.

example:
  drllm retrofit --model smollm2-135m-q4 --tasks arc_easy,arc_challenge --minutes 10 --out runs/demo
  drllm retrofit --model ID --data mine.jsonl --objective speed --out runs/mine
  drllm retrofit --model ID --data mine.jsonl --out runs/mine --dry-run
"""

from collections.abc import Mapping
from typing import Any

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common, add_section

JUDGING = ("reward", "metric", "max_new_tokens", "max_step_tokens")  # of a search; all else follows from the time
COMPARING = ("n_resamples", "seed")  # of an evaluation
CUT = 80  # characters of a text
SHOWN = ("model", "tasks", "data", "out", "minutes", "objective", "budget", "gate_epsilon", "dtype", "config", "dry_run")  # by --help


def run(job: Job) -> Lines:
    out, tasks, model, configs = job.need("out"), job.tasks(), job.need("model"), configs_of(job)
    if job.arguments.dry_run:
        yield from _dry_run(job, model, tasks, configs)
        return
    from drllm.reporting.drawing import need_extras
    from drllm.retrofitting.dry_run import loaded_tasks, questions_of
    from drllm.retrofitting.sizes import check_questions

    need_extras()  # an hour of search must not end in a missing package
    check_questions(questions_of(loaded_tasks(tasks, job.data)))  # before a model loads
    yield from _recommended(job.load(model), tasks, out, configs, job.data, job.argv)


def configs_of(job: Job) -> dict[str, Any]:
    """The configuration of each section that a retrofit reads; refuses a YAML file's settings that would do nothing."""
    job.arguments.gate_calibrate = "calibrate"  # it always promises on that split
    for section, read in {"search": JUDGING, "evaluate": COMPARING, "static": (), "routers": ()}.items():
        job.check_read(section, read)
    configs = {name: job.config(name, f"{name}_") for name in ("gate", "search", "evaluate")}
    return configs | {name: job.config(name) for name in ("resources", "retrofit")}


def _dry_run(job: Job, model: str, tasks: Any, configs: Mapping[str, Any]) -> Lines:
    """How many questions there are and whether they are enough, before torch loads; then what fits into the time."""
    from drllm.retrofitting.dry_run import counted, fitting, left_out, loaded_tasks, questions_of, read_as

    loaded = loaded_tasks(tasks, job.data)
    available = questions_of(loaded)
    yield from left_out(loaded)
    yield from read_as(loaded, configs["search"].reward)
    yield from counted(available, configs["gate"])
    from drllm.model.executors import threads_here
    from drllm.retrofitting.pace import measured

    routed, asked = job.load(model), configs["retrofit"]
    with threads_here(configs["resources"]):
        here = measured(routed, tasks, configs["search"], job.data)
    sizes, asked, why = here.sizes(routed.n_layers, asked, available)
    if why:
        yield why
    elif here.crowded:
        yield f"{here.crowded}; --threads 1 is faster now"
    yield from fitting(sizes, asked, is_alone=bool(why and here.alone_ms))


def _recommended(routed: Any, tasks: Any, out: str, configs: Mapping[str, Any], data: str | None, argv: list[str]) -> Lines:
    from drllm.reporting.recommendation import panel
    from drllm.reporting.summary_table import render
    from drllm.retrofitting.recommend import recommend

    found, result = recommend(routed, tasks, out, configs, data, argv)
    answer = result["answer"]
    yield f"prompt: {answer.pop('prompt')}"
    if choices := answer.pop("choices", None):
        yield f"choices: {', '.join(map(repr, choices))}"
    right = answer.pop("right", None)
    for name, one in answer.items():
        taken = f"takes {one['choice']!r}, {'right' if one['choice'] == right else f'right is {right!r}'}; " if right is not None else ""
        yield f"{name}: {taken}route {one['route']} ({one['n_passes']} passes)\n  left to itself it writes: {_cut(one['text'])}"
    yield render(result["summary"])
    yield f"report: {result['report']}"
    yield panel(found, out)


def _cut(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= CUT else f"{line[:CUT]} ..."


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    add_section(parser, "retrofit")
    add_section(parser, "gate", ("epsilon", "delta"), "gate_", "the promise, always tested on calibrate")
    add_section(parser, "resources")
    add_section(parser, "search", JUDGING, "search_", "how answers are judged")
    add_section(parser, "evaluate", COMPARING, "evaluate_", "comparisons")
    about = "print the questions of each split, whether they are enough to promise anything, and what fits into the time; then stop"
    parser.add_argument("--dry-run", action="store_true", help=about)
