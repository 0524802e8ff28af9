"""The documents of shards beside the texts of a corpus, part by part; `training.evaluation.shards` puts it together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from training.data.sources.provenance import part_of
from training.data.text.cut_documents import read_group, write_parts
from training.data.text.documents import Document, batches, read_documents
from training.data.tokens.encoding import Encoded, Encoder, encoder
from training.data.tokens.shards import TokenShards

COMPARED, EXCLUDED = 1, 2  # what is done with a row of a split; 0 is nothing
_IDS, _DIGESTS, _LENGTHS = "ids.npy", "digests.npy", "lengths.npy"
_DIGEST_BYTES = 16
Tokens = npt.NDArray[np.integer]
Names = npt.NDArray[np.bytes_]
Kind = Literal["trained", "excluded"]


@dataclass(frozen=True)
class Judged:
    """What every part reads.

    Attributes:
        shards: Their folder.
        tokenizer: A tokenizer.json.
        names: File with the ids of the shards' documents, sorted, S32 [documents].
        order: File with the document that each of them is, int64 [documents].
        step: Every so many documents are compared, by digest, and all that are missing.
    """

    shards: Path
    tokenizer: Path
    names: Path
    order: Path
    step: int


@dataclass(frozen=True)
class SplitFile:
    """A file of a split.

    Attributes:
        first_row: The file's first row in the split.
        roles: File with what is done with each row of the split, int8 [rows].
        groups: For each kind of documents that were cut, the file that assigns the rows to them, and the number of
            groups; see `training.data.text.cut_documents.assignment`.
    """

    judged: Judged
    path: Path
    first_row: int
    roles: Path
    groups: tuple[tuple[Kind, Path, int], ...]


@dataclass(frozen=True)
class CutGroup:
    """Some documents that were cut.

    Attributes:
        folders: What `measure_file` wrote of all files of their split.
        number: Of the group.
        runs: The rows of each document's parts, in their order.
    """

    judged: Judged
    kind: Kind
    folders: tuple[Path, ...]
    number: int
    runs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Range:
    """Some documents of the shards, from `first` up to `end`, and the file of `Excluded` that is looked for."""

    shards: Path
    excluded: Path
    first: int
    end: int


def measure_file(file: SplitFile, folder: Path) -> dict[str, Any]:
    """Compare a file's documents with those of the shards, and write what is known of the excluded ones.

    Returns:
        How many were `compared`, and the `faults` of `tokens_lost` among them.
    """
    rows = slice(file.first_row, file.first_row + pq.read_metadata(file.path).num_rows)
    for kind, groups, count in file.groups:
        (folder / kind).mkdir()
        assigned = np.asarray(np.load(groups, mmap_mode="r")[rows])
        write_parts(file.path, assigned, file.first_row, count, folder / kind)

    roles = np.asarray(np.load(file.roles, mmap_mode="r")[rows])
    _write_excluded(file.judged, read_documents(file.path, roles == EXCLUDED), folder)
    return _compare(file.judged, read_documents(file.path, roles == COMPARED))


def measure_cut(cut: CutGroup, folder: Path) -> dict[str, Any]:
    """As `measure_file`, for documents that were cut, each put together again; the ids of all are written."""
    judged = cut.judged
    documents = read_group([path / cut.kind for path in cut.folders], cut.number, cut.runs)
    if cut.kind == "excluded":
        # What stands alone is a row, and was measured as such.
        _write_excluded(judged, (document for document in documents if not part_of(document.path)), folder)
        return {"compared": 0, "faults": []}

    np.save(folder / _IDS, names_of(documents))
    missing = _open(judged).places(documents) < 0
    chosen = [
        document
        for document, is_missing in zip(documents, missing.tolist(), strict=True)
        if is_missing or int(document.id[:8], 16) % judged.step == 0
    ]
    return _compare(judged, chosen)


def search(documents: Range, folder: Path) -> dict[str, Any]:
    """Write the digests of excluded documents that some documents of the shards have.

    Only documents that are as long as an excluded one are looked at.
    """
    shards, excluded = TokenShards(documents.shards), Excluded.read(documents.excluded)
    lengths = shards.lengths[documents.first : documents.end]
    places = np.flatnonzero(np.isin(lengths, excluded.lengths)) + documents.first
    digests = _digests(shards.document(place) for place in places.tolist())
    np.save(folder / _DIGESTS, np.intersect1d(digests, excluded.digests))
    return {}


def read_ids(folder: Path) -> Names:
    """Ids of all documents of a group that was cut and is trained on, S32 [documents]."""
    ids: Names = np.load(folder / _IDS)
    return ids


def read_digests(folder: Path) -> Names:
    """What `search` wrote, S16 [digests]."""
    digests: Names = np.load(folder / _DIGESTS)
    return digests


@dataclass(frozen=True)
class Excluded:
    """Documents that the shards should not hold.

    Attributes:
        ids: S32 [documents].
        digests: Of their tokens with the end of text, S16 [documents].
        lengths: So many tokens, int64 [documents].
    """

    ids: Names
    digests: Names
    lengths: npt.NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path) -> Excluded:
        """What `write`, or a part, wrote to a folder."""
        return cls(*(np.load(folder / name) for name in (_IDS, _DIGESTS, _LENGTHS)))

    @classmethod
    def concatenated(cls, folders: Sequence[Path]) -> Excluded:
        """What several parts wrote, one after the other."""
        parts = [cls.read(folder) for folder in folders]
        return cls(
            np.concatenate([np.empty(0, "S32"), *(part.ids for part in parts)]),
            np.concatenate([np.empty(0, f"S{_DIGEST_BYTES}"), *(part.digests for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]),
        )

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        for name, values in ((_IDS, self.ids), (_DIGESTS, self.digests), (_LENGTHS, self.lengths)):
            np.save(folder / name, values)


def _compare(judged: Judged, documents: Iterable[Document]) -> dict[str, Any]:
    """Encode documents with `tokenizers`, whichever engine made the shards, and compare the tokens."""
    opened = _open(judged)
    compared, faults = 0, []
    for batch in batches(iter(documents)):
        compared += len(batch)
        encoded = opened.engine.encode_exactly([document.text for document in batch])
        expected = _with_end(opened.engine, encoded)
        for document, tokens, place in zip(batch, expected, opened.places(batch).tolist(), strict=True):
            packed = opened.shards.document(int(opened.order[place])) if place >= 0 else np.empty(0, np.int64)
            if differing := difference(tokens, packed):
                faults.append([document.id, differing, len(tokens), len(packed)])
    return {"compared": compared, "faults": faults}


def _write_excluded(judged: Judged, documents: Iterator[Document], folder: Path) -> None:
    engine = _open(judged).engine
    ids, digests, lengths = [np.empty(0, "S32")], [np.empty(0, f"S{_DIGEST_BYTES}")], [np.empty(0, np.int64)]
    for batch in batches(documents):
        encoded = engine.encode([document.text for document in batch])
        ids.append(names_of(batch))
        digests.append(_digests(_with_end(engine, encoded)))
        lengths.append(encoded.lengths + 1)
    Excluded(np.concatenate(ids), np.concatenate(digests), np.concatenate(lengths)).write(folder)


def _with_end(engine: Encoder, encoded: Encoded) -> Iterator[Tokens]:
    """Tokens of every document, with the end of text that shards hold after each."""
    end = np.array([engine.end], np.int32)
    stops = np.cumsum(encoded.lengths)
    for start, stop in zip((stops - encoded.lengths).tolist(), stops.tolist(), strict=True):
        yield np.concatenate([encoded.tokens[start:stop], end])


def _digests(documents: Iterable[Tokens]) -> Names:
    """A digest of each document's token ids, whatever their type, S16 [documents]."""
    digests = b"".join(
        hashlib.blake2b(np.asarray(tokens, "<u4").data, digest_size=_DIGEST_BYTES).digest() for tokens in documents
    )
    return np.frombuffer(digests, f"S{_DIGEST_BYTES}")


def names_of(documents: Sequence[Document]) -> Names:
    """Ids as strings of bytes that compare as the ids do, S32 [documents]."""
    return np.frombuffer(bytes.fromhex("".join(document.id for document in documents)), "S32")


class _Opened:
    """The files of `Judged`."""

    def __init__(self, judged: Judged) -> None:
        self.engine = encoder(judged.tokenizer)
        self.shards = TokenShards(judged.shards)
        self.order: npt.NDArray[np.int64] = np.load(judged.order, mmap_mode="r")
        self._names: Names = np.load(judged.names, mmap_mode="r")

    def places(self, documents: Sequence[Document]) -> npt.NDArray[np.int64]:
        """The first place of each document's id among the sorted ones, int64 [documents]; -1 if it is not there."""
        names = names_of(documents)
        places = np.searchsorted(self._names, names)
        is_there = places < len(self._names)
        is_there[is_there] = self._names[places[is_there]] == names[is_there]
        return np.where(is_there, places, -1)


@lru_cache(maxsize=1)
def _open(judged: Judged) -> _Opened:
    return _Opened(judged)


def difference(expected: Tokens, packed: Tokens) -> int:
    """Tokens of both sequences outside their common beginning and common end.

    Args:
        expected: Integers [length].
        packed: Integers [another length].
    """
    shorter = min(len(expected), len(packed))
    unequal = np.flatnonzero(expected[:shorter] != packed[:shorter])
    head = int(unequal[0]) if len(unequal) else shorter

    rest = shorter - head
    unequal = np.flatnonzero(expected[len(expected) - rest :][::-1] != packed[len(packed) - rest :][::-1])
    tail = int(unequal[0]) if len(unequal) else rest
    return len(expected) + len(packed) - 2 * (head + tail)
