"""Writes docs/audit.md from `tools/claims.yaml` and the scans that stand in results/; a test holds the page to them.

python tools/write_audit.py
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drllm.core.text import p_value, points, with_interval
from drllm.runs.layout import ScanFolder
from drllm.runs.scan_result import CLAIM_LEAD, CLAIMED, ELSEWHERE, LEAD, RANDOM, WINNER, Difference, Measured, ScanResult, read_scan

ROOT = Path(__file__).resolve().parents[1]
PAGE, CLAIMS, RESULTS = ROOT / "docs" / "audit.md", ROOT / "tools" / "claims.yaml", ROOT / "results"
WIDTH = 140
HEAD = """# Published gains, measured again

Some models are said to answer better when a span of their blocks runs twice. The gains were mostly found by trying many spans on few
questions and naming the best. This page measures such claims about models that run here: on questions that chose nothing, question by
question beside the base, with 95 % intervals, and beside random spans. Written by `python tools/write_audit.py` from
`tools/claims.yaml` and the scans in `results/`.
"""
OWN = """## Audit another model

```
drllm scan --model ID --tasks arc_easy,arc_challenge,openbookqa --questions 0 --claimed "12-14 twice" --out runs/audit
```

`ID` is a Hub id, a folder or a `.gguf` file; `--data FILE.jsonl` asks questions of your own. The same change at five other places, drawn
blindly, is measured beside it. A file of claims with gain and source, and how to read the verdict: [scan and audit](scan.md#audit-a-claim).

## Not measurable here
These models do not fit the machine of these measurements. The command above measures the claims where they fit.

| model | claimed by | claim | why not here |
| --- | --- | --- | --- |
| Qwen3.6-27B | XpressAI | blocks 33 to 36 twice: BFCL 82.6 to 84.5 | 27 billion weights |
| Qwen3-4B | arXiv 2605.23872 | damped loops: MMLU-Pro +2.64 | 4 billion weights, on two cores |
| Qwen2-72B | dnhkng/RYS | blocks 45 to 51 twice | 72 billion weights |

What others found when they measured again: the best span of Qwen3.5-27B shrank from +.210 on 32 probes to +.129 on 259 (dnhkng/RYS); the
headline of llm-circuit-finder, .22 to .76, was withdrawn by its author after a full run.
"""


@dataclass(frozen=True)
class Claim:
    """One claim and the scan of its model."""

    told: dict[str, Any]
    result: ScanResult
    replay: dict[str, Any]  # of `benchmarks/scan.py replay`; empty without

    @classmethod
    def of(cls, told: dict[str, Any]) -> Claim:
        """With what stands in results/."""
        folder, replay = RESULTS / told["folder"], RESULTS / told["folder"] / "replay.json"
        return cls(told, read_scan(ScanFolder(folder / "scan")), json.loads(replay.read_text(encoding="utf-8")) if replay.is_file() else {})


def page() -> str:
    """The page as Markdown."""
    claims = [Claim.of(told) for told in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))]
    header = ("model", "claimed by", "gain, points", "on", "span", "measured here, on new questions")
    rows = [header, tuple("---" for _ in header), *map(_row, claims)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([HEAD, table, "", *(part for claim in claims for part in _section(claim)), OWN])


def _row(claim: Claim) -> tuple[str, ...]:
    told = claim.told
    by = f"[{told['by']}]({told['source']})"
    span = f"`{told['route']}`" if told["route"] else "not stated"
    return told["model"], by, f"+{told['gain']}", f"{told['probes']} probes", span, "; ".join(map(_short, measured(claim)))


def measured(claim: Claim) -> list[Measured]:
    """The claimed route where its span is known; else the routes that stand for it."""
    wanted = [claim.told["route"]] if claim.told["route"] else claim.told["instead"]
    return [row for row in claim.result.in_group(CLAIMED) if row.route in wanted]


def _short(row: Measured) -> str:
    assert row.fresh is not None
    return f"{row.kind} {row.first}-{row.last}: {with_interval(row.fresh.mean, row.fresh.low, row.fresh.high)}, n {row.fresh.n}"


def _section(claim: Claim) -> list[str]:
    told, result = claim.told, claim.result
    lines = [f"## {told['model']}", "", *(_wrapped(note) + "\n" for note in told["notes"])]
    header = ("span", "block passes", "where it was chosen, points", "on new questions, points", "better / worse", "McNemar p")
    rows = [header, tuple("---" for _ in header), *(_cells(row, result) for row in (*result.rows, *result.means))]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, "", _wrapped(_verdict(claim)), "", *([_wrapped(_luck(claim)), ""] if "probes" in claim.replay else []), _how(claim), ""]


def _cells(row: Measured, result: ScanResult) -> tuple[str, ...]:
    names = {} if row.kind else {WINNER: "mean of the winners", RANDOM: "mean of the random spans", LEAD: LEAD}
    names |= {ELSEWHERE: f"`{row.route}` at other blocks, mean", CLAIM_LEAD: f"`{row.route}` minus other blocks"}
    blocks = f"{row.first}-{row.last}" if row.last > row.first else f"{row.first}"
    fresh, group = row.fresh, "for the claim" if row.group == CLAIMED else row.group
    name = names.get(row.group) or (f"{group}: {row.kind} {blocks}" if row.kind else f"{group}: `{row.route}`")
    tested = (f"{fresh.better} / {fresh.worse}", p_value(fresh.p)) if fresh and fresh.p is not None else ("", "")
    passes = f"{row.passes:{'.0f' if row.route else '.1f'}} of {result.n_layers}" if row.group not in (LEAD, CLAIM_LEAD) else ""
    return name, passes, _difference(row.raced), _difference(fresh), *tested


def _difference(found: Difference | None) -> str:
    return "" if found is None else f"{with_interval(found.mean, found.low, found.high)}, n {found.n}"


def _verdict(claim: Claim) -> str:
    gain, told = claim.told["gain"] / 100, []
    for row in measured(claim):
        assert row.fresh is not None
        low, high = row.fresh.low, row.fresh.high
        place = "above" if gain > high else "below" if gain < low else "inside"
        zero = "inside" if low <= 0 <= high else "outside"
        told.append(
            f"Blocks {row.first} to {row.last} twice: {with_interval(row.fresh.mean, low, high)} points on {row.fresh.n} new questions. "
            f"The claimed +{claim.told['gain']} lies {place} that interval, zero {zero} it."
        )
    return " ".join(told)


def _luck(claim: Claim) -> str:
    """What few probes make of the same spans, drawn from the stored product."""
    found = claim.replay["probes"]
    seems = f"{points(found['seems'])} points ({points(found['low'])} to {points(found['high'])} in 95 % of {found['draws']:,} draws)"
    return (
        f"How much few probes show by luck, from the answers of every span to every question of the race: of {found['spans']} loops of "
        f"{found['lengths']} blocks take {found['tried']}, ask {found['questions']} of the questions, name the best. As a mean it seems to "
        f"gain {seems}, and has {points(found['rest'])} points on the other questions."
    )


def _how(claim: Claim) -> str:
    result, told = claim.result, claim.told
    chose = f"{result.sizes[-1]} questions of {', '.join(result.tasks)} ({result.split} split) chose"
    return _wrapped(
        f"Scan: {chose}; new ones are of the {result.fresh_split} split, too. Weights {result.fingerprint}, {result.dtype}. Files: "
        f"`results/{told['folder']}/`. Source of the claim: [card]({told['source']}), [data]({told['data']})."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
