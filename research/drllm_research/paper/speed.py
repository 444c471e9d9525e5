"""Table 7 of the paper, and its latency: what `drllm.evaluation.clock` measures."""

import math
from collections.abc import Mapping

from scipy import stats

from drllm.core.text import p_value
from drllm.reporting.parts import Bullets, Part, Table
from drllm.runs.provenance import read_jobs
from drllm.stats.paired import decided, holm
from drllm_research.paper import published as paper
from drllm_research.paper.claims import Claim, jointly
from drllm_research.paper.exhibits import Exhibit, after_routers
from drllm_research.paper.stages import ROUNDS, Bench, Clock

TIMED = (
    "Times are medians of the rounds, ratios the geometric mean of the rounds' own ratios, so the two need not agree; what else the "
    "machine did counts in both."
)


def _table7(bench: Bench) -> list[Part]:
    found = bench.run(Clock("throughput"))
    rows = []
    for row in found:
        theirs = f"{100 * paper.THROUGHPUT[row['batch']]:+.1f}" if row["batch"] in paper.THROUGHPUT else ""
        speeds = f"{row['base_tokens_s']:.1f}", f"{row['routed_tokens_s']:.1f}"
        gained = f"{100 * (1 / row['ratio'] - 1):+.1f}"
        rows.append((str(row["batch"]), *speeds, _ratio(row), gained, f"{row['passes']:.2f}", theirs))
    columns = ("base, tokens/s", "routers, tokens/s", "seconds, routers / base", "throughput, %", "mean passes", f"{paper.PAPER}, %")
    adjusted = holm([p_of_ratio(row) for row in found])
    faster = [decided(1 - row["ratio_high"], 1 - row["ratio_low"], p) for row, p in zip(found, adjusted, strict=True)]
    ratios = "; ".join(f"{_ratio(row)[:-1]}, Holm's p {p_value(p)}) at {row['batch']}" for row, p in zip(found, adjusted, strict=True))
    judged = Claim("routers raise throughput at every batch size", jointly(faster), f"Seconds of routers over base: {ratios}")
    caption = f"{found[0]['tokens']} tokens an answer by transformers' `generate`, base and routers in turn on the same questions."
    return [Table(("batch", *columns), tuple(rows), f"{caption} {TIMED}{machine(bench)}"), Bullets((judged,))]


def _latency(bench: Bench) -> list[Part]:
    found = bench.run(Clock("latency"))
    base, routed, router = paper.LATENCY
    share = f"{100 * found['router'] / found['routed']:.2f}"
    rows = (
        ("base, seconds", f"{found['base']:.2f}", f"{base:.2f}"),
        ("routers, seconds", f"{found['routed']:.2f}", f"{routed:.2f}"),
        ("routers / base", _ratio(found), f"{routed / base:.3f}"),
        ("of which deciding, seconds", f"{found['router']:.4f}", f"{router:.2f}"),
        ("deciding, % of the answer", share, f"{100 * router / routed:.2f}"),
        ("block passes", f"{found['passes']:.1f}", ""),
    )
    header = (f"{found['tokens']} tokens, one prompt", "here", f"{paper.PAPER}: 1,000 tokens, a model and hardware of its own")
    is_faster, is_cheap = decided(1 - found["ratio_high"], 1 - found["ratio_low"]), found["router"] < 0.01 * found["routed"]
    claims = (
        Claim("a long answer takes less time", is_faster, f"Seconds of routers over base: {_ratio(found)}"),
        Claim("deciding takes below 1 % of it", is_cheap, f"{share} % by medians, which have no interval"),
    )
    return [Table(header, rows, f"{TIMED}{machine(bench)}"), Bullets(claims)]


def _ratio(row: Mapping[str, float]) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def machine(bench: Bench) -> str:
    """What the run's last job ran on, as a sentence; empty where no job has said so."""
    found = next((job["hardware"] for job in reversed(read_jobs(bench.setup.out)) if job.get("hardware")), None)
    return f" On {found['processor']}, {found['cores']} cores." if found else ""


def p_of_ratio(row: Mapping[str, float]) -> float:
    """Two-sided p of a ratio of seconds, of the t test behind its interval (`drllm.evaluation.clock`)."""
    half = math.log(row["ratio_high"] / row["ratio_low"]) / 2
    if half == 0:
        return 1.0 if row["ratio"] == 1 else 0.0
    t = stats.t(ROUNDS - 1)
    return float(2 * t.sf(abs(math.log(row["ratio"])) / half * t.ppf(0.975)))


TABLE_7 = Exhibit("table7", "Table 7: throughput", after_routers(lambda _: Clock("throughput")), _table7)
LATENCY = Exhibit("latency", "Latency of a long answer", after_routers(lambda _: Clock("latency")), _latency)
