"""The documents of a corpus as tokens, file by file, before they are put together as shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from training.data.text.cut_documents import WHOLE, read_group, write_parts
from training.data.text.documents import Document, batches, read_documents
from training.data.tokens.encoding import encoder
from training.data.tokens.shards import TokenWriter
from training.job.parts import Finished

_TOKENS, _LENGTHS, _IDS, _SOURCES = "tokens.npy", "lengths.npy", "ids.npy", "sources.npy"
Ids = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class FileOfDocuments:
    """A file of a split.

    Attributes:
        groups: File with what each row of the split is; see `training.data.text.cut_documents.assignment`.
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


def tokenize_file(file: FileOfDocuments, folder: Path) -> dict[str, Any]:
    """Write the tokens of a file's whole documents, which ascend by id, and the parts of others."""
    groups = np.asarray(np.load(file.groups, mmap_mode="r")[file.first_row :][: pq.read_metadata(file.path).num_rows])
    write_parts(file.path, groups, file.first_row, file.count, folder)
    return _write(read_documents(file.path, groups == WHOLE), file.tokenizer, folder)


def tokenize_cut(cut: CutDocuments, folder: Path) -> dict[str, Any]:
    """Write the tokens of documents that were cut, each put together again, in the order of their ids."""
    return _write(iter(read_group(cut.files, cut.number, cut.runs)), cut.tokenizer, folder)


def _write(documents: Iterator[Document], tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Write tokens, with an end of text after each document.

    Returns:
        Names of `sources`, the `engine` that encoded, and `why` it was not the fast one.
    """
    engine = encoder(tokenizer)
    names: dict[str, int] = {}
    tokens, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    ids, sources = bytearray(), list[int]()
    for batch in batches(documents):
        encoded = engine.encode([document.text for document in batch])
        tokens.append(np.insert(encoded.tokens, np.cumsum(encoded.lengths), engine.end))
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
