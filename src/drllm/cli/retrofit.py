"""Do it all: search, train, evaluate beside blind baselines, answer one question and report.

Finished stages are skipped.

example:
  drllm retrofit --model smollm2-135m-q4 --tasks arc_easy,arc_challenge --search-limit 100 --out runs/demo
"""

from drllm.cli.job import Job, Lines
from drllm.cli.options import Parser, add_common, add_section

SECTIONS = ("search", "resources", "gate", "evaluate", "static", "routers")


def run(job: Job) -> Lines:
    out, tasks = job.need("out"), job.tasks()
    configs = {section: job.config(section, f"{section}_") for section in SECTIONS}
    model = job.need("model")
    from drllm.reporting.drawing import need_extras
    from drllm.reporting.summary_table import render
    from drllm.retrofitting.pipeline import retrofit

    need_extras()  # an hour of search must not end in a missing package
    result = retrofit(job.load(model), tasks, out, configs, job.data, job.argv)
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


def add_flags(parser: Parser) -> None:
    add_common(parser, "model", "dtype", "device", "tasks", "data", "out")
    for section in SECTIONS:
        add_section(parser, section, prefix=f"{section}_")
