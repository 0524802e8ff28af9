"""Documents of a finished split, in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import InputRefused

_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024


def read_split(folder: Path, columns: list[str]) -> pa.Table:
    """Columns of all parquet files of a folder, one row a document, sorted by `id`.

    Raises:
        InputRefused: There is no parquet file, or a column is missing.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise InputRefused(f"{folder} holds no parquet file; materialize the corpus again")
    try:
        table = pa.concat_tables(pq.ParquetFile(path).read(columns=columns) for path in files)
        return table.select(columns).sort_by("id")
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputRefused(f"{folder}: {error}; materialize the corpus again") from error


def text_batches(table: pa.Table, max_bytes: int | None = None) -> Iterator[list[str]]:
    """The column `text` in lists of about 8 MiB, the first `max_bytes` bytes of it where that is given."""
    batch: list[str] = []
    size = total = 0
    for rows in table.select(["text"]).to_batches(max_chunksize=_BATCH_ROWS):
        for text in rows.column(0).to_pylist():
            if max_bytes is not None and total >= max_bytes:
                break
            batch.append(text)
            length = len(text.encode())
            size, total = size + length, total + length
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
