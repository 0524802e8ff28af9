"""Documents of a finished split, in the order of their ids, read part after part whatever the size of the corpus."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.sources.provenance import PART, group_of, part_of
from training.data.tables import text_id
from training.errors import InputRefused

_BATCH_BYTES = 8 * 2**20
_ROWS = 64
_AGAIN = "materialize the corpus again"


class Document(NamedTuple):
    """One document.

    Attributes:
        id: SHA-256 (hex) of its text.
        path: Where it is from; see `training.data.sources.provenance`.
    """

    id: str
    text: str
    source: str
    path: str


class Split:
    """A finished split on disk. About one part of it, some 64 MB of text, is in memory at a time.

    Args:
        folder: With parquet files, whose rows ascend by `id` over all files in the order of their names.

    Raises:
        InputRefused: There is no parquet file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = sorted(folder.glob("*.parquet"))
        if not self._files:
            raise InputRefused(f"{folder} holds no parquet file; {_AGAIN}")

    def files(self) -> list[tuple[Path, int]]:
        """The parquet files in the order of their documents, each with the bytes that it holds uncompressed."""
        return [(path, _uncompressed(path)) for path in self._files]

    def parts(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of each part, sorted by `id`.

        Raises:
            InputRefused: A part cannot be read, lacks a column, or does not follow the one before.
        """
        last = ""
        for path in self._files:
            part = read_part(path, columns)
            if part.num_rows:
                if part["id"][0].as_py() < last:
                    raise InputRefused(f"{path}: its documents do not follow those of the file before; {_AGAIN}")
                last = part["id"][-1].as_py()
            yield part

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Document]]:
        """Chosen rows with their numbers. A part that holds none of them is not read.

        Args:
            chosen: bool [rows].
        """
        first = 0
        for path in self._files:
            end = first + pq.read_metadata(path).num_rows
            wanted = np.flatnonzero(chosen[first:end])
            yield from zip((wanted + first).tolist(), read_documents(path, chosen[first:end]), strict=True)
            first = end

    def table(self, columns: list[str]) -> pa.Table:
        """Columns of all documents; `text` must not be among them, because a corpus has more than memory."""
        assert "text" not in columns
        parts = [_wide(part).select(columns) for part in self.parts(columns)]
        return pa.concat_tables(parts)

    def texts(self, max_bytes: int | None = None) -> Iterator[list[str]]:
        """Texts in lists of about 8 MiB.

        Args:
            max_bytes: Stop after the document that reaches this many bytes of UTF-8; None reads all.
        """
        batch: list[str] = []
        size = total = 0
        for part in self.parts(["text"]):
            for text in texts_of(part):
                if max_bytes is not None and total >= max_bytes:
                    break
                batch.append(text)
                length = len(text.encode())
                size, total = size + length, total + length
                if size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            if max_bytes is not None and total >= max_bytes:
                break
        if batch:
            yield batch


def read_part(path: Path, columns: list[str]) -> pa.Table:
    """Columns of one file of a split, sorted by `id`, which comes first.

    Raises:
        InputRefused: The file cannot be read, or lacks a column.
    """
    names = ["id", *(name for name in columns if name != "id")]
    try:
        return pq.ParquetFile(path).read(columns=names).select(names).sort_by("id")
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputRefused(f"{path}: {error}; {_AGAIN}") from error


def read_documents(path: Path, chosen: npt.NDArray[np.bool_]) -> Iterator[Document]:
    """Chosen documents of one file of a split, in the order of their ids. It is read only if one is chosen.

    Args:
        path: The file.
        chosen: Which of its rows, bool [rows or more].
    """
    wanted = np.flatnonzero(chosen[: pq.read_metadata(path).num_rows])
    if not len(wanted):
        return
    part = read_part(path, list(Document._fields))
    for some in np.array_split(wanted, -(-len(wanted) // _ROWS)):
        for values in part.take(pa.array(some)).to_pylist():
            yield Document(**values)


def texts_of(part: pa.Table) -> Iterator[str]:
    """The column `text`, a few rows at a time, because each can be long."""
    for rows in part["text"].chunks:
        for first in range(0, len(rows), _ROWS):
            yield from rows.slice(first, _ROWS).to_pylist()


class Selection:
    """Some rows of a split, as a model reads them: the parts of a document that was cut are put together again.

    Cleaning and comparing work on parts. A model reads the whole document, with one end of text at its end. A part
    whose neighbour was dropped stays by itself. The id of a joined document is that of its whole text.

    Args:
        split: The split.
        chosen: Which of its rows, bool [rows]; None takes all.

    Attributes:
        count: Number of documents.
        whole: Which rows are whole documents, bool [rows].
        runs: The rows of each other document's parts, in their order.
    """

    def __init__(self, split: Split, chosen: npt.NDArray[np.bool_] | None = None) -> None:
        self._split = split
        places = split.table(["source", "path"])
        self._chosen = np.ones(places.num_rows, np.bool_) if chosen is None else chosen
        self.runs = _runs(places, self._chosen)
        in_parts = np.zeros(places.num_rows, np.bool_)
        in_parts[list(itertools.chain.from_iterable(self.runs))] = True
        self.whole = self._chosen & ~in_parts
        self.count = int(self.whole.sum()) + len(self.runs)

    def __iter__(self) -> Iterator[Document]:
        """The documents in the order of their ids. All that were cut are in memory at once."""
        whole = (document for _, document in self._split.rows(self.whole))
        return heapq.merge(whole, self.put_together())

    def put_together(self) -> Iterator[Document]:
        """The documents that were cut, as many of their parts as follow each other, in the order of their ids."""
        if self.runs:
            yield from joined(dict(self._split.rows(self._chosen & ~self.whole)), self.runs)

    def groups(self, max_bytes: int) -> list[RunGroup]:
        """The documents that were cut, in groups of about `max_bytes` of text."""
        if not self.runs:
            return []
        sizes = self._split.table(["bytes"])["bytes"].to_numpy()
        groups: list[RunGroup] = []
        group: list[tuple[int, ...]] = []
        size = 0
        for run in self.runs:
            group.append(tuple(run))
            size += int(sizes[run].sum())
            if size >= max_bytes or run is self.runs[-1]:
                groups.append(RunGroup(tuple(group), size))
                group, size = [], 0
        return groups


class RunGroup(NamedTuple):
    """Some documents that were cut.

    Attributes:
        runs: The rows of each document's parts, in their order.
        size: Bytes of text.
    """

    runs: tuple[tuple[int, ...], ...]
    size: int


def joined(parts: Mapping[int, Document], runs: Sequence[Sequence[int]]) -> list[Document]:
    """Documents that were cut, put together again, in the order of their ids.

    Args:
        parts: All their parts by row.
        runs: The rows of each document's parts, in their order.
    """
    documents = []
    for run in runs:
        first, text = parts[run[0]], "".join(parts[row].text for row in run)
        path = group_of(first.path) if len(run) > 1 else first.path
        documents.append(Document(text_id(text), text, first.source, path))
    return sorted(documents)


def _runs(places: pa.Table, chosen: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The rows of each document that was cut, where they follow each other; what was not cut is in none.

    Args:
        places: Columns `source` and `path` of all rows.
        chosen: Which of them there are, bool [rows].
    """
    is_part = pc.match_substring_regex(places["path"], PART.pattern).to_numpy(zero_copy_only=False)
    cut = np.flatnonzero(is_part & chosen)
    names = places.take(pa.array(cut)).to_pylist()
    documents = {
        row: (name["source"], group_of(name["path"]), part_of(name["path"]))
        for row, name in zip(cut.tolist(), names, strict=True)
    }

    runs: list[list[int]] = []
    for row in sorted(documents, key=documents.__getitem__):
        *document, number = documents[row]
        before = documents[runs[-1][-1]] if runs else None
        if before is not None and [*before[:2]] == document and number == before[2] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about 8 MiB of text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text.encode())
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _uncompressed(path: Path) -> int:
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _wide(part: pa.Table) -> pa.Table:
    """The table with 64-bit offsets in its columns of texts: from 32-bit ones, nothing is taken beyond 2 GiB."""
    fields = [field.with_type(pa.large_string()) if field.type == pa.string() else field for field in part.schema]
    return part.cast(pa.schema(fields))
