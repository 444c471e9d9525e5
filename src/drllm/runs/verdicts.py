"""One method's verdicts on one task's questions: a parquet file each, written and read here only. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import write_bytes

GENERATED = ("strict", "lenient", "forms", "n_new")  # columns that only generated answers have


@dataclass(frozen=True)
class Verdicts:
    """Verdicts in the order in which the questions were answered, N of each.

    Attributes:
        ids: of the questions.
        correct, acc, acc_norm: whether each answer is right, and by each metric; None where the reward has none.
        margins: nan where the reward has none.
        routes: `str(route)` of each; empty where the method decides no route.
        passes: block passes of each prompt.
        f1: SQuAD's F1, 0 to 1, of answers out of passages; empty of all others.
        strict, lenient, forms: of letters and boxed answers, what either reader says, and the answer's form (`drllm.tasks.readers`).
        n_new: tokens generated for each answer, its end among them; empty for log-likelihoods.
        seconds: that answering took.
        metadata: `key` names all they depend on; `comparable` is the same for methods that can be compared without the model; `policy` is
            the digest of the policy. Files of older versions have fewer.
    """

    ids: list[str]
    correct: list[bool]
    acc: list[bool | None]
    acc_norm: list[bool | None]
    margins: list[float]
    routes: list[str]
    passes: list[Any]
    seconds: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    f1: list[float] = field(default_factory=list)
    strict: list[bool] = field(default_factory=list)
    lenient: list[bool] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    n_new: list[int] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """Block passes of each question over its prompt and all generated tokens, as the paper counts layers: the forward of the prompt
        gives the first token, and each further one takes another. A log-likelihood takes one forward."""
        return [passes * max(1, n_new) for passes, n_new in zip(self.passes, self.n_new or [1] * len(self.ids), strict=True)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Question by question: id, correct, route, n_passes, layers; of letters and boxed answers strict, lenient and form, too."""
        columns = {"id": self.ids, "correct": self.correct, "route": self.routes, "n_passes": self.passes, "layers": self.layers}
        more = {"strict": self.strict, "lenient": self.lenient, "form": self.forms}
        columns |= {name: values for name, values in more.items() if values}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Write the file atomically."""
    acc, acc_norm = pa.array(verdicts.acc, pa.bool_()), pa.array(verdicts.acc_norm, pa.bool_())
    columns = {"id": verdicts.ids, "correct": verdicts.correct, "correct_acc": acc, "correct_acc_norm": acc_norm}
    columns |= {"margin": pa.array(verdicts.margins, pa.float32()), "route": verdicts.routes, "n_passes": verdicts.passes}
    columns |= {"f1": pa.array(verdicts.f1, pa.float32())} if verdicts.f1 else {}
    columns |= {name: values for name in GENERATED if (values := getattr(verdicts, name))}
    metadata = {"key": verdicts.metadata["key"], "seconds": repr(verdicts.seconds)} | dict(verdicts.metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, metadata=metadata), sink)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_verdicts(path: Path) -> Verdicts:
    """The verdicts of a file; `ArtifactError` when it is corrupt or foreign."""
    try:
        table = pq.ParquetFile(path).read()
        columns = table.to_pydict()
        about = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items() if name != b"ARROW:schema"}
        seconds = float(about.pop("seconds", "nan"))
        n = len(columns["id"])
        acc, acc_norm, margins, routes = (columns.get(name, [None] * n) for name in ("correct_acc", "correct_acc_norm", "margin", "route"))
        margins, routes = [math.nan if value is None else value for value in margins], [text or "" for text in routes]
        f1, read = columns.get("f1", []), {name: columns[name] for name in GENERATED if name in columns}
        return Verdicts(columns["id"], columns["correct"], acc, acc_norm, margins, routes, columns["n_passes"], seconds, about, f1, **read)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable file of verdicts ({first_line(error, 80)}): delete it and evaluate again") from None


def find_verdicts(path: Path, key: str) -> Verdicts | None:
    """The verdicts that were written under a key; None where there are none. `ArtifactError` for a corrupt file."""
    found = read_verdicts(path) if path.is_file() else None
    return found if found is not None and found.metadata.get("key") == key else None
