"""What is counted of an asset of texts, for people: `report/statistics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from training.specs.base import Spec

STATISTICS = "statistics.json"
_BINS_PER_DECADE = 8


class SourceCounts(Spec):
    """What there is of one source.

    Attributes:
        bytes: Of UTF-8; None for tokens.
        tokens: None for texts.
    """

    documents: int
    bytes: int | None = None
    tokens: int | None = None


class LengthBin(Spec):
    """Documents of `least` up to and without `below` characters or tokens."""

    least: int
    below: int
    documents: int


class DataStatistics(Spec):
    """Documents by source and by length.

    Attributes:
        unit: Of the lengths.
    """

    sources: dict[str, SourceCounts]
    unit: Literal["characters", "tokens"]
    lengths: tuple[LengthBin, ...]


def length_bin(length: int) -> int:
    """The number of a length's bin; each of them is an eighth of a power of ten wide."""
    return int(math.log10(max(length, 1)) * _BINS_PER_DECADE)


def lower_edge(bin_: int) -> float:
    """The length at which a bin begins."""
    return float(10 ** (bin_ / _BINS_PER_DECADE))


def length_bins(counts: Mapping[int, int]) -> tuple[LengthBin, ...]:
    """Bins that hold a document, in their order.

    Args:
        counts: Number of a bin to its documents.
    """
    return tuple(
        LengthBin(least=math.ceil(lower_edge(bin_)), below=math.ceil(lower_edge(bin_ + 1)), documents=count)
        for bin_, count in sorted(counts.items())
        if count
    )
