"""An append-only table: Parquet files in one folder, each whole or absent, never changed; equal work leaves equal files. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import remove_partials, write_bytes

SCHEMA_VERSION = 3
_VERSION, _DIGEST = "drllm_schema", "drllm_digest"


class Shards:
    """The shards of one folder, read once each."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self.folder, self.schema = folder, schema
        self._read: dict[str, pa.Table] = {}
        self._whole: pa.Table | None = None

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def has(self, name: str) -> bool:
        """Whether a shard was written, by any process."""
        return self.path(name).is_file()

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard atomically, unless it is there; equal rows give equal bytes. No rows, no shard."""
        if rows and not self.has(name):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path(name), encode(pa.Table.from_pylist(list(rows), schema=self.schema)))

    def table(self) -> pa.Table:
        """All rows, shard by shard in the order of their names; `ArtifactError` for a shard that is corrupt or foreign."""
        names = sorted(path.stem for path in self.folder.glob("*.parquet"))
        if self._whole is None or names != list(self._read):
            self._read = {name: self._read[name] if name in self._read else read_shard(self.path(name), self.schema) for name in names}
            self._whole = pa.concat_tables([self.schema.empty_table(), *self._read.values()])
        return self._whole

    def clear_partials(self) -> None:
        """Delete what killed processes left half written."""
        remove_partials(self.folder)


def encode(table: pa.Table) -> bytes:
    about = {_VERSION: str(SCHEMA_VERSION), _DIGEST: content_digest(table)}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(about), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_shard(path: Path, schema: pa.Schema, again: str = "delete it and run the same command again") -> pa.Table:
    """The rows of one shard; `ArtifactError`, with this advice, when it is corrupt, foreign, or from a newer drllm."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable shard ({first_line(error)}): {again}") from None
    about = table.schema.metadata or {}
    version = about.get(_VERSION.encode(), b"").decode("ascii", "replace")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {version}, this drllm reads {SCHEMA_VERSION}: upgrade drllm")
    if version != str(SCHEMA_VERSION) or not table.schema.equals(schema):
        raise ArtifactError(f"{path} is no table of this kind that drllm {SCHEMA_VERSION} wrote: give a run folder of this version")
    try:
        # Page checksums do not cover the footer, where one wrong bit can move values silently.
        found = content_digest(table)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} holds a broken row ({first_line(error)}): {again}") from None
    if about.get(_DIGEST.encode()) != found.encode():
        raise ArtifactError(f"{path} holds a broken row (its content and its digest differ): {again}")
    return table.replace_schema_metadata()


def content_digest(table: pa.Table) -> str:
    """Of all values, column by column, 64 hexadecimal digits; however they lie in memory or file."""
    found = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        found.update(f"{name}:{len(column)}:".encode())
        if pa.types.is_string(column.type):
            coded = column.dictionary_encode()
            found.update("\0".join(map(str, coded.dictionary.to_pylist())).encode())
            column = coded.indices
        elif pa.types.is_nested(column.type):
            found.update(repr(column.to_pylist()).encode())
            continue
        elif pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        found.update(column.is_valid().cast(pa.int8()).to_numpy().tobytes())
        found.update(column.fill_null(0).to_numpy().tobytes())
    return found.hexdigest()
