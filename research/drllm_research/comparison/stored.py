"""What a comparison leaves of one model in its folder of `results/`: what each method answered, and all else that the pages need.

`answers.parquet` has a row a method, seed and question, `about.json` the model, trainings, clocks and learning curves.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drllm.core.files import write_bytes, write_json
from drllm.runs.shards import encode, read_shard

_TEXT = pa.string()
_METHOD = [("setting", _TEXT), ("split", _TEXT), ("method", _TEXT), ("seed", pa.int32()), ("policy", _TEXT)]
_ANSWER = [("task", _TEXT), ("id", _TEXT), ("route", _TEXT), ("n_passes", pa.float64()), ("correct", pa.bool_())]
ANSWERS = pa.schema([*_METHOD, *_ANSWER])  # policy: the digest of what decided the routes; the base and told routes have none
Named = tuple[str, int]  # a row of the tables and a seed
Answered = Mapping[str, Any]  # columns task, id, route, n_passes, correct: one value a question


class Results:
    """One model's folder. Whoever writes is alone in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def about(self) -> dict[str, Any]:
        """`about.json`: `model`, `blocks`, `fingerprint`; `training` and `clock` by setting and `file_of`; `asked` by setting and split;
        `curve` by setting."""
        path = self.folder / "about.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def told(self, *keys: str) -> Any:
        """What stands there; None for what was not written."""
        found: Any = self.about
        for key in keys:
            found = found.get(key) if found is not None else None
        return found

    def tell(self, value: Any, *keys: str) -> None:
        place = self.about
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "about.json", self.about)

    @cached_property
    def table(self) -> pa.Table:
        """All answers, those of one method and seed together, in the order in which the questions were asked."""
        path = self.folder / "answers.parquet"
        return read_shard(path, ANSWERS) if path.is_file() else ANSWERS.empty_table()

    @cached_property
    def parts(self) -> dict[tuple[str, str], dict[Named, pa.Table]]:
        """The rows of each method, by setting and split."""
        coded = [
            self.table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("setting", "split", "method", "seed")
        ]
        starts = np.flatnonzero(np.any([np.diff(column, prepend=-1) for column in coded], axis=0)).tolist()
        found: dict[tuple[str, str], dict[Named, pa.Table]] = {}
        for start, end in itertools.pairwise([*starts, len(self.table)]):
            rows = self.table.slice(start, end - start)
            setting, split, method, seed = (rows[name][0].as_py() for name in ("setting", "split", "method", "seed"))
            found.setdefault((setting, split), {})[method, seed] = rows
        return found

    def of(self, setting: str, split: str) -> dict[Named, dict[str, Any]]:
        """Each method's answers as columns, in the order of their names; empty where nothing is stored."""
        parts = self.parts.get((setting, split), {})
        return {named: {name: rows[name].to_numpy() for name, _ in _ANSWER} for named, rows in sorted(parts.items())}

    def policies(self, setting: str, split: str) -> dict[Named, str]:
        return {named: rows["policy"][0].as_py() for named, rows in self.parts.get((setting, split), {}).items()}

    def add(self, setting: str, split: str, answered: Mapping[Named, Answered], policies: Mapping[Named, str]) -> None:
        """Write what methods answered, in place of what stands of them; `SystemExit` where others were asked other questions."""
        there = self.of(setting, split)
        (first, *others) = [(list(one["task"]), list(one["id"])) for one in (*there.values(), *answered.values())]
        if any(one != first for one in others):
            asked = f"{split} answers to other questions of {setting}"
            raise SystemExit(f"{self.folder} holds {asked}: they cannot be compared, give another --out")
        mine = {named: _table(setting, split, named, policies[named], one) for named, one in answered.items()}
        parts = self.parts | {(setting, split): self.parts.get((setting, split), {}) | mine}
        tables = [rows for key in sorted(parts) for _, rows in sorted(parts[key].items())]
        del self.table, self.parts
        self.table = pa.concat_tables(tables).combine_chunks()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "answers.parquet", encode(self.table))


def _table(setting: str, split: str, named: Named, policy: str, answered: Answered) -> pa.Table:
    n = len(answered["id"])
    columns = [*(pa.array([value] * n, kind) for (_, kind), value in zip(_METHOD, (setting, split, *named, policy), strict=True))]
    return pa.table([*columns, *(pa.array(answered[name], kind) for name, kind in _ANSWER)], schema=ANSWERS)
