"""Intervals of runs of a benchmark, by hand, and that importing a benchmark changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import serve_runs  # noqa: E402
import timing  # noqa: E402


def test_runs_that_agree_narrow_one_another():
    """Four times the rounds, half the width, and no narrower, though runs that are all the same lie no way apart."""
    one = (1.2, 1.1, 1.2 * 1.2 / 1.1)
    ratio, low, high = serve_runs.combined([one] * 4)
    assert ratio == pytest.approx(1.2)
    assert high / low == pytest.approx((one[2] / one[1]) ** 0.5)


@pytest.mark.parametrize("medians", [(1.2, 1.8), (0.95, 1.2, 1.1), (1.0, 1.3, 0.9, 1.6)])
def test_runs_that_lie_apart_are_a_sample_of_runs(medians: tuple[float, ...]):
    """Where each is equally sure of itself: the t interval of the mean of their logarithms; two runs say next to nothing."""
    ratio, low, high = serve_runs.combined([(median, median / 1.02, median * 1.02) for median in medians])
    logs = np.log(medians)
    assert ratio == pytest.approx(np.exp(logs.mean()))
    assert (low, high) == pytest.approx(np.exp(stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))))


def serving_run(path: Path, limit: dict[str, Any], new: int = 32, processor: str = "P", **more: Any) -> Path:
    """A file of `benchmarks/serve.py` with one arm of nested routes, and one of the trained book if there is one."""
    arms = {"4 nested routes, compiled": {"ratio": [1.1, 1.0, 1.2]}, "stock, compiled": {"ratio": [1, 1, 1]}}
    arms |= {"trained book, compiled": {"ratio": [1.0, 0.9, 1.1]}} if "book" in more else {}
    row = {"batch": 32, "new": new, "arms": arms, "limit": limit}
    path.write_text(json.dumps({"serve": [row], "hardware": {"processor": processor}} | more))
    return path


def test_runs_of_old_and_new_files_are_read_together(tmp_path, capsys):
    old = serving_run(tmp_path / "old.json", {"compiled": {"speed": [0.98, 0.86, 1.07], "reached": [0.95, 0.8, 1.2]}})
    limit = {"speed": [1.05, 1.0, 1.09], "saving_reached": [0.5, -2.0, 3.0], "rounds": 10}
    new = serving_run(tmp_path / "new.json", {"4 nested routes, compiled": limit}, dtype="bfloat16")
    serve_runs.main([str(old), str(new)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model smollm2-135m-q4, dtype bfloat16, processor P, new tokens 32")
    assert lines[1].endswith("2 runs: 1.100, 1.100")
    assert lines[2].endswith("limit 0.980 (0.860 to 1.070), share of its saving not in the file   old.json")
    assert lines[3].endswith("limit 1.050 (1.000 to 1.090), of its saving reached 0.50 (-2.00 to 3.00)   new.json")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "float32"}, "has dtype float32, .* has bfloat16: give runs of one dtype"),
        ({"processor": "Q"}, "has processor Q"),
        ({"new": 16}, "has new tokens 16"),
        ({"book": "another"}, r"c.json has code book another, .*b.json has one: give runs of one code book"),
        ({"turns": "steps"}, "has turns of steps, .* has answers"),
        ({"asked": {"tasks": "piqa,arith-6", "reward": "generated"}}, "has questions piqa,arith-6 as generated, .* has arc_easy as text"),
    ],
)
def test_unlike_runs_are_not_combined(tmp_path, change: dict[str, Any], says: str):
    paths = [
        serving_run(tmp_path / "a.json", {}),
        serving_run(tmp_path / "b.json", {}, book="one"),
        serving_run(tmp_path / "c.json", {}, **change),
    ]
    with pytest.raises(SystemExit, match=says):
        serve_runs.main([str(path) for path in paths])


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 5])
def test_too_few_values_have_no_interval(values: list[float]):
    with pytest.raises(ValueError, match=f"{len(values)} values have no 95 % interval"):
        timing.median_interval(values)


def test_an_interval_by_order_statistics():
    """Of six values their range, 1 - 2 / 64 sure; of twenty the sixth and the fifteenth."""
    assert timing.median_interval([3, 1, 2, 6, 5, 4]) == [3.5, 1, 6]
    assert timing.median_interval(list(range(1, 21))) == [10.5, 6, 15]


@pytest.mark.long
def test_servers_of_the_http_benchmark_start_as_users_start_them():
    """Importing it sets no variable: each would reach the servers, as one thread for an engine that users give all cores."""
    code = "import os; before = dict(os.environ); import serve_http; assert dict(os.environ) == before, set(os.environ) ^ set(before)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BENCHMARKS)
