"""The cleaned pieces of a corpus between the steps that make it, a folder for each part of the raw corpus.

A piece is known by the part it lies in and its row there. The rows of a part ascend by id. Its texts lie in slices, one
for each range of ids, so that whoever puts a range of the whole corpus in order reads a little of every part.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.custom_code import CustomCode
from training.data.tables import fraction, read_rows
from training.data.text.cleaning import Piece, clean
from training.data.text.minhash import band_keys
from training.data.text.similarity import Shingles, shingle_sets
from training.data.text.slices import read_slice, write_slices
from training.job.parts import Finished
from training.specs.corpus import CorpusSection, MinHash

EXAMPLES = 20
EXCERPT = 300
# A piece in the order of ids: digests of its text and of the whole document's, a number from 0 to 1 drawn from the
# latter, bytes of UTF-8, the number of its domain, and its place in the part before it was sorted.
ROW = np.dtype([("id", "S32"), ("document", "S32"), ("draw", "f8"), ("bytes", "u4"), ("domain", "u2"), ("place", "u4")])
# One of a piece's bands of MinHashes, and the piece's row in the part.
BAND = np.dtype([("hash", "u8"), ("row", "u4")])
_TEXTS, _SLICES, _ROWS, _BANDS = "texts.arrow", "slices.npy", "rows.npy", "bands.npy"
_BATCH_SHINGLES = 2**19
_TEXT_SCHEMA = pa.schema(
    [
        pa.field("text", pa.large_string()),
        pa.field("source", pa.string()),
        pa.field("path", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("domain", pa.string()),
    ]
)
Example = dict[str, Any]
Numbers = npt.NDArray[np.uint32]
NO_NUMBER = np.uint32(0xFFFFFFFF)  # of a copy that was not kept


@dataclass(frozen=True)
class RawPart:
    """A file of the raw corpus.

    Attributes:
        path: Its parquet file.
        section: Limits and domains.
        domains: Names of all domains; a piece's domain is kept by its place here.
        ranges: How many ranges of ids the corpus has.
        code: The recipe's own, where the section names filters of it.
    """

    path: Path
    section: CorpusSection
    domains: tuple[str, ...]
    ranges: int
    code: CustomCode | None = None


def clean_part(part: RawPart, folder: Path) -> dict[str, Any]:
    """Clean a part, and write the pieces that stay with their MinHashes.

    Returns:
        `documents` read, `pieces` that stay, `dropped` by reason with `examples`, the first by id; personal data
        `scrubbed` by kind; and documents by `languages`.
    """
    pieces: list[tuple[Piece, str, str | None]] = []
    dropped, scrubbed, languages = Counter[str](), Counter[str](), Counter[str]()
    examples: list[Example] = []
    documents = 0
    rules = part.section.rules
    filters = part.code.filters(rules.filters) if part.code and rules else []
    for row in read_rows(part.path, ["text", "source", "path", "licence"]):
        documents += 1
        cleaned = clean(row["source"], row["path"], row["text"], part.section, row["licence"], filters)
        scrubbed.update(cleaned.scrubbed)
        languages.update([cleaned.language] if cleaned.language else [])
        for piece in cleaned.pieces:
            if piece.reason is None:
                pieces.append((piece, row["source"], row["licence"]))
            else:
                dropped[piece.reason] += 1
                examples.append(example_of(piece.id, piece.text, row["source"], piece.path, piece.reason, piece.why))
        if len(examples) > 50 * EXAMPLES:
            examples = first_examples(examples)

    order = sorted(range(len(pieces)), key=lambda place: (pieces[place][0].id, pieces[place][0].document, place))
    in_order = [pieces[place] for place in order]
    rows = _rows([piece for piece, _, _ in in_order], order, part.domains)
    np.save(folder / _ROWS, rows)
    np.save(folder / _BANDS, _bands([piece.text for piece, _, _ in in_order], part.section.near_duplicates))
    _write_texts(folder, rows, in_order, part.ranges)
    return {
        "documents": documents,
        "pieces": len(pieces),
        "bytes": int(rows["bytes"].sum()),
        "dropped": dropped,
        "scrubbed": scrubbed,
        "languages": languages,
        "examples": first_examples(examples),
    }


def example_of(id_: str, text: str, source: str, path: str, reason: str, why: str = "") -> Example:
    """A dropped piece as `dropped.jsonl` shows it."""
    example = {"id": id_, "source": source, "path": path, "reason": reason, "excerpt": text[:EXCERPT]}
    return {**example, "why": why} if why else example


def first_examples(examples: Sequence[Example]) -> list[Example]:
    """The first of every reason, by id, source and path."""
    by_reason: dict[str, list[Example]] = {}
    for example in examples:
        by_reason.setdefault(example["reason"], []).append(example)
    return [
        example
        for reason in sorted(by_reason)
        for example in heapq.nsmallest(
            EXAMPLES, by_reason[reason], key=lambda row: (row["id"], row["source"], row["path"])
        )
    ]


def _place(example: Example) -> tuple[str, str, str]:
    return example["id"], example["source"], example["path"]


def range_of(ids: npt.NDArray[np.bytes_], ranges: int) -> npt.NDArray[np.int64]:
    """The range that each id lies in: equal shares of the possible digests, in their order."""
    first_bytes = np.frombuffer(ids.tobytes(), ">u4").reshape(len(ids), -1)[:, 0] if len(ids) else np.empty(0, ">u4")
    return first_bytes.astype(np.int64) * ranges >> 32


class CleanedPart:
    """What `clean_part` wrote.

    Attributes:
        rows: `ROW` [pieces], in the order of ids; mapped from disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: npt.NDArray[np.void] = np.load(folder / _ROWS, mmap_mode="r")
        self._slices: npt.NDArray[np.int64] = np.load(folder / _SLICES)

    @property
    def bands(self) -> npt.NDArray[np.void]:
        """`BAND` [pieces x bands], in the order of their hashes; mapped from disk."""
        bands: npt.NDArray[np.void] = np.load(self._folder / _BANDS, mmap_mode="r")
        return bands

    def rows_of(self, range_: int) -> slice:
        """The rows of a range of ids."""
        return slice(int(self._slices[range_, 0]), int(self._slices[range_ + 1, 0]))

    def texts(self, range_: int) -> pa.Table:
        """Text, source, path, licence and domain of a range's pieces, in the order of their rows."""
        return read_slice(self._folder / _TEXTS, self._slices[:, 1], range_, _TEXT_SCHEMA)

    def shingles(self, chosen: npt.NDArray[np.bool_], ngram: int) -> Iterator[tuple[int, Shingles]]:
        """Shingles of chosen pieces, each with its row.

        Args:
            chosen: bool [pieces].
            ngram: Words per shingle.
        """
        for range_ in range(len(self._slices) - 1):
            rows = self.rows_of(range_)
            places = np.flatnonzero(chosen[rows])
            if len(places):
                texts = self.texts(range_)["text"].take(pa.array(places)).to_pylist()
                yield from zip((places + rows.start).tolist(), shingle_sets(texts, ngram), strict=True)


@dataclass(frozen=True)
class Cleaned:
    """The cleaned parts, and which text each piece has.

    Attributes:
        folders: Of all cleaned parts, in their order.
        first_rows: Row of each part's first piece among those of the corpus.
        sizes: Bytes of text of each part.
        number_of: File with the number of each piece's text, uint32 [rows]; `training.data.text.digest_order` writes
            it.
    """

    folders: tuple[Path, ...]
    first_rows: tuple[int, ...]
    sizes: tuple[int, ...]
    number_of: Path

    @classmethod
    def of(cls, parts: Sequence[Finished], number_of: Path) -> Cleaned:
        """What `clean_part` made of all parts of the raw corpus, in their order."""
        rows = [finished.result["pieces"] for finished in parts]
        return cls(
            folders=tuple(finished.folder for finished in parts),
            first_rows=tuple(accumulate(rows[:-1], initial=0)),
            sizes=tuple(finished.result["bytes"] for finished in parts),
            number_of=number_of,
        )

    @property
    def rows(self) -> int:
        """Number of pieces of all parts."""
        return self.first_rows[-1] + len(CleanedPart(self.folders[-1]).rows)

    def numbers(self, part: int) -> Numbers:
        """Numbers of a part's pieces, uint32 [pieces]."""
        end = self.first_rows[part] + len(CleanedPart(self.folders[part]).rows)
        return np.asarray(np.load(self.number_of, mmap_mode="r")[self.first_rows[part] : end])


def _rows(pieces: Sequence[Piece], places: Sequence[int], domains: tuple[str, ...]) -> npt.NDArray[np.void]:
    rows = np.empty(len(pieces), ROW)
    rows["id"] = [bytes.fromhex(piece.id) for piece in pieces]
    rows["document"] = [bytes.fromhex(piece.document) for piece in pieces]
    rows["draw"] = [fraction(piece.document) for piece in pieces]
    rows["bytes"] = [len(piece.text.encode()) for piece in pieces]
    rows["domain"] = [domains.index(piece.domain) for piece in pieces]
    rows["place"] = places
    return rows


def _bands(texts: Sequence[str], spec: MinHash) -> npt.NDArray[np.void]:
    entries = [np.empty(0, BAND)]
    batch: list[Shingles] = []
    first = size = 0

    def finish() -> None:
        keys = band_keys(batch, spec)
        bands = np.empty(keys.size, BAND)
        bands["hash"] = keys.ravel()
        bands["row"] = np.repeat(np.arange(first, first + len(batch)), keys.shape[1])
        entries.append(bands)

    for shingles in shingle_sets(texts, spec.ngram):
        batch.append(shingles)
        size += len(shingles)
        if size >= _BATCH_SHINGLES:
            finish()
            first, size = first + len(batch), 0
            batch = []
    if batch:
        finish()

    bands = np.concatenate(entries)
    return bands[np.lexsort((bands["row"], bands["hash"]))]


def _write_texts(
    folder: Path, rows: npt.NDArray[np.void], pieces: Sequence[tuple[Piece, str, str | None]], ranges: int
) -> None:
    """Write the texts, and where the rows and the bytes of each slice begin, int64 [ranges + 1, 2]."""
    borders = np.searchsorted(range_of(rows["id"], ranges), np.arange(ranges + 1))
    columns = [
        [piece.text for piece, _, _ in pieces],
        [source for _, source, _ in pieces],
        [piece.path for piece, _, _ in pieces],
        [licence for _, _, licence in pieces],
        [piece.domain for piece, _, _ in pieces],
    ]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _TEXT_SCHEMA, strict=True)], schema=_TEXT_SCHEMA
    )
    np.save(folder / _SLICES, np.stack([borders, write_slices(folder / _TEXTS, table, borders)], axis=1))
