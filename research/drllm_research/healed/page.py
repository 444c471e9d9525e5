"""healed.md of docs/, and a picture a model, from what `run` left in folders of results/ (`comparison/stored.py`, setting "healed")."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.files import write_bytes, write_text
from drllm.reporting.parts import Chart
from drllm.stats.paired import paired_bootstrap
from drllm_research.comparison.pages import markdown
from drllm_research.comparison.stored import Results
from drllm_research.comparison.table import compared, read

SETTING = "healed"
SERVED, WHOLE = "served.json", "prompt and answer"  # what benchmarks/exported.py wrote, and what the page shows of it
TEMPLATE = Path(__file__).parent / "page.md"  # the words of healed.md of docs/
DRAWN = {"skip": "skip alone", "healed": "healed", "instead": ""}  # by kind: a name in the picture, or each row's own
PARTS = {"in": "tasks healed on", "out": "other tasks"}


def write_page(folder: Path, outs: Sequence[Path]) -> None:
    lines = [TEMPLATE.read_text(encoding="utf-8")]
    for results in map(Results, outs):
        for split in (split for split in ("test", "tune") if results.of(SETTING, split)):
            found = _Section(results, split)
            picture = f"{results.name}-{split}.svg"
            write_bytes(folder / picture, found.picture())
            lines += [*found.lines(picture), ""]
    write_text(folder / "healed.md", "\n".join(lines))


class _Section:
    def __init__(self, results: Results, split: str):
        self.about: Mapping[str, Any] = results.told(SETTING, split)
        self.rows, self.tasks = self.about["rows"], self.about["tasks"]
        self.right = {name: one for (name, _), one in results.of(SETTING, split).items()}
        self.nats = self.rows[0]["nats"]  # the base's
        served = results.folder / SERVED
        self.served = json.loads(served.read_text(encoding="utf-8")) if served.is_file() else {"seconds": {}}

    def points(self, row: Mapping[str, Any], tasks: Sequence[str]) -> str:
        """Less the base, on some tasks."""
        return str(self._less(row, tasks)) if row["kind"] != "base" else ""

    def _less(self, row: Mapping[str, Any], tasks: Sequence[str]) -> Any:
        return compared(read(self.right[row["name"]], tasks), read(self.right["base"], tasks))

    def lines(self, picture: str) -> Iterator[str]:
        about, base, again = self.about, self.right["base"], self.about["noise"]
        right = {task: base["correct"][base["task"] == task] for of in self.tasks.values() for task in of}
        asked = ",\n".join(f"{task} {len(of)} (base {100 * of.mean():.1f} %)" for task, of in right.items())
        yield f"## {about['model']}, {about['blocks']} blocks, {about['split']} split\n"
        yield f"Healed on {', '.join(self.tasks['in'])}. Computed in {about['dtype']}. Questions:\n{asked}.\n"
        yield f"![Right answers against seconds, {about['model']}]({picture})\n"
        cells: dict[str, Callable[[Any], str]]
        cells = {f"right answers, {PARTS[part]}": lambda row, of=of: self.points(row, of) for part, of in self.tasks.items()}
        cells |= {"blocks": lambda row: str(row["passes"]), "seconds, of the base's": lambda row: ratio(row["clock"])}
        cells |= {f"in {tool}": lambda row, of=of: self._in_tool(of, row) for tool, of in self.served["seconds"].items()}
        cells |= {f"MB {name}": lambda row, name=name: f"{row['mb'][name]:.1f}" for name in ("stored", "in bfloat16")}
        yield from table(self.rows, cells)
        clocked = f"{about['clocked']} prompts of {about['tokens']} tokens, {about['rounds']} rounds, {about['threads']} thread"
        yield f"\nSeconds: {clocked}. The base in turns with itself: {ratio(again)}. Solved questions shown: {about['shots']}.\n"
        if self.served["seconds"]:
            turns = ", ".join(f"{tool} {spread(of['base again'][WHOLE])}" for tool, of in self.served["seconds"].items())
            asked = "{rounds} prompts of {tokens} tokens, {new} more written".format(**self.served)
            yield f"In other tools (`benchmarks/exported.py`; llama.cpp: 8-bit): {asked}.\nThe base in turns with itself: {turns}.\n"
        cells = {f"KL, {PARTS[part]}": lambda row, part=part: f"{row['kl'][part]:.3f}" for part in self.tasks}
        cells |= {f"same next token, {PARTS[part]}, %": lambda row, part=part: f"{100 * row['same'][part]:.1f}" for part in self.tasks}
        cells["plain text, nats a token less the base's"] = self._less_nats
        for name, words in {"whole": "to the end", "tokens": "before the first other one"}.items():
            cells[f"32 greedy tokens the same {words}, %"] = lambda row, name=name: f"{100 * row['agreement'][name]:.1f}"
        yield from table([row for row in self.rows if "kl" in row], cells)
        yield f"\nPlain text: the base has {np.mean(self.nats):.3f} nats a token on {len(self.nats)} passages.\n"
        yield from table(self.rows[1:], {task: lambda row, task=task: self.points(row, [task]) for task in right})
        yield ""
        trained = [row | row["trained"] for row in self.rows if row["trained"]]
        yield from table(trained, {name: lambda row, name=name: str(row[name]) for name in ("prompts", "steps", "best at step")})
        for example in about["examples"]:
            told = ([name, json.dumps(text, ensure_ascii=False).replace("|", "\\|")] for name, text in example.items())
            yield from ("", *markdown(("", "an answer to read"), told))

    def _in_tool(self, of: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        """Of a merged checkpoint; its route's without an adapter has the same shapes."""
        name = row["name"].replace("skip", "healed")
        return spread(of[name][WHOLE]) if name in of and row["kind"] in ("skip", "healed") else ""

    def _less_nats(self, row: Mapping[str, Any]) -> str:
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*paired_bootstrap(row["nats"], self.nats)) if row["kind"] != "base" else ""

    def picture(self) -> bytes:
        """Points less the base against seconds, as SVG for the width of a phone; without controls."""
        import matplotlib.style

        from drllm.reporting.drawing import draw, level, spot

        every, spots, instead = [task for of in self.tasks.values() for task in of], list[dict[str, Any]](), 0
        for row in (row for row in self.rows if row["kind"] in DRAWN):
            less, x = self._less(row, every), 1.0  # of a whole model, whose maps have the base's shapes
            if row["clock"]:
                x = row["clock"]["ratio"]
            elif row["passes"] < self.about["blocks"]:
                continue
            instead += row["kind"] == "instead"
            index = 1 + instead if row["kind"] == "instead" else row["kind"] == "healed"
            look: dict[str, Any] = {"name": DRAWN[row["kind"]] or row["name"], "index": index}
            look |= {"x": x, "y": less.points, "low": less.points - less.low, "high": less.high - less.points}
            aside = -0.04 if row["kind"] == "skip" else 0.04 if row["kind"] == "healed" else 0.09 * (instead - 1)
            spots.append(look | {"aside": aside})
        xs = [1.0, *(one["x"] for one in spots)]

        def drawn(panels: Sequence[Any]) -> None:
            (axes,) = panels
            level(axes, 0)
            for one in spots:
                spot(axes, **one)
            axes.set(xlim=(min(xs) - 0.1, max(xs) + 0.2), ylabel="right answers less the base's, points")
            axes.set_xlabel("seconds of a prompt, of the base's")

        title = f"{self.about['model']}, {len(self.right['base']['id'])} questions"
        chart = Chart("healed", title, "", (), (), drawn, legend=1)
        buffer, fixed = io.BytesIO(), {"svg.hashsalt": "healed", "font.size": 9}
        with matplotlib.style.context(["default", fixed]):
            figure = draw(chart)
            figure.set_size_inches(3.9, 5.4)
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def ratio(clock: Mapping[str, float] | None) -> str:
    """With its interval; empty where nothing was measured."""
    return spread([clock[name] for name in ("ratio", "low", "high")]) if clock else ""


def spread(values: Sequence[float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*values)


def table(rows: Sequence[Mapping[str, Any]], cells: Mapping[str, Callable[[Any], str]]) -> Iterator[str]:
    return markdown(["", *cells], ([row["name"], *(cell(row) for cell in cells.values())] for row in rows))
