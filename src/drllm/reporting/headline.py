"""What a report opens with: one sentence of the comparison that tells most, and the other verdicts folded."""

from dataclasses import dataclass

from drllm.core.text import p_value, with_interval
from drllm.reporting.parts import Bullets, Folded, Part, Table
from drllm.runs.load import Run
from drllm.runs.names import owner_of
from drllm.runs.summary import Summary, SummaryRow, mean_over_tasks

WORDS = {True: "better", False: "worse", None: "no sure difference"}
UNCHANGED = "the same"


@dataclass(frozen=True)
class Compared:
    """A policy beside the reference on one split, all tasks together."""

    split: str
    summary: Summary
    row: SummaryRow

    @property
    def word(self) -> str:
        """As `drllm.reporting.summary_table.verdict`, in a word: claimed only where interval and McNemar's test agree."""
        if not self.row.better and not self.row.worse:
            return UNCHANGED
        return WORDS[self.row.is_gain]

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of the table of other comparisons."""
        row, passes = self.row, f"{self.row.mean_passes:.2f} of {self.row.n_layers}"
        return row.method, self.word, row.change, p_value(row.mcnemar_p), f"{row.n:,}", passes, self.split

    def sentence(self, even: tuple[float, float, float, float] | None) -> str:
        """What became of it; `even`: (mean over tasks, low, high, p), where there are several and it is known."""
        row, reference, tasks = self.row, self.summary.reference, self.summary.tasks
        claim = f"{self.word} than the {reference}" if self.word in ("better", "worse") else f"{self.word} from the {reference}"
        if self.word == UNCHANGED:
            claim = f"{self.word} as the {reference}, no verdict changes"
        among = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
        evenly = "" if even is None else f"with each task weighing the same {with_interval(*even[:3])}, p {p_value(even[3])}; "
        return (
            f"{row.method}: {claim}: {row.change} points, 95 % interval in brackets, McNemar p {p_value(row.mcnemar_p)}, "
            f"on {row.n:,} questions of {among} ({self.split} split); {evenly}"
            f"it makes {row.mean_passes:.1f} block passes a prompt, the {reference} {row.n_layers}."
        )


def judged(summary: Summary) -> list[str]:
    """The methods of an evaluation that are judged, routers first: no reference and no blind baseline."""
    methods = dict.fromkeys(row.method for row in summary.rows)
    return sorted((name for name in methods if name != summary.reference and not owner_of(name)), key=lambda name: name != "routers")


def by_size(run: Run) -> dict[str, Summary]:
    """The summaries, those of most questions first: they tell most."""
    return dict(sorted(run.summaries.items(), key=lambda item: -max((row.n for row in item[1].rows), default=0)))


def headline(run: Run) -> list[Part]:
    """The verdict on the policy that was compared on most questions in domain, and all others in a folded table.

    Below a recommendation the table alone.
    """
    rows = [(split, summary, method) for split, summary in by_size(run).items() for method in judged(summary)]
    found = [Compared(split, summary, row) for split, summary, method in rows for row in summary.pooled if row.method == method]
    if not found:
        return []
    header = ("method", "verdict", "vs base, points", "McNemar p", "n", "mean passes", "split")
    if run.recommendation is not None:  # which the page opens with
        return [Folded(f"All comparisons ({len(found)})", (Table(header, tuple(one.cells for one in found)),))]
    first = max(found, key=lambda compared: _tells(run, compared))
    parts: list[Part] = [Bullets((first.sentence(_evenly(run, first)),))]
    if others := [other for other in found if other is not first]:
        parts.append(Folded(f"Other comparisons ({len(others)})", (Table(header, tuple(other.cells for other in others)),)))
    return parts


def _evenly(run: Run, compared: Compared) -> tuple[float, float, float, float] | None:
    """The mean over tasks, where they are of different sizes: of pooled questions the task with the most of them decides."""
    tasks = compared.summary.tasks
    methods = compared.row.method, compared.summary.reference
    files = [[run.questions.get((compared.split, method, task)) for task in tasks] for method in methods]
    if not all(map(all, files)):
        return None
    ours, base = ([[row["correct"] for row in part or ()] for part in parts] for parts in files)
    if len({len(part) for part in base}) == 1:
        return None  # the same as of the questions pooled
    return mean_over_tasks(ours, base)


def _tells(run: Run, compared: Compared) -> tuple[bool, int, bool, bool]:
    """The order of comparisons by how much they tell: first those in domain, on many questions, of routers, and of what looks
    at prompts."""
    row = compared.row
    in_domain = not run.manifests or set(compared.summary.tasks) <= set(run.manifests)
    return in_domain, row.n, row.method == "routers", row.distinct_routes != 1
