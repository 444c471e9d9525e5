"""`reproduce()`: run the stages behind the tables and figures asked for, each once, and write them as one page."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from drllm.core.errors import InputError
from drllm.core.names import did_you_mean
from drllm.core.text import cost_lines, type_name
from drllm.reporting.parts import Bullets, Commands, Folded, Heading, Paragraph, Part, Table
from drllm.runs.layout import PAGE_FILE
from drllm.runs.names import owner_of
from drllm.runs.stages import Stages
from drllm.tasks import boxed_matches, get_task, load_task
from drllm_research.paper.ablations import ABLATIONS
from drllm_research.paper.by_readers import by_readers
from drllm_research.paper.claims import WORDS, Claim
from drllm_research.paper.exhibits import Exhibit, in_domain
from drllm_research.paper.figures import FIGURES
from drllm_research.paper.published import PAPER
from drllm_research.paper.setup import Setup
from drllm_research.paper.speed import LATENCY
from drllm_research.paper.stages import Bench, Evaluate, Stage
from drllm_research.paper.tables import TABLES
from drllm_research.paper.worked import Worked

EXHIBITS: dict[str, Exhibit] = {exhibit.name: exhibit for exhibit in (*TABLES, *FIGURES, LATENCY, *ABLATIONS)}
ALL = "all"
JUDGED = (
    "Claims are judged by the mean over tasks, each of which weighs the same, as the paper averages benchmarks; the row `all` of a table "
    "pools questions. A claim holds where the 95 % interval and the test of sign flips (p) say so; where they leave it open, that is said. "
    "Intervals are over questions: each policy was trained once, from one seed."
)
JUDGED_BY_MATH = ("boxed", "number")  # rewards


def wanted_exhibits(names: Sequence[str]) -> list[Exhibit]:
    """The tables and figures of these names, in the paper's order; `all` stands for every one. `InputError` for an unknown name."""
    for name in names:
        if name != ALL and name not in EXHIBITS:
            known = (*EXHIBITS, ALL)
            raise InputError(f"unknown table or figure {name!r}{did_you_mean(name, known)}; choose from {', '.join(known)}")
    if not names:
        raise InputError(f"no table or figure named: write `drllm reproduce table3`; choose from {', '.join((*EXHIBITS, ALL))}")
    return [exhibit for exhibit in EXHIBITS.values() if ALL in names or exhibit.name in names]


def stages_of(exhibits: Sequence[Exhibit], setup: Setup) -> list[Stage]:
    return list(dict.fromkeys(stage for exhibit in exhibits for stage in exhibit.stages(setup)))


def reproduce(bench: Bench, exhibits: Sequence[Exhibit]) -> Path:
    """Run every stage that is not done, and write `OUT/reproduce/<names>/report.html`, the same as `.md`, each picture as PNG and CSV.

    A stage that was done under the same settings is found again, so a killed call resumes, and a table asked for later takes what another
    has left. The page grows as tables and figures are done.

    Args:
        bench: the model, the setup, and what the search runs on.
        exhibits: what to show; `wanted_exhibits`.

    Returns:
        The path of the page.
    """
    from drllm.model.pool import threads_here
    from drllm.reporting.drawing import need_extras, write_charts
    from drllm.reporting.page import write_page

    need_extras()  # before hours of work
    check(bench, exhibits)
    name = ALL if len(exhibits) == len(EXHIBITS) else "-".join(exhibit.name for exhibit in exhibits)
    folder = bench.folder / name
    bench.stages = Stages(bench.setup.run, [[stage.name] for stage in stages_of(exhibits, bench.setup)])
    parts: list[Part] = []
    claims: list[tuple[Exhibit, Claim]] = []
    resources = bench.setup.resources
    with threads_here(resources):
        for exhibit in exhibits:
            for stage in exhibit.stages(bench.setup):
                bench.run(stage)
            section = _section(bench, exhibit)
            write_charts(section, folder)
            parts += section
            claims += [(exhibit, item) for part in section if isinstance(part, Bullets) for item in part.items if isinstance(item, Claim)]
            # After each of them: what a later one fails on must not cost those before it.
            write_page(_opening(bench), [*overview(bench, claims), *parts], folder)
        if (comparison := in_domain(bench.setup)) in bench.results:
            comparison.run(bench)  # the summary that `drllm report` finds is that of the routers and their blind baselines
    return folder / PAGE_FILE


def check(bench: Bench, exhibits: Sequence[Exhibit]) -> None:
    """Refuse what would fail only after the searches: missing questions, tasks out of domain that are not."""
    setup, evaluations = bench.setup, evaluations_of(exhibits, bench.setup)
    for name in setup.config.beside:
        if not setup.run.policy(owner_of(name) or name).is_dir():
            raise InputError(f"--beside {name}: {setup.out} holds no such policy, train it there first (drllm train --method NAME)")
    for task in setup.tasks:
        load_task(task, setup.data or None).select("fit", 1)
    learned = [get_task(task).reward_named(setup.config.reward) for task in setup.tasks]
    if {*learned, *(get_task(task).reward_named("auto") for task in setup.config.outside)} & {*JUDGED_BY_MATH}:
        boxed_matches(r"\boxed{1}", "1")  # starts its helper, or says what is missing
    for task, split in dict.fromkeys((task, stage.split) for stage in evaluations for task in stage.tasks):
        loaded = load_task(task, setup.data or None)
        (loaded.with_public_test() if split == "test" and task not in setup.tasks else loaded).select(split, 1)


def evaluations_of(exhibits: Sequence[Exhibit], setup: Setup) -> list[Evaluate | Worked]:
    """What will be compared on which tasks; `InputError` where a task out of domain is not."""
    evaluations = [stage for stage in stages_of(exhibits, setup) if isinstance(stage, Evaluate | Worked)]
    asked_outside = any(exhibit.name == "table4" for exhibit in exhibits)
    if asked_outside and (both := [task for task in setup.config.outside if task in setup.tasks]):
        raise InputError(f"--outside {both[0]}: the routers learn from it, so it is not out of domain")
    return evaluations


def _opening(bench: Bench) -> list[Part]:
    setup, config = bench.setup, bench.setup.config
    source = f" (questions from {setup.data})" if setup.data else ""
    searched: dict[str, list[str]] = {}
    for task in setup.tasks:
        searched.setdefault(setup.searched_in(task), []).append(task)
    dtype = type_name(bench.routed.model.dtype)
    others = [(name, tasks) for name, tasks in searched.items() if name not in ("", dtype)]
    elsewhere = "".join(f" The searches of {', '.join(tasks)} were done in {name}." for name, tasks in others)
    text = (
        f"Dr.LLM's tables and figures, made again at scale {config.scale:g}: learned from {_searched(bench)}{source}. {JUDGED} "
        f"{_splits(config.split)} Prompts {config.prompts}, reader {config.reader}; weights {bench.routed.fingerprint}, {dtype}.{elsewhere}"
    )
    return [Heading(f"{PAPER} on {setup.model}", 1), Paragraph(text)]


def _splits(split: str) -> str:
    if split == "test":
        return "Tables 3, 4 and 5 are of the test split, ablations of tune."
    return f"Tables 3 and 4 are of the {split} split, table 5 of calibrate, ablations of tune: test was not read, so none is a final table."


def _searched(bench: Bench) -> str:
    """How many questions of each task were kept, of how many the paper or its stand-in asks for at this scale, and how many visited."""
    found, asked = {task: bench.kept(task) for task in bench.setup.tasks}, bench.setup.n_searched
    return ", ".join(f"{task} {len(kept.records)} of {asked(task)} ({len(kept.visited)} visited)" for task, kept in found.items())


def overview(bench: Bench, claims: Sequence[tuple[Exhibit, Claim]]) -> list[Part]:
    """What became of each claim, with the command that judged it."""
    if not claims:
        return []
    rows = tuple(
        (WORDS[claim.holds], claim.text, claim.figures, claim.by, exhibit.name, _command(bench.setup, exhibit.name))
        for exhibit, claim in claims
    )
    header = ("here", "claim or question", "figures", "of", "exhibit", "command")
    return [Heading("What holds here"), Table(header, rows, "Each is judged in its section below.", frozenset({"command"}))]


def _section(bench: Bench, exhibit: Exhibit) -> list[Part]:
    setup = bench.setup
    lines = []
    for stage in exhibit.stages(setup):
        if isinstance(stage, Evaluate):
            stage = dataclasses.replace(stage, methods=bench.there(stage.methods))
        lines.append(stage.command(setup) or f"# {stage.name}: `drllm reproduce` alone does this")
    plain = Folded("The plain commands that do the same", (Commands(tuple(dict.fromkeys(lines))),))
    read = [part for stage in exhibit.stages(setup) if isinstance(stage, Evaluate) for part in by_readers(bench, stage)]
    return [Heading(exhibit.title), *exhibit.show(bench), *read, Paragraph(f"Made by `{_command(setup, exhibit.name)}`."), plain]


def _command(setup: Setup, name: str) -> str:
    return shlex.join(["drllm", "reproduce", name, *setup.flags])


def dry_run(exhibits: Sequence[Exhibit], setup: Setup, plain_ms: float) -> list[str]:
    """Every stage with its plain forwards and time, and their sum, as lines."""
    evaluations_of(exhibits, setup)  # what the real call refuses
    return cost_lines([(stage.name, stage.forwards(setup), stage.command(setup)) for stage in stages_of(exhibits, setup)], plain_ms)
