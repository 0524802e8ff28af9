"""Shingles that many processes search for, in a file: each process builds their index once, whatever it searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.text.similarity import PrefixIndex, Shingles

_SHINGLES, _BORDERS = "queries.npy", "query_borders.npy"


class Queries(NamedTuple):
    """What is searched for.

    Attributes:
        sets: Shingles of the queries.
        prefixes: Their index, for one threshold.
    """

    sets: Sequence[Shingles]
    prefixes: PrefixIndex


def write_queries(folder: Path, sets: Iterable[Shingles]) -> None:
    """Write the shingles of queries."""
    every = [np.empty(0, np.uint64), *sets]
    np.save(folder / _SHINGLES, np.concatenate(every))
    np.save(folder / _BORDERS, np.cumsum([len(shingles) for shingles in every]))


def read_queries(folder: Path, threshold: float) -> Queries:
    """The queries of a folder, mapped from disk."""
    return _read(folder, threshold, (folder / _SHINGLES).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(folder: Path, threshold: float, _written_at: int) -> Queries:
    shingles = np.load(folder / _SHINGLES, mmap_mode="r")
    sets = [shingles[start:end] for start, end in pairwise(np.load(folder / _BORDERS).tolist())]
    return Queries(sets, PrefixIndex(sets, threshold))
