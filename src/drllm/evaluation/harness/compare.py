"""Paired comparison of any number of methods, from lm-evaluation-harness's per-sample logs (`--log_samples`). No torch, no harness."""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.errors import InputError
from drllm.core.files import read_json_lines
from drllm.core.text import p_value, percent, points, table_text
from drllm.runs.layout import SAMPLES_FILES, SAMPLES_NAME
from drllm.runs.summary import POOLED
from drllm.stats.paired import holm, mcnemar, paired_bootstrap

Scores = dict[tuple[str, str, str], dict[str, float]]  # (task, filter, metric) -> document -> value


def read_scores(folder: str | Path) -> Scores:
    """Every numeric metric of every document in a folder's sample logs, the latest of a task; `InputError` where there are none."""
    latest: dict[str, tuple[str, Path]] = {}
    for path in sorted(Path(folder).rglob(SAMPLES_FILES)):
        if match := SAMPLES_NAME.fullmatch(path.name):
            latest[match["task"]] = max(latest.get(match["task"], ("", path)), (match["date"] or "", path))
    if not latest:
        raise InputError(f"{folder} holds no sample logs (samples_TASK.jsonl): run the harness with --log_samples --output_path {folder}")
    scores: defaultdict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for task, (_, path) in sorted(latest.items()):
        for number, sample in read_json_lines(path, "run the harness again"):
            try:
                document = f"{sample['doc_id']}:{sample['doc_hash']}"
                values = {metric: sample[metric] for metric in sample["metrics"]}
                kind = sample.get("filter", "none")
            except (KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a sample of the harness ({type(error).__name__}: {error})") from None
            for metric, value in values.items():
                if isinstance(value, bool | int | float) and math.isfinite(value):
                    scores[task, kind, metric][document] = float(value)
    return dict(scores)


def compare(methods: Mapping[str, Scores], n_resamples: int = 10_000, seed: int = 0) -> list[dict[str, Any]]:
    """Rows: each method against the first on each task, filter and metric, and on all tasks of a metric together.

    Differences are of means over the same documents, with the percentile bootstrap's 95 % interval (stratified by task in the pooled rows);
    McNemar's exact p where every value is 0 or 1, Holm's adjustment over the tasks. `InputError` where the documents are not the same.
    """
    names = list(methods)
    if n_resamples < 1:
        raise InputError(f"got {n_resamples} bootstrap resamples, expected at least 1")
    if len(names) < 2:
        raise InputError(f"got {len(names)} methods to compare, expected at least two: NAME=FOLDER NAME=FOLDER ...")
    reference = methods[names[0]]
    rows = []
    for name in names[1:]:
        by_metric: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        values: defaultdict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for key, base_of in reference.items():
            task, kind, metric = key
            ours_of = methods[name].get(key)
            if ours_of is None:
                raise InputError(f"{names[0]} has {metric} of {task} (filter {kind}), {name} has not: run both on the same tasks")
            if ours_of.keys() != base_of.keys():
                counts = f"{len(base_of)} and {len(ours_of)}, {len(base_of.keys() ^ ours_of.keys())} in one only"
                both = f"{names[0]} and {name} did not answer the same documents of {task} ({counts})"
                raise InputError(f"{both}: use the same task, split and limit")
            ours, base = (np.array([found[document] for document in base_of]) for found in (ours_of, base_of))
            what = {"method": name, "task": task, "filter": kind, "metric": metric}
            by_metric[kind, metric].append(what | _row(ours, base, None, n_resamples, seed))
            values[kind, metric].append((ours, base))
        for (kind, metric), group in by_metric.items():
            adjusted = iter(holm([row["mcnemar_p"] for row in group if row["mcnemar_p"] is not None]))
            for row in group:
                row["holm_p"] = None if row["mcnemar_p"] is None else next(adjusted)
            rows += group
            if len(group) > 1:
                ours, base = (np.concatenate([pair[which] for pair in values[kind, metric]]) for which in (0, 1))
                strata = np.concatenate([np.full(len(pair[0]), index) for index, pair in enumerate(values[kind, metric])])
                what = {"method": name, "task": POOLED, "filter": kind, "metric": metric}
                rows.append(what | _row(ours, base, strata, n_resamples, seed))
    return rows


def _row(ours: np.ndarray, base: np.ndarray, strata: np.ndarray | None, n_resamples: int, seed: int) -> dict[str, Any]:
    difference, low, high = paired_bootstrap(ours, base, n_resamples, seed, strata)
    is_binary = bool(np.isin(ours, (0, 1)).all() and np.isin(base, (0, 1)).all())
    means = {"n": len(ours), "reference": float(base.mean()), "value": float(ours.mean())}
    change = {"difference": difference, "difference_low": low, "difference_high": high}
    counts = {"better": int((ours > base).sum()), "worse": int((ours < base).sum())}
    return means | change | counts | {"mcnemar_p": mcnemar(ours, base) if is_binary else None, "holm_p": None}


def render(rows: list[dict[str, Any]], reference: str) -> str:
    """The rows for a terminal, a table a metric: shares in percent and differences in points; other metrics as they are."""
    by_metric: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_metric[row["metric"], row["filter"]].append(row)
    return "\n".join(_table(name if kind == "none" else f"{name}, {kind}", some, reference) for (name, kind), some in by_metric.items())


def _table(metric: str, rows: list[dict[str, Any]], reference: str) -> str:
    title = f"{metric} against {reference}, paired, 95 % intervals; + / -: documents only one is right on"
    is_share = all(0 <= row[name] <= 1 for row in rows for name in ("reference", "value"))
    show, change = (percent, points) if is_share else ("{:.4g}".format, "{:+.4g}".format)
    unit = ", %" if is_share else ""
    header = ("method", "task", "n", f"{reference}{unit}", f"own{unit}", "difference", "+ / -", "McNemar p", "Holm p")
    lines = []
    for row in rows:
        p, adjusted = ("" if row[name] is None else p_value(row[name]) for name in ("mcnemar_p", "holm_p"))
        means = (str(row["n"]), show(row["reference"]), show(row["value"]))
        interval = f"{change(row['difference'])} ({change(row['difference_low'])} to {change(row['difference_high'])})"
        lines.append((row["method"], row["task"], *means, interval, f"{row['better']} / {row['worse']}", p, adjusted))
    return table_text(header, lines, title)
