"""Healed routes beside the base, the bare routes, and what a team would do instead: one table (healed.md of docs/).

    python -m drllm_research.healed run --model smollm2-135m-q4 --healing runs/heal-0.8 --healing runs/heal-0.9 --healing runs/heal-0.7 \\
        --asked commonsenseqa,piqa,sciq,boolq --data DATA --run runs/healed --out OUT
    python -m drllm_research.healed run ... --split test     # once, when nothing is chosen any more
    python -m drllm_research.healed page --out OUT

Each --healing is the folder of a finished `drllm heal --tasks`; all of the same tasks and data. The first gives the route, the prompts and
the settings of the adapters that are trained beside them. Adapters, verdicts and figures are kept in --run: the same command goes on where
it was. `page` reads what stands in --out alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from drllm import show_progress
from drllm_research.comparison.stored import Results
from drllm_research.healed.page import SETTING, write_page
from drllm_research.healed.rows import CONTROLS

KEPT = ("model", "dtype", "split", "limit", "shots", "texts", "tokens", "clocked", "rounds", "threads")  # of the command line


def measure(given: argparse.Namespace) -> None:
    from drllm import RoutedModel
    from drllm.model.pool import torch_threads
    from drllm.runs.layout import RunFolder
    from drllm.runs.provenance import alone_in
    from drllm.runs.stages import Stages
    from drllm_research.healed.measures import Measured, agreement
    from drllm_research.healed.rows import Trainer

    routed, run = RoutedModel.wrap(given.model, dtype=given.dtype), RunFolder(given.run)
    with alone_in(run.root, "healed"), torch_threads(given.threads):
        trainer = Trainer(routed, Stages(run, []), run, list(map(RunFolder, given.healing)), given.data, given.steps, given.texts)
        asked = [[one for one in of.split(",") if one] for of in (given.rounded, given.controls)]
        measured = Measured(trainer, trainer.rows(*asked), given)
        (right, near), clock = measured.all(), measured.clock()
    figures = []
    for row in measured.rows:
        figures.append({"name": row.name, "kind": row.kind, "passes": row.route.n_passes, "mb": measured.megabytes(row)})
        figures[-1] |= {"trained": row.trained, "clock": clock.get(row.name)}
        if (of := near.get(row.name)) is not None:
            figures[-1] |= {name: of[name] for name in ("kl", "same", "nats")}
            figures[-1]["agreement"] = agreement(of["answers"], near["base"]["answers"])
    budget = trainer.healed()[0][0]
    read = {name: near[name]["answers"] for name in ("base", f"skip {budget}", f"healed {budget}")}
    places = [0, len(measured.prompts["in"])][: len(measured.tasks)]  # the first prompt of each part
    examples = [
        {name: routed.tokenizer.decode(ids) for name, ids in (("prompt", measured.asked[at]), *((row, of[at]) for row, of in read.items()))}
        for at in places
    ]
    about = {name: getattr(given, name) for name in KEPT} | {"blocks": routed.n_layers, "tasks": measured.tasks}
    about |= {"noise": clock["base again"], "rows": figures, "examples": examples}
    shared = {task: [one for one in of if all(one in row[task] for row in right.values())] for task, of in right["base"].items()}
    keys = [(task, one) for task, ids in shared.items() for one in ids]  # what every row could be asked
    answered = {}
    for row in measured.rows:
        told = {"task": [task for task, _ in keys], "id": [one for _, one in keys], "route": [str(row.route)] * len(keys)}
        told |= {"n_passes": [float(row.route.n_passes)] * len(keys), "correct": [right[row.name][task][one] for task, one in keys]}
        answered[row.name, 0] = told
    results = Results(given.out)
    results.add(SETTING, given.split, answered, dict.fromkeys(answered, ""))
    results.tell(about, SETTING, given.split)


def main(arguments: Sequence[str] | None = None) -> None:
    show_progress()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("job", choices=("run", "page"))
    parser.add_argument("--out", type=Path, required=True, action="append", help="page: several, one a model")
    parser.add_argument("--to", type=Path, default=Path("docs"), help="page: the folder of healed.md and its pictures")
    parser.add_argument("--model", default="smollm2-135m-q4")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--healing", type=Path, action="append", default=[], help="folder of a finished healing; one a budget")
    parser.add_argument("--asked", default="commonsenseqa,piqa,sciq,boolq", help="tasks beside those healed on")
    parser.add_argument("--data", type=Path, help="folder of the tasks' questions, squadv2 among them: its passages are the plain text")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--split", default="tune", choices=("tune", "test"))
    parser.add_argument("--limit", type=int, default=0, help="questions a task at most; 0: all")
    parser.add_argument("--steps", type=int, default=0, help="of the trainings; 0: as many as the first healing was given")
    parser.add_argument("--shots", type=int, default=4, help="solved questions before each question of that row")
    parser.add_argument("--rounded", default="q4_0,3,2", help="q4_0, or bits a weight")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="of these, how the first healing is trained again")
    parser.add_argument("--texts", type=int, default=96, help="held-out prompts of tasks healed on, of others, and plain texts, each")
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt whose seconds are measured")
    parser.add_argument("--clocked", type=int, default=20, help="such prompts")
    parser.add_argument("--rounds", type=int, default=5, help="of each such prompt")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.job == "page":
        write_page(given.to, given.out)
        return
    if unknown := {*given.controls.split(",")} - {*CONTROLS, ""}:
        parser.error(f"--controls {', '.join(unknown)} is none of {', '.join(CONTROLS)}")
    if len(given.out) > 1 or not given.healing or given.run is None or given.data is None:
        parser.error("run takes one --out, and --healing, --data and --run")
    (given.out,) = given.out
    measure(given)


if __name__ == "__main__":
    main()
