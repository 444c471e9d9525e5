"""What a report opens with: one sentence of the comparison that tells most."""

from drllm.core.text import p_value, with_interval
from drllm.reporting.parts import Bullets, Part
from drllm.reporting.summary_table import verdict
from drllm.runs.load import Run
from drllm.runs.names import owner_of
from drllm.runs.summary import Summary, SummaryRow, mean_over_tasks


def by_size(run: Run) -> dict[str, Summary]:
    """The summaries, those of most questions first: they tell most."""
    return dict(sorted(run.summaries.items(), key=lambda item: -max((row.n for row in item[1].rows), default=0)))


def headline(run: Run) -> list[Part]:
    """The verdict on the policy that was compared on most questions in domain; none of the reference, nor of blind baselines."""
    found = [(split, summary, row) for split, summary in by_size(run).items() for row in summary.pooled]
    judged = [one for one in found if one[2].method != one[1].reference and not owner_of(one[2].method)]
    if not judged:
        return []
    split, summary, row = max(judged, key=lambda one: _tells(run, *one[1:]))
    tasks = summary.tasks[0] if len(summary.tasks) == 1 else f"{len(summary.tasks)} tasks"
    return [Bullets((f"{verdict(summary, row.method)} ({tasks}, {split} split{_evenly(run, split, summary, row)})",))]


def _evenly(run: Run, split: str, summary: Summary, row: SummaryRow) -> str:
    """The mean over tasks, where they are of different sizes: of pooled questions the task with the most of them decides."""
    files = [[run.questions.get((split, method, task)) for task in summary.tasks] for method in (row.method, summary.reference)]
    if not all(map(all, files)):
        return ""
    ours, base = ([[answer["correct"] for answer in part or ()] for part in parts] for parts in files)
    if len({len(part) for part in base}) == 1:
        return ""  # the same as of the questions pooled
    mean, low, high, p = mean_over_tasks(ours, base)
    return f"; with each task weighing the same {with_interval(mean, low, high)}, p {p_value(p)}"


def _tells(run: Run, summary: Summary, row: SummaryRow) -> tuple[bool, int, bool, bool]:
    """First those in domain, on many questions, of routers, and of what looks at prompts."""
    in_domain = not run.manifests or set(summary.tasks) <= set(run.manifests)
    return in_domain, row.n, row.method == "routers", row.distinct_routes != 1
