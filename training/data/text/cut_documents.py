"""Documents that were cut, whole again, for a corpus of any size: their parts go through the disk, in groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.text.documents import Document, RunGroup, Selection, joined, read_part
from training.data.text.slices import read_slice, write_slices

GROUP_BYTES = 64 * 2**20  # of text
WHOLE, LEFT_OUT = -1, -2
_PARTS, _SLICES, _ROWS, _BORDERS = "parts.arrow", "slices.npy", "rows.npy", "borders.npy"
_SCHEMA = pa.schema([pa.field(name, pa.large_string()) for name in Document._fields])


def assignment(documents: Selection, groups: Sequence[RunGroup]) -> npt.NDArray[np.int32]:
    """What each row of a split is: `WHOLE`, `LEFT_OUT`, or a part of a document of a group, int32 [rows]."""
    assigned = np.where(documents.whole, WHOLE, LEFT_OUT).astype(np.int32)
    for number, group in enumerate(groups):
        assigned[list(itertools.chain.from_iterable(group.runs))] = number
    return assigned


def write_parts(file: Path, groups: npt.NDArray[np.int32], first_row: int, count: int, folder: Path) -> None:
    """Write the parts of documents that a file of a split holds, in the order of their groups.

    Args:
        file: The parquet file.
        groups: From `assignment`, of the file's rows, int32 [rows].
        first_row: The file's first row in the split.
        count: Number of groups.
        folder: Where they go; nothing is written where there is no part.
    """
    rows = np.argsort(groups, kind="stable")
    rows = rows[groups[rows] >= 0]
    if len(rows):
        table = read_part(file, list(Document._fields)).take(pa.array(rows)).cast(_SCHEMA)
        borders = np.searchsorted(groups[rows], np.arange(count + 1))
        np.save(folder / _SLICES, write_slices(folder / _PARTS, table, borders))
        np.save(folder / _ROWS, rows + first_row)
        np.save(folder / _BORDERS, borders)


def read_group(folders: Iterable[Path], number: int, runs: Sequence[Sequence[int]]) -> list[Document]:
    """The documents of a group, in the order of their ids.

    Args:
        folders: What `write_parts` wrote of every file of the split.
        number: Of the group.
        runs: The rows of each document's parts, in their order.
    """
    parts: dict[int, Document] = {}
    for folder in folders:
        if (folder / _ROWS).is_file():
            first, end = np.load(folder / _BORDERS)[number : number + 2].tolist()
            table = read_slice(folder / _PARTS, np.load(folder / _SLICES), number, _SCHEMA)
            for row, values in zip(np.load(folder / _ROWS)[first:end].tolist(), table.to_pylist(), strict=True):
                parts[row] = Document(**values)
    return joined(parts, runs)
