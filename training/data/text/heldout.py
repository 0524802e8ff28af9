"""The held-out split, and held-out texts that resemble training text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.text.cleaned_parts import Cleaned, CleanedPart, Numbers
from training.data.text.similarity import Shingles, similar_documents
from training.job.parts import Part, Pool
from training.specs.corpus import MinHash

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer[Any]]
_MOST_MOVED = 1_000  # documents; draws above the share are only needed in small domains
_MOST_OVERSHOOT = 2.0  # times the share of bytes: a domain's one long document may not swallow the split
_SIDES, _QUERIES, _STARTS, _SHINGLES = "sides.npy", "queries.npy", "starts.npy", "shingles.npy"
KEPT, HELDOUT = 1, 2


def draw_heldout(
    domains: npt.NDArray[np.integer[Any]],
    draws: npt.NDArray[np.float64],
    sizes: Integers,
    share: float,
) -> Bools:
    """Which texts are held out.

    A document, with all its pieces, is held out if a number in [0, 1) drawn from its digest lies below `share`. So
    neither its name, nor its row, nor what else the corpus holds decides. A small domain may get less than `share` of
    its bytes in this way; there the limit moves up to the next draws. Every domain of two or more documents has at
    least one on either side.

    Args:
        domains: Number of each text's domain, integers [texts].
        draws: Drawn from the digest of each text's document, float64 [texts].
        sizes: Bytes of each text, integers [texts].
        share: Of the documents.

    Returns:
        bool [texts].
    """
    heldout = np.zeros(len(domains), np.bool_)
    for domain in np.unique(domains):
        of_domain = domains == domain
        heldout[of_domain] = draws[of_domain] < _limit(draws[of_domain], sizes[of_domain], share)
    return heldout


def _limit(draws: npt.NDArray[np.float64], sizes: Integers, share: float) -> float:
    """The limit below which the draws of one domain are held out; its last document is always trained on."""
    limit, needed_bytes = share, share * float(sizes.sum())
    held_bytes = float(sizes[draws < share].sum())
    if held_bytes < needed_bytes:
        following, place = np.unique(draws[draws >= share], return_inverse=True)
        bytes_of = np.bincount(place, sizes[draws >= share])
        for draw, size in zip(following[:_MOST_MOVED].tolist(), bytes_of[:_MOST_MOVED].tolist(), strict=True):
            overshoots = held_bytes + size > _MOST_OVERSHOOT * needed_bytes
            if held_bytes >= needed_bytes or (held_bytes and overshoots):
                break
            limit, held_bytes = math.nextafter(draw, 1), held_bytes + size
    return min(limit, float(draws.max()))


def twins_across(pool: Pool, cleaned: Cleaned, sides: npt.NDArray[np.uint8], spec: MinHash, scratch: Path) -> list[int]:
    """Held-out texts that are near-duplicates of a training text, compared exactly.

    Bands miss a few pairs of a very large corpus. A pair on one side of the split does no harm; a pair across it would
    let a model be tested on what it has read.

    Args:
        pool: Does the work.
        cleaned: The cleaned parts.
        sides: For each text 0, `KEPT` or `HELDOUT`, uint8 [texts].
        spec: Words per shingle and threshold.
        scratch: Folder for files that the steps share.

    Returns:
        Their numbers.
    """
    np.save(scratch / _SIDES, sides)
    parts = [
        Part(f"{number:05d}", _Side(cleaned, number, scratch, spec), size) for number, size in enumerate(cleaned.sizes)
    ]
    written = pool.run("read held-out text", _write_queries, parts)
    sets = [np.load(done.folder / _SHINGLES) for done in written]
    lengths = [np.diff(np.load(done.folder / _STARTS)) for done in written]
    np.save(scratch / _QUERIES, np.concatenate([np.load(done.folder / _QUERIES) for done in written]))
    np.save(scratch / _SHINGLES, np.concatenate(sets))
    np.save(scratch / _STARTS, np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    matched = pool.run("compare held-out text", _match, parts)
    return sorted({number for done in matched for number in done.result["twins"]})


@dataclass(frozen=True)
class _Side:
    """The texts of one cleaned part, which `scratch` assigns to their sides."""

    cleaned: Cleaned
    part: int
    scratch: Path
    spec: MinHash

    def shingles(self, side: int) -> tuple[Numbers, Iterator[Shingles]]:
        """Numbers of the part's texts on a side, and the shingles of each."""
        numbers = self.cleaned.numbers(self.part)
        sides = np.load(self.scratch / _SIDES, mmap_mode="r")
        is_text = numbers < len(sides)
        chosen = np.zeros(len(numbers), np.bool_)
        chosen[is_text] = sides[numbers[is_text]] == side
        part = CleanedPart(self.cleaned.folders[self.part])
        return numbers[chosen], (shingles for _, shingles in part.shingles(chosen, self.spec.ngram))


def _write_queries(side: _Side, folder: Path) -> dict[str, Any]:
    numbers, shingles = side.shingles(HELDOUT)
    sets = list(shingles)
    np.save(folder / _QUERIES, numbers)
    np.save(folder / _STARTS, np.cumsum([0, *map(len, sets)]))
    np.save(folder / _SHINGLES, np.concatenate([np.empty(0, np.uint64), *sets]))
    return {}


def _match(side: _Side, folder: Path) -> dict[str, Any]:
    """Numbers of all held-out texts that resemble one of this part's training texts."""
    numbers, starts = np.load(side.scratch / _QUERIES), np.load(side.scratch / _STARTS)
    shingles = np.load(side.scratch / _SHINGLES, mmap_mode="r")
    queries: Sequence[Shingles] = [shingles[starts[at] : starts[at + 1]] for at in range(len(numbers))]
    _, stream = side.shingles(KEPT)
    matches = similar_documents(queries, [-1] * len(queries), stream, side.spec.threshold)
    return {"twins": [int(numbers[query]) for query in matches]}
