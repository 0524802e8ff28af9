"""Parquet files with fixed options: the same rows give the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

RAW_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
CORPUS_SCHEMA = RAW_SCHEMA.append(pa.field("domain", pa.string(), nullable=False))
CONVERSATION_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("id", "messages", "kind", "domain", "source_id")]
)
GATHERED_CONVERSATION_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "messages", "tools", "source", "where")),
        pa.field("licence", pa.string()),
        pa.field("format", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
GATHERED_PAIR_SCHEMA = pa.schema(
    [
        *(
            pa.field(name, pa.string(), nullable=False)
            for name in ("id", "prompt", "chosen", "rejected", "source", "where")
        ),
        pa.field("licence", pa.string()),
        pa.field("format", pa.string(), nullable=False),
    ]
)
PAIR_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("id", "prompt", "chosen", "rejected", "kind", "domain")]
)
EXCLUSION_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "item", "reason")),
        pa.field("overlap", pa.float64(), nullable=False),
    ]
)
_READ_ROWS = 512


class ShardWriter:
    """Writes rows to `part-00000.parquet`, `part-00001.parquet`, ... of a folder, in the order they come.

    Use it as a context manager; a folder without rows gets one empty part.

    Args:
        folder: Made if it does not exist.
        schema: Of every row.
        shard_bytes: A part is closed once it holds this much uncompressed data.
    """

    _FLUSH_BYTES = 8 * 2**20

    def __init__(self, folder: Path, schema: pa.Schema, shard_bytes: int = 64 * 2**20) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._schema, self._shard_bytes = folder, schema, shard_bytes
        self._rows: list[Mapping[str, Any]] = []
        self._pending = self._written = self._parts = 0
        self._file: pq.ParquetWriter | None = None

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """Add a row of about `size` uncompressed bytes."""
        self._rows.append(row)
        self._pending += size
        if self._pending >= min(self._FLUSH_BYTES, self._shard_bytes):
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._file = _writer(self._folder / f"part-{self._parts:05d}.parquet", self._schema)
            self._parts += 1
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._written += self._pending
        self._rows, self._pending = [], 0
        if self._written >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._written = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and (self._rows or self._parts == 0):  # an empty table still names its columns
            self._flush()
        self._close()


def publish_shards(folders: Iterable[Path], to: Path) -> None:
    """Give the shards of some folders names in another one, after those that it has; empty ones are left out.

    The folders keep theirs for a restart.
    """
    to.mkdir(parents=True, exist_ok=True)
    number = len(list(to.iterdir()))
    for file in itertools.chain.from_iterable(sorted(folder.glob("*.parquet")) for folder in folders):
        if pq.read_metadata(file).num_rows:
            target = to / f"part-{number:05d}.parquet"
            number += 1
            try:
                os.link(file, target)
            except OSError:  # not every file system has hard links
                shutil.copyfile(file, target)


class TableWriter:
    """Writes rows to one parquet file as they come; see `ShardWriter`. A file without rows names its columns.

    Args:
        path: The file.
        schema: Of every row.
    """

    _FLUSH_BYTES = 8 * 2**20

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._file = schema, _writer(path, schema)
        self._rows: list[Mapping[str, Any]] = []
        self._pending = 0

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """Add a row of about `size` uncompressed bytes."""
        self._rows.append(row)
        self._pending += size
        if self._pending >= self._FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._pending = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._rows:
            self._flush()
        self._file.close()


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write one parquet file."""
    with _writer(path, schema) as file:
        file.write_table(pa.Table.from_pylist(list(rows), schema=schema))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # The options are named, so that other defaults of a later pyarrow do not change an artifact's bytes.
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        version="2.6",
        data_page_version="1.0",
        use_dictionary=["source", "licence", "domain", "kind", "reason"],
    )


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, or of all `*.parquet` files of a folder in the order of their names."""
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_READ_ROWS, columns=columns):
                yield from batch.to_pylist()


def text_id(*parts: str) -> str:
    """SHA-256 (hex) of texts, joined by NUL characters, which no document holds."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def fraction(*parts: str) -> float:
    """A number in [0, 1) that is a pure function of the parts."""
    return int(text_id(*parts)[:13], 16) / 16**13
