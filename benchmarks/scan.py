"""What racing saves, and what it misses: the race of `drllm scan` replayed on every candidate's answers to every question.

    python benchmarks/scan.py product --out runs/scan-product      # an hour or two on two cores; the same command resumes
    python benchmarks/scan.py replay runs/scan-product/product.npz --to runs/replay.json

`product` runs all candidates on all questions, the same that `drllm scan` races on. `replay` races on them and on many parts of them, as a
scan asks them and as they come: what it costs, how often it names the candidate that is best on all of them, how far below that one its own
choice lies, and what the best seems to gain where nothing gains anything (each question's differences turned by a coin).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np

from drllm.cli.terminal import show_progress
from drllm.core.config import Resources, ScanConfig
from drllm.core.files import write_bytes, write_json
from drllm.scanning.questions import least_sure_first
from drllm.scanning.race import race, schedule, scores
from drllm.scanning.spans import Candidate, candidate, candidates, forwards_a_question

ORDERS, PART = 200, 7 / 8  # sets of questions that are drawn, and how large they are
KINDS = ("loop", "damped", "skip")


def product(arguments: argparse.Namespace) -> None:
    """Every candidate on every question, in a run folder."""
    import torch

    from drllm import RoutedModel
    from drllm.scanning.questions import Questions, choose
    from drllm.scoring.asking import asking
    from drllm.tasks import load_task

    show_progress()
    torch.set_num_threads(arguments.threads)
    routed = RoutedModel.wrap(arguments.model, dtype=getattr(torch, arguments.dtype) if arguments.dtype else None)
    loaded = {name: load_task(name, arguments.data) for name in arguments.tasks.split(",")}
    config = ScanConfig(questions=arguments.questions, first_questions=min(8, arguments.questions), fresh=0)
    raced, _ = choose(routed, loaded, config)
    pool = candidates(routed.n_layers, KINDS, config.strength)
    with asking(routed, arguments.out, Resources(threads=arguments.threads)) as bench:
        verdicts, margins = Questions(bench, loaded, config).ask([one.route for one in pool], raced, "fit", "product")
    found = {
        "model": np.array(routed.base_id),
        "fingerprint": np.array(routed.fingerprint),
        "dtype": np.array(str(routed.model.dtype)),
        "n_layers": np.array(routed.n_layers),
        "strength": np.array(config.strength),
        "tasks": np.array([task for task, _ in raced]),
        "ids": np.array([example.id for _, example in raced]),
        "kinds": np.array([one.kind for one in pool]),
        "spans": np.array([(one.first, one.last) for one in pool], dtype=np.int16),
        "verdicts": np.packbits(verdicts, axis=1),
        "margins": margins.astype(np.float16),
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **found)
    write_bytes(arguments.out / "product.npz", packed.getvalue())
    print(arguments.out / "product.npz")


class Product:
    """A stored product: verdicts and margins (Q, 1 + C), the base first."""

    def __init__(self, path: Path):
        with np.load(path) as stored:
            self.facts = {name: stored[name].item() for name in ("model", "fingerprint", "dtype", "n_layers", "strength")}
            spans = stored["spans"].tolist()
            self.pool = [self._candidate(kind, *span) for kind, span in zip(stored["kinds"].tolist(), spans, strict=True)]
            self.verdicts = np.unpackbits(stored["verdicts"], axis=1, count=1 + len(self.pool)).astype(bool)
            self.margins = stored["margins"].astype(float)
            self.tasks = stored["tasks"].tolist()

    def _candidate(self, kind: str, first: int, last: int) -> Candidate:
        return candidate(kind, first, last, self.facts["n_layers"], self.facts["strength"])

    def forwards(self, alive: list[int]) -> float:
        """Plain forwards a question of these candidates and the base."""
        return forwards_a_question(self.facts["n_layers"], [self.pool[one] for one in alive])


def replay(arguments: argparse.Namespace) -> None:
    """Race on the stored answers, and say what came of it."""
    stored = Product(arguments.source)
    whole = scores(stored.verdicts, stored.margins)
    gain_C = (whole[:, 1:] - whole[:, :1]).mean(0)
    accuracy_C = (stored.verdicts[:, 1:].mean(0) - stored.verdicts[:, 0].mean()).tolist()
    kinds = [one.kind for one in stored.pool]
    found = {
        **stored.facts,
        "questions": len(stored.verdicts),
        "candidates": len(stored.pool),
        "base_accuracy": float(stored.verdicts[:, 0].mean()),
        "full_forwards": len(stored.verdicts) * stored.forwards(list(range(len(stored.pool)))),
        "best": [_told(stored, gain_C, accuracy_C, one) for one in np.argsort(-gain_C, kind="stable")[:10]],
        "of_kind": {kind: _told(stored, gain_C, accuracy_C, _best_of(gain_C, kinds, kind)) for kind in KINDS},
    }
    everything = np.arange(len(stored.verdicts))
    found["as_scanned"] = raced(stored, kinds, [asked_first(stored, everything)])
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.choice(everything, round(PART * len(everything)), replace=False)) for _ in range(arguments.orders)]
    found["subsets"] = {
        "n": len(drawn),
        "questions": len(drawn[0]),
        "least_sure_first": raced(stored, kinds, [asked_first(stored, one) for one in drawn]),
        "as_they_come": raced(stored, kinds, [rng.permutation(one) for one in drawn]),
    }
    found["curse"] = _curse(stored, arguments.orders)
    found["probes"] = _probes(stored)
    print(json.dumps(found, indent=1))
    if arguments.to:
        write_json(arguments.to, found)


def asked_first(stored: Product, questions: np.ndarray) -> np.ndarray:
    """These questions in the order in which a scan asks them."""
    return questions[least_sure_first([stored.tasks[one] for one in questions], stored.margins[questions, 0])]


def _best_of(gain_C: np.ndarray, kinds: list[str], kind: str) -> int:
    return max((one for one in range(len(kinds)) if kinds[one] == kind), key=lambda one: gain_C[one])


def _told(stored: Product, gain_C: np.ndarray, accuracy_C: list[float], one: int) -> dict[str, object]:
    shown = stored.pool[one]
    return {"kind": shown.kind, "first": shown.first, "last": shown.last, "score": float(gain_C[one]), "accuracy": accuracy_C[one]}


def raced(stored: Product, kinds: list[str], orders: list[np.ndarray]) -> dict[str, object]:
    """Over sets of questions, as they are asked: cost, how often the race names the best of all on them, how much score it lacks."""
    whole, full = scores(stored.verdicts, stored.margins), stored.forwards(list(range(len(kinds))))
    costs, same, lacking, of_kind, winners = [], [], [], [], []
    for order in orders:
        gain_C = (whole[order, 1:] - whole[order, :1]).mean(0)
        top = set(np.argsort(-gain_C, kind="stable")[: ScanConfig().winners].tolist())
        sizes = schedule(len(order), ScanConfig().first_questions)
        spent = float(len(order))  # of the base, whose margins order the questions

        def ask(alive: list[int], start: int, stop: int, order: np.ndarray = order) -> tuple[np.ndarray, np.ndarray]:
            nonlocal spent
            spent += (stop - start) * stored.forwards(alive)
            rows, columns = order[start:stop, None], [0, *(1 + one for one in alive)]
            return stored.verdicts[rows, columns], stored.margins[rows, columns]

        ranking = race(kinds, sizes, ScanConfig().winners, ask).ranking
        costs.append(spent / (len(order) * full))
        lacking.append(float(gain_C.max() - gain_C[ranking[0]]))
        same.append(lacking[-1] == 0)
        winners.append(len(top & set(ranking[: len(top)])) / len(top))
        best = {kind: _best_of(gain_C, kinds, kind) for kind in KINDS}
        of_kind.append([next(one for one in ranking if kinds[one] == kind) == best[kind] for kind in KINDS])
    return {
        "share_of_full_cost": float(np.mean(costs)),
        "largest_share": float(np.max(costs)),
        "same_best": float(np.mean(same)),
        "same_best_of_kind": dict(zip(KINDS, np.mean(of_kind, axis=0).tolist(), strict=True)),
        "of_the_true_winners": float(np.mean(winners)),
        "score_lacking": float(np.mean(lacking)),
        "score_lacking_at_most": float(np.max(lacking)),
    }


def _curse(stored: Product, n: int) -> dict[str, float]:
    """What the best seems to gain where nothing does: each question's differences keep their size, a coin gives their sign."""
    whole = scores(stored.verdicts, stored.margins)
    score_QC, right_QC = whole[:, 1:] - whole[:, :1], stored.verdicts[:, 1:].astype(float) - stored.verdicts[:, :1]
    # Candidates that ruin the model can win by no coin's favour: the curse is of those that the last round keeps.
    alive = np.argsort(-score_QC.mean(0), kind="stable")[: len(stored.pool) // 16]
    rng, points = np.random.default_rng(1), []
    for _ in range(n):
        signs = rng.choice((-1.0, 1.0), size=(len(score_QC), 1))
        best = int((signs * score_QC[:, alive]).mean(0).argmax())
        points.append(float((signs[:, 0] * right_QC[:, alive[best]]).mean()))
    return {"mean": float(np.mean(points)), "low": float(np.quantile(points, 0.025)), "high": float(np.quantile(points, 0.975))}


def _probes(stored: Product, lengths: tuple[int, ...] = (3, 4), tried: int = 30, n: int = 17, draws: int = 2000) -> dict[str, object]:
    """How published spans were found: the best of 30 short loops on 17 questions; what it seems to gain, and has on the other questions."""
    right_QC = stored.verdicts[:, 1:].astype(float) - stored.verdicts[:, :1]
    pool = [place for place, one in enumerate(stored.pool) if one.kind == "loop" and one.length in lengths]
    rng, seems, rest = np.random.default_rng(2), [], []
    for _ in range(draws):
        order, chosen = rng.permutation(len(right_QC)), rng.choice(pool, min(tried, len(pool)), replace=False)
        gains = right_QC[order[:n]][:, chosen].mean(0)
        best = int(chosen[int(gains.argmax())])
        seems.append(float(gains.max()))
        rest.append(float(right_QC[order[n:], best].mean()))
    told = {"spans": len(pool), "lengths": " or ".join(map(str, lengths)), "tried": min(tried, len(pool)), "questions": n, "draws": draws}
    low, high = np.quantile(seems, [0.025, 0.975])
    return {**told, "seems": float(np.mean(seems)), "low": float(low), "high": float(high), "rest": float(np.mean(rest))}


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    jobs = parser.add_subparsers(required=True)
    one = jobs.add_parser("product")
    one.add_argument("--model", default="smollm2-135m-q4")
    one.add_argument("--tasks", default="arc_easy,arc_challenge,openbookqa")
    one.add_argument("--data")
    one.add_argument("--dtype", default="")
    one.add_argument("--questions", type=int, default=128)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=product)
    one = jobs.add_parser("replay")
    one.add_argument("source", type=Path)
    one.add_argument("--orders", type=int, default=ORDERS)
    one.add_argument("--to", type=Path)
    one.set_defaults(run=replay)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
