"""Tables in slices on disk, so that whoever needs a slice of many tables reads a little of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


def write_slices(path: Path, table: pa.Table, borders: Int64) -> Int64:
    """Write a table slice by slice.

    Args:
        path: The file.
        table: Its rows are in the order of the slices.
        borders: The row at which each slice begins, and the number of rows, int64 [slices + 1].

    Returns:
        The byte at which each slice begins, and the length of the file, int64 [slices + 1].
    """
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))
    places = np.zeros(len(borders), np.int64)
    with path.open("wb") as file:
        for number, (first, end) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
            if end > first:
                with pa.ipc.new_stream(file, table.schema, options=options) as stream:
                    stream.write_table(table.slice(first, end - first))
            places[number + 1] = file.tell()
    return places


def read_slice(path: Path, places: Int64, number: int, schema: pa.Schema) -> pa.Table:
    """A slice that `write_slices` wrote.

    Args:
        path: The file.
        places: What `write_slices` returned.
        number: Which slice.
        schema: Of the table.
    """
    first, end = places[number : number + 2].tolist()
    if first == end:
        return schema.empty_table()
    with path.open("rb") as file:
        file.seek(first)
        return pa.ipc.open_stream(pa.py_buffer(file.read(end - first))).read_all()
