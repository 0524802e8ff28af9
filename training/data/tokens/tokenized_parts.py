"""The documents of a corpus as tokens, file by file, before they are put together as shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.text.documents import Document, RunGroup, Selection, batches, joined, read_documents, read_part
from training.data.text.slices import read_slice, write_slices
from training.data.tokens.encoding import encoder
from training.data.tokens.shards import TokenWriter
from training.job.parts import Finished
from training.specs.tokenizer import END_OF_TEXT

_TOKENS, _LENGTHS, _IDS, _SOURCES = "tokens.npy", "lengths.npy", "ids.npy", "sources.npy"
_PARTS, _SLICES, _ROWS, _BORDERS = "parts.arrow", "slices.npy", "rows.npy", "borders.npy"
_PART_SCHEMA = pa.schema([pa.field(name, pa.large_string()) for name in Document._fields])
WHOLE, LEFT_OUT = -1, -2
Ids = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class FileOfDocuments:
    """A file of a split.

    Attributes:
        groups: File that says what to do with each row of the split, int32 [rows]: `WHOLE` documents are tokenized,
            parts of documents that were cut are written for their group, and others are left out.
        first_row: The file's first row.
        tokenizer: A tokenizer.json.
        count: Number of groups.
    """

    path: Path
    groups: Path
    first_row: int
    tokenizer: Path
    count: int


@dataclass(frozen=True)
class CutDocuments:
    """A group of documents that were cut.

    Attributes:
        files: What `tokenize_file` made of all files.
        number: Of the group.
        runs: The rows of each document's parts, in their order.
        tokenizer: A tokenizer.json.
    """

    files: tuple[Path, ...]
    number: int
    runs: tuple[tuple[int, ...], ...]
    tokenizer: Path


def assignment(documents: Selection, groups: Sequence[RunGroup]) -> npt.NDArray[np.int32]:
    """What `FileOfDocuments.groups` holds, int32 [rows]."""
    assigned = np.where(documents.whole, WHOLE, LEFT_OUT).astype(np.int32)
    for number, group in enumerate(groups):
        assigned[list(itertools.chain.from_iterable(group.runs))] = number
    return assigned


def tokenize_file(file: FileOfDocuments, folder: Path) -> dict[str, Any]:
    """Write the tokens of a file's whole documents, which ascend by id, and the parts of others."""
    groups = np.asarray(np.load(file.groups, mmap_mode="r")[file.first_row :][: pq.read_metadata(file.path).num_rows])
    if (groups >= 0).any():
        rows = np.argsort(groups, kind="stable")
        rows = rows[groups[rows] >= 0]
        table = read_part(file.path, list(Document._fields)).take(pa.array(rows)).cast(_PART_SCHEMA)
        borders = np.searchsorted(groups[rows], np.arange(file.count + 1))
        np.save(folder / _SLICES, write_slices(folder / _PARTS, table, borders))
        np.save(folder / _ROWS, rows + file.first_row)
        np.save(folder / _BORDERS, borders)
    return _write(read_documents(file.path, groups == WHOLE), file.tokenizer, folder)


def tokenize_cut(cut: CutDocuments, folder: Path) -> dict[str, Any]:
    """Write the tokens of documents that were cut, each put together again, in the order of their ids."""
    parts: dict[int, Document] = {}
    for path in cut.files:
        if (path / _ROWS).is_file():
            first, end = np.load(path / _BORDERS)[cut.number : cut.number + 2].tolist()
            table = read_slice(path / _PARTS, np.load(path / _SLICES), cut.number, _PART_SCHEMA)
            for row, values in zip(np.load(path / _ROWS)[first:end].tolist(), table.to_pylist(), strict=True):
                parts[row] = Document(**values)
    return _write(iter(joined(parts, cut.runs)), cut.tokenizer, folder)


def _write(documents: Iterator[Document], tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Write tokens, with an end of text after each document.

    Returns:
        Names of `sources`, the `engine` that encoded, and `why` it was not the fast one.
    """
    engine = encoder(tokenizer)
    end = engine.plain.token_to_id(END_OF_TEXT)
    assert end is not None, "packed_shards are made with Gatehouse's own tokenizer, which has an end of text"
    names: dict[str, int] = {}
    tokens, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    ids, sources = bytearray(), list[int]()
    for batch in batches(documents):
        encoded = engine.encode([document.text for document in batch])
        tokens.append(np.insert(encoded.tokens, np.cumsum(encoded.lengths), end))
        lengths.append(encoded.lengths + 1)
        ids += b"".join(bytes.fromhex(document.id) for document in batch)
        sources += [names.setdefault(document.source, len(names)) for document in batch]

    np.save(folder / _TOKENS, np.concatenate(tokens))
    np.save(folder / _LENGTHS, np.concatenate(lengths))
    np.save(folder / _IDS, np.frombuffer(ids, np.uint8).reshape(-1, 32))
    np.save(folder / _SOURCES, np.array(sources, np.int32))
    return {"sources": list(names), "engine": engine.engine, "why": engine.why}


@dataclass(frozen=True)
class Written:
    """What the shards hold.

    Attributes:
        sources: Names of the sources.
        source: Number of each document's source, int32 [documents].
        ids: SHA-256 of each document's text, uint8 [documents, 32].
    """

    sources: tuple[str, ...]
    source: npt.NDArray[np.int32]
    ids: npt.NDArray[np.uint8]


def merge(files: Sequence[Finished], cut: Sequence[Finished], writer: TokenWriter) -> Written:
    """Write all documents in the order of their ids.

    Args:
        files: What `tokenize_file` made of all files, in their order: their documents ascend over all of them.
        cut: What `tokenize_cut` made.
        writer: Gets the tokens.
    """
    every = [*files, *cut]
    sources = tuple(sorted({name for done in every for name in done.result["sources"]}))
    source, ids = [np.empty(0, np.int32)], [np.empty((0, 32), np.uint8)]

    def write(part: _Part, first: int, end: int) -> None:
        writer.add_all(part.tokens[part.offsets[first] : part.offsets[end]], part.lengths[first:end])
        source.append(part.sources[first:end])
        ids.append(part.ids[first:end])

    left = _cut_in_order([_Part(done, sources) for done in cut])
    pending = next(left, None)
    for done in files:
        file = _Part(done, sources)
        names = file.names()
        first = 0
        while pending is not None and len(names) and pending[0] < names[-1]:
            end = int(np.searchsorted(names, np.array(pending[0], "S32")))
            write(file, first, end)
            write(*pending[1:])
            first, pending = end, next(left, None)
        write(file, first, len(names))
    while pending is not None:
        write(*pending[1:])
        pending = next(left, None)
    return Written(sources, np.concatenate(source), np.concatenate(ids))


class _Part:
    """Tokens of one part, mapped from disk.

    Args:
        done: The part.
        sources: Names of all sources; a document's source is kept by its place among them.
    """

    def __init__(self, done: Finished, sources: tuple[str, ...]) -> None:
        self.tokens: npt.NDArray[np.int32] = np.load(done.folder / _TOKENS, mmap_mode="r")
        self.lengths: npt.NDArray[np.int64] = np.load(done.folder / _LENGTHS)
        self.ids: npt.NDArray[np.uint8] = np.load(done.folder / _IDS)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        places = np.array([sources.index(name) for name in done.result["sources"]], np.int32)
        self.sources: npt.NDArray[np.int32] = places[np.load(done.folder / _SOURCES)]

    def names(self) -> Ids:
        """The ids as strings of bytes that compare as the ids do, S32 [documents]."""
        return np.frombuffer(self.ids.tobytes(), "S32")


def _cut_in_order(parts: Sequence[_Part]) -> Iterator[tuple[bytes, _Part, int, int]]:
    """Every document that was cut, by id: the id, and its part and place there."""
    documents = [
        (name, number, place) for number, part in enumerate(parts) for place, name in enumerate(part.names().tolist())
    ]
    for name, number, place in sorted(documents):
        yield name, parts[number], place, place + 1
