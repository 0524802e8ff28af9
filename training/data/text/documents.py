"""Documents of a finished split, in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.sources.provenance import group_of, part_of
from training.data.tables import text_id
from training.errors import InputRefused

_JOINED_ROWS = 64  # each can be long, and a table is made of so many at once
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024


def read_split(folder: Path, columns: list[str]) -> pa.Table:
    """Columns of all parquet files of a folder, one row a document, sorted by `id`.

    Args:
        folder: A split of the corpus.
        columns: Names; `id` must be among them.

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


def join_parts(table: pa.Table) -> pa.Table:
    """Put the parts of documents together again, where they follow each other.

    Cleaning and comparing work on parts. A model reads the whole document, with one end of text at its end. A part
    whose neighbour was dropped stays by itself.

    Args:
        table: Columns `id`, `text`, `source`, `path`, and others that all parts of a document have in common.

    Returns:
        The same columns, one row a document, sorted by `id`. The id of a joined document is that of its whole text.
    """
    numbers = [part_of(path) for path in table["path"].to_pylist()]
    cut = [row for row, number in enumerate(numbers) if number]
    if not cut:
        return table.sort_by("id")

    names = table.select(["source", "path"]).to_pylist()
    documents = {row: (names[row]["source"], group_of(names[row]["path"])) for row in cut}
    runs: list[list[int]] = []
    for row in sorted(cut, key=lambda row: (documents[row], numbers[row])):
        before = runs[-1][-1] if runs else row  # the first row does not follow itself, so it begins a run
        if documents[row] == documents[before] and numbers[row] == numbers[before] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])

    joined = [
        pa.Table.from_pylist([_joined(table, run) for run in runs[first : first + _JOINED_ROWS]], table.schema)
        for first in range(0, len(runs), _JOINED_ROWS)
    ]
    whole = table.filter(pa.array([not number for number in numbers]))
    return pa.concat_tables([whole, *joined]).sort_by("id")


def _joined(table: pa.Table, run: list[int]) -> dict[str, Any]:
    first: dict[str, Any] = table.slice(run[0], 1).to_pylist()[0]
    text = "".join(table["text"][row].as_py() for row in run)
    path = group_of(first["path"]) if len(run) > 1 else first["path"]
    return first | {"id": text_id(text), "text": text, "path": path}


def text_batches(table: pa.Table, max_bytes: int | None = None) -> Iterator[list[str]]:
    """The column `text` in lists of about 8 MiB.

    Args:
        table: Has a column `text`.
        max_bytes: Stop after the document that reaches this many bytes of UTF-8; None reads all.
    """
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
