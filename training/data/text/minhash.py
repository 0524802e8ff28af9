"""MinHashes of sets of shingles (Broder, "On the Resemblance and Containment of Documents", 1997), in bands.

Banding is that of Leskovec et al., "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.data.text.similarity import Shingles
from training.specs.corpus import MinHash

BandKeys = npt.NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BATCH_SHINGLES = 2**16  # their 256 KB stay in a core's cache while all permutations pass over them


def band_keys(sets: Sequence[Shingles], spec: MinHash) -> BandKeys:
    """A hash of the MinHashes of every band of every document.

    The permutations are x -> a x + b modulo 2**32 with odd a, of the upper half of each shingle. Shingles are hashes
    already. Two that share their upper halves make a candidate at most, and candidates are compared exactly.

    Args:
        sets: Shingles of the documents, uint64 [shingles] each; none is empty.
        spec: Its rows and bands.

    Returns:
        uint64 [documents, bands].
    """
    rows, bands = spec.rows_and_bands
    drawn = hashlib.shake_128(b"minhash").digest(8 * rows * bands)
    coefficients = np.frombuffer(drawn, "<u4").astype(np.uint32).reshape(-1, 2)
    coefficients[:, 0] |= 1

    keys = np.zeros((len(sets), bands), np.uint64)
    ends = np.cumsum([len(shingles) for shingles in sets])
    first = 0
    while first < len(sets):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + _BATCH_SHINGLES, side="right")))
        upper = np.concatenate([shingles >> np.uint64(32) for shingles in sets[first:end]]).astype(np.uint32)
        starts = np.concatenate([[0], ends[first : end - 1] - before])

        permuted = np.empty_like(upper)
        for number, (factor, offset) in enumerate(coefficients):
            np.multiply(upper, factor, out=permuted)
            np.add(permuted, offset, out=permuted)
            lowest = np.minimum.reduceat(permuted, starts)
            some = keys[first:end, number // rows]
            np.add(some * _FACTOR, lowest + np.uint64(number // rows), out=some)
        first = end
    return keys
