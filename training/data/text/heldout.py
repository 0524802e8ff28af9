"""The held-out split, and held-out texts that resemble training text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.text.cleaned_parts import Cleaned, CleanedPart, Numbers
from training.data.text.queries import read_queries, write_queries
from training.data.text.similarity import Shingles, similar_documents
from training.job.parts import Part, Pool
from training.specs.corpus import MinHash

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer[Any]]
_MOST_MOVED = 1_000  # documents; draws above the share are only needed in small domains
_MOST_OVERSHOOT = 2.0  # times the share of bytes: a domain's one long document may not swallow the split
_SIDES, _NUMBERS, _BORDERS, _SHINGLES = "sides.npy", "heldout_numbers.npy", "borders.npy", "shingles.npy"
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


def twins_across(pool: Pool, cleaned: Cleaned, sides: npt.NDArray[np.uint8], spec: MinHash) -> list[int]:
    """Held-out texts that are near-duplicates of a training text, compared exactly.

    Bands miss a few pairs of a very large corpus. A pair on one side of the split does no harm; a pair across it would
    let a model be tested on what it has read.

    Args:
        pool: Does the work.
        cleaned: The cleaned parts.
        sides: For each text 0, `KEPT` or `HELDOUT`, uint8 [texts].
        spec: Words per shingle and threshold.

    Returns:
        Their numbers.
    """
    shared = pool.shared
    np.save(shared / _SIDES, sides)
    parts = [
        Part(f"{number:05d}", _Side(cleaned, number, shared, spec), size) for number, size in enumerate(cleaned.sizes)
    ]
    written = pool.run("read held-out text", _write_queries, parts)
    np.save(shared / _NUMBERS, np.concatenate([np.load(done.folder / _NUMBERS) for done in written]))
    write_queries(shared, (shingles for done in written for shingles in _sets(done.folder)))
    matched = pool.run("compare held-out text", _match, parts)
    return sorted({number for done in matched for number in done.result["twins"]})


@dataclass(frozen=True)
class _Side:
    """The texts of one cleaned part, which a file in `shared` assigns to their sides."""

    cleaned: Cleaned
    part: int
    shared: Path
    spec: MinHash

    def shingles(self, side: int) -> tuple[Numbers, Iterator[Shingles]]:
        """Numbers of the part's texts on a side, and the shingles of each."""
        numbers = self.cleaned.numbers(self.part)
        sides = np.load(self.shared / _SIDES, mmap_mode="r")
        is_text = numbers < len(sides)
        chosen = np.zeros(len(numbers), np.bool_)
        chosen[is_text] = sides[numbers[is_text]] == side
        part = CleanedPart(self.cleaned.folders[self.part])
        return numbers[chosen], (shingles for _, shingles in part.shingles(chosen, self.spec.ngram))


def _write_queries(side: _Side, folder: Path) -> dict[str, Any]:
    numbers, shingles = side.shingles(HELDOUT)
    sets = [np.empty(0, np.uint64), *shingles]
    np.save(folder / _NUMBERS, numbers)
    np.save(folder / _BORDERS, np.cumsum([len(some) for some in sets]))
    np.save(folder / _SHINGLES, np.concatenate(sets))
    return {}


def _sets(folder: Path) -> Iterator[Shingles]:
    shingles = np.load(folder / _SHINGLES)
    for start, end in itertools.pairwise(np.load(folder / _BORDERS).tolist()):
        yield shingles[start:end]


def _match(side: _Side, _folder: Path) -> dict[str, Any]:
    """Numbers of all held-out texts that resemble one of this part's training texts."""
    queries, numbers = read_queries(side.shared, side.spec.threshold), np.load(side.shared / _NUMBERS)
    _, stream = side.shingles(KEPT)
    matches = similar_documents(queries.sets, [-1] * len(queries.sets), stream, side.spec.threshold, queries.prefixes)
    return {"twins": [int(numbers[query]) for query in matches]}
