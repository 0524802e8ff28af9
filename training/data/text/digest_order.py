"""The pieces of a corpus in the order of their digests, one of each text: found range by range.

A piece's place in this order is its number, by which later steps know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.text.cleaned_parts import NO_NUMBER, Cleaned, CleanedPart
from training.job.parts import Part, Pool

# One text of a range, in the order of ids: its row among those of the range in all parts, one part after the other,
# its row among those of the corpus, and what a cleaned part says of it.
UNIQUE = np.dtype([("row", "u4"), ("corpus_row", "u8"), ("draw", "f8"), ("bytes", "u4"), ("domain", "u2")])
_UNIQUE = "unique.npy"


@dataclass(frozen=True)
class Range:
    """A range of ids in all cleaned parts."""

    cleaned: Cleaned
    number: int

    def texts(self) -> pa.Table:
        """Texts of the range in all parts; their rows are what `UNIQUE` names."""
        return pa.concat_tables([CleanedPart(folder).texts(self.number) for folder in self.cleaned.folders])


def find_unique(range_: Range, folder: Path) -> dict[str, Any]:
    """Keep one of all pieces that share a text: that of the first document by digest, then the first in the corpus.

    Returns:
        The number of `unique` texts.
    """
    rows, corpus_rows = [], []
    for part, first in zip(map(CleanedPart, range_.cleaned.folders), range_.cleaned.first_rows, strict=True):
        place = part.rows_of(range_.number)
        rows.append(np.asarray(part.rows[place]))
        corpus_rows.append(np.arange(first + place.start, first + place.stop, dtype=np.uint64))

    pieces, corpus_row = np.concatenate(rows), np.concatenate(corpus_rows)
    part_of = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
    order = np.lexsort((pieces["place"], part_of, pieces["document"], pieces["id"]))
    ids = pieces["id"][order]
    order = order[np.concatenate([[True], ids[1:] != ids[:-1]])] if len(ids) else order

    unique = np.empty(len(order), UNIQUE)
    unique["row"], unique["corpus_row"] = order, corpus_row[order]
    for name in ("draw", "bytes", "domain"):
        unique[name] = pieces[name][order]
    np.save(folder / _UNIQUE, unique)
    return {"unique": len(unique)}


class DigestOrder:
    """The texts of a corpus, numbered by their digests. The number of each piece's text is written for later steps.

    Args:
        pool: Does the work.
        cleaned: The cleaned parts.
        ranges: Into how many ranges of ids they are sliced.

    Attributes:
        ranges: All ranges of ids.
        first_numbers: Number of each range's first text, and of all texts, int64 [ranges + 1].
        count: Number of texts.
    """

    def __init__(self, pool: Pool, cleaned: Cleaned, ranges: int) -> None:
        size = sum(cleaned.sizes) // ranges
        self.ranges = [Range(cleaned, number) for number in range(ranges)]
        parts = [Part(f"{range_.number:05d}", range_, size) for range_ in self.ranges]
        self._finished = pool.run("exact duplicates", find_unique, parts)
        self.first_numbers = np.cumsum([0, *(finished.result["unique"] for finished in self._finished)])
        self.count = int(self.first_numbers[-1])

        number_of = np.full(cleaned.rows, NO_NUMBER, np.uint32)
        for first, unique in zip(self.first_numbers.tolist(), self._unique(), strict=False):
            number_of[unique["corpus_row"]] = np.arange(first, first + len(unique), dtype=np.uint32)
        np.save(cleaned.number_of, number_of)

    def file(self, range_: int) -> Path:
        """File with `UNIQUE` [texts of a range]."""
        return self._finished[range_].folder / _UNIQUE

    def column(self, name: str) -> npt.NDArray[Any]:
        """A field of `UNIQUE` of all texts, in the order of their numbers, [texts]."""
        return np.concatenate([np.asarray(unique[name]) for unique in self._unique()])

    def _unique(self) -> Iterator[npt.NDArray[np.void]]:
        for range_ in range(len(self.ranges)):
            yield np.load(self.file(range_), mmap_mode="r")
