"""What the dense records of a run say already of questions that policies are compared on. No torch."""

from collections import defaultdict
from pathlib import Path

from drllm.runs.records import iterate_records
from drllm.scoring.verdict import Known, Verdict


def known_verdicts(matrices: Path) -> dict[str, dict[str, Known]]:
    """The verdicts of a folder of dense records, by split and task."""
    found: dict[str, dict[str, Known]] = defaultdict(dict)
    for record in iterate_records(matrices):
        known = found[record.split].setdefault(record.task, Known())
        for route, reward, margin, acc, acc_norm in zip(
            record.routes, record.rewards, record.margins, record.acc, record.acc_norm, strict=True
        ):
            known[record.id, str(route)] = Verdict(reward > 0.5, margin, acc, acc_norm)
    return dict(found)
