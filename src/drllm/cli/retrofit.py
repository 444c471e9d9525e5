"""Try every kind of policy within some minutes, and recommend one to deploy, or the base.

`--prompts FILE` needs no answer key: cheaper routes are healed, and what is promised is how often answers differ from the base's.
Finished stages are skipped.

example:
  drllm retrofit --model smollm2-135m-q4 --tasks arc_easy,arc_challenge --minutes 10 --out runs/demo
  drllm retrofit --model ID --data mine.jsonl --objective speed --out runs/mine
  drllm retrofit --model ID --data mine.jsonl --out runs/mine --dry-run
  drllm retrofit --model ID --prompts requests.jsonl --minutes 60 --out runs/mine
"""

from collections.abc import Mapping
from typing import Any

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common, add_section
from drllm.core.errors import InputError

JUDGING = ("reward", "metric", "max_new_tokens", "max_step_tokens")  # of a search; all else follows from the time
COMPARING = ("n_resamples", "seed")  # of an evaluation
CUT = 80  # characters of a text
# Of --prompts; and what --help shows.
OF_PROMPTS = ("prompts", "budgets", "differ", "minutes", "promise_delta", "threads", "model", "dtype", "device", "out", "config", "dry_run")
SHOWN = ("model", "tasks", "data", "prompts", "out", "minutes", "objective", "budget", "promise_epsilon", "dtype", "dry_run")


def run(job: Job) -> Lines:
    if job.arguments.prompts is not None:
        yield from _by_prompts(job)
        return
    if idle := [flag for flag in ("budgets", "differ") if getattr(job.arguments, flag) is not None]:
        raise InputError(f"--{idle[0]} is for prompts without an answer key: give --prompts, or leave it out")
    out, tasks, model, configs = job.out, job.tasks(), job.need("model"), configs_of(job)
    if job.arguments.dry_run:
        yield from _dry_run(job, model, tasks, configs)
        return
    from drllm.reporting.drawing import need_extras
    from drllm.retrofitting.dry_run import doubtful, loaded_tasks, questions_of
    from drllm.retrofitting.sizes import check_questions

    need_extras()  # an hour of search must not end in a missing package
    loaded = loaded_tasks(tasks, job.data)
    check_questions(questions_of(loaded))  # before a model loads
    yield from doubtful(loaded)
    from drllm.reporting.recommendation import panel
    from drllm.reporting.summary_table import render
    from drllm.retrofitting.recommend import recommend

    found, result = recommend(job.load(model), tasks, out, configs, job.data, job.argv)
    yield render(result["summary"])
    yield f"report: {result['report']}"
    yield panel(found, out)


def _by_prompts(job: Job) -> Lines:
    if job.common.tasks or job.data:
        flag = "tasks" if job.common.tasks else "data"
        raise InputError(f"got both --prompts and --{flag}: prompts have no answer key and questions have one, leave one of them out")
    typed = [name for name, value in vars(job.arguments).items() if value is not None]
    if idle := [name for name in typed if name not in OF_PROMPTS and not name.startswith("heal_")]:
        raise InputError(f"--{idle[0].replace('_', '-')} is for questions with an answer key: leave it out with --prompts")
    if job.arguments.dry_run:
        raise InputError("--dry-run counts questions with an answer key: leave it out with --prompts, whose first line says what fits")
    out, model = job.out, job.need("model")
    job.arguments.promise_calibrate = "calibrate"
    configs = {name: job.config(name, f"{name}_") for name in ("promise", "heal")}
    configs |= {name: job.config(name) for name in ("retrofit", "prompts", "resources")}
    from drllm.healing.training import need_peft
    from drllm.reporting.drawing import need_extras

    need_extras()
    need_peft()
    from drllm.reporting.agreement import panel
    from drllm.retrofitting.by_prompts import retrofit_prompts

    found, result = retrofit_prompts(job.load(model), job.arguments.prompts, out, configs, job.argv)
    for name in ("prompt", "base", "policy") if found.example else ():
        yield f"{name}: {_cut(found.example[name])}"
    yield f"report: {result['report']}"
    yield panel(found, out)


def configs_of(job: Job) -> dict[str, Any]:
    """The configuration of each section that a retrofit reads; refuses a YAML file's settings that would do nothing."""
    job.arguments.promise_calibrate = "calibrate"  # it always promises on that split
    for section, read in {"search": JUDGING, "evaluate": COMPARING, "static": (), "routers": ()}.items():
        if idle := [name for name in job.settings.sections.get(section, {}) if name not in read]:
            raise InputError(f"section {section!r} sets {idle[0]}, which `drllm retrofit` does not read: leave it out")
    configs = {name: job.config(name, f"{name}_") for name in ("promise", "search", "evaluate", "heal")}
    return configs | {name: job.config(name) for name in ("resources", "retrofit")}


def _dry_run(job: Job, model: str, tasks: Any, configs: Mapping[str, Any]) -> Lines:
    from drllm.retrofitting.dry_run import counted, fitting, left_out, loaded_tasks, questions_of, read_as

    loaded = loaded_tasks(tasks, job.data)
    available = questions_of(loaded)
    yield from left_out(loaded)
    yield from read_as(loaded, configs["search"].reward)
    yield from counted(available, configs["promise"])
    from drllm.evaluation.clock import batched_ms
    from drllm.model.pool import threads_here
    from drllm.retrofitting.sizes import sizes_of

    routed = job.load(model)
    with threads_here(configs["resources"]):
        plain_ms = batched_ms(routed, tasks, configs["search"], job.data)
    yield from fitting(sizes_of(routed.n_layers, plain_ms, configs["retrofit"], available), configs["retrofit"])


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CUT else f"{line[:CUT]} ..."


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    about = "a file of prompts without an answer key, instead of --tasks: one a line, or .jsonl with messages, text or requests"
    parser.add_argument("--prompts", metavar="FILE", help=about)
    add_section(parser, "retrofit")
    add_section(parser, "prompts")
    add_section(parser, "heal", prefix="heal_", about="of healed routes")
    add_section(parser, "promise", ("epsilon", "delta"), "promise_", "the promise, always tested on calibrate")
    add_section(parser, "resources")
    add_section(parser, "search", JUDGING, "search_", "how answers are judged")
    add_section(parser, "evaluate", COMPARING, "evaluate_", "comparisons")
    about = "print the questions of each split, whether they are enough to promise anything, and what fits into the time; then stop"
    parser.add_argument("--dry-run", action="store_true", help=about)
