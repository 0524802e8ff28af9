"""The order of the training data as a pure function of (seed, row number).

Blocks of 1024 rows hold every source in its share and are shuffled; within a source, each epoch is a permutation of all
its rows. Both permutations are Feistel networks with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002): a row is computed from its number alone, so row 10,000,000 costs what row 10 costs and no state has to
be saved or replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.tokens.shards import Int64

UInt64 = NDArray[np.uint64]

BLOCK = 1024
_UNIT = 1 << 48
_ROUNDS = 6
_BLOCKS_KEY = 0xB10C
_SEEDS = 1 << 64
_AT_ONCE = 1 << 15  # places: so many numbers stay in a core's cache


class RowOrder:
    """Which row of which source is read when.

    A source's share of the rows is its weight times its number of rows, over the sum of all: with equal weights every
    row is read equally often. At the end of every block the number of rows taken so far from a source lies within one
    row of its share for up to two sources, and within 1.5 rows for up to six.

    Args:
        row_counts: Rows of every source; a source without rows is never read.
        weights: Weight of every source; one of weight 0 is never read.
        seed: Another seed gives another order.

    Attributes:
        row_counts, weights, seed: As given.

    Raises:
        ValueError: There is nothing to read, or a weight is negative.
    """

    def __init__(self, row_counts: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(row_counts) != len(weights) or min(weights, default=0) < 0:
            raise ValueError(
                f"need one weight of at least 0 per source, not rows {list(row_counts)} and weights {list(weights)}"
            )
        self.row_counts, self.weights, self.seed = tuple(row_counts), tuple(weights), seed
        self._rows: Int64 = np.array(row_counts, np.int64)

        shares = self._rows * np.array(weights, np.float64)
        if not shares.any():
            raise ValueError(f"no source has rows and a weight: rows {list(row_counts)}, weights {list(weights)}")
        # Each source, largest first, takes its part of what the sources before it left: in whole numbers, so that the
        # parts of a block add up to the block and none is ever negative.
        largest_first = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)].tolist()
        left = np.cumsum(shares[largest_first][::-1])[::-1].tolist()
        self._parts = [
            (which, round(shares[which] / rest * _UNIT)) for which, rest in zip(largest_first, left, strict=True)
        ]

    def taken(self, count: int) -> Int64:
        """Rows taken from every source among the first `count`; int64 [sources]."""
        in_blocks, rest = count - count % BLOCK, count % BLOCK
        counts, left = np.zeros(len(self._rows), np.int64), in_blocks
        for which, part in self._parts:
            counts[which] = (left * part + _UNIT // 2) // _UNIT
            left -= int(counts[which])
        if not rest:
            return counts
        return counts + np.bincount(self.turns(in_blocks, rest)[0], minlength=len(counts))

    def turns(self, start: int, count: int) -> tuple[Int64, Int64]:
        """Whose turn it is at the rows with the numbers `start` to `start + count - 1`.

        Returns:
            Number of the source, and how many rows of it came before, int64 [count] each.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must not be negative, not {start} and {count}")

        first, last = start // BLOCK, (start + max(count, 1) - 1) // BLOCK
        blocks = np.arange(first, last + 1)
        taken = np.stack([self.taken(block * BLOCK) for block in range(first, last + 2)])
        ends = np.cumsum(np.diff(taken, axis=0), axis=1)

        # The shuffle of a block decides only which source comes when. Each source's rows stay in the order of its
        # epochs, so an epoch ends exactly where all rows were read. That is why a block is always taken whole.
        keys = np.repeat(_mix(_one(key_of(self.seed, _BLOCKS_KEY)), blocks.astype(np.uint64)), BLOCK)
        slots = _permute(np.tile(np.arange(BLOCK), len(blocks)), BLOCK, keys).reshape(-1, BLOCK)
        source, nth = np.zeros_like(slots), np.zeros_like(slots)
        for end in ends.T[:-1]:
            source += slots >= end[:, None]
        for which, before in enumerate(taken[:-1].T):
            chosen = source == which
            nth += chosen * (np.cumsum(chosen, axis=1) - 1 + before[:, None])

        asked = slice(start - first * BLOCK, start - first * BLOCK + count)
        return source.reshape(-1)[asked], nth.reshape(-1)[asked]

    def rows(self, start: int, count: int) -> tuple[Int64, Int64]:
        """The rows with the numbers `start` to `start + count - 1`, every epoch of a source shuffled.

        Returns:
            Number of the source, and of the row within it, int64 [count] each.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        source, row = self.turns(start, count)
        for number in np.unique(source):
            chosen = source == number
            row[chosen] = shuffled(row[chosen], int(self._rows[number]), key_of(self.seed, int(number) + 1))
        return source, row


def key_of(seed: int, *parts: int) -> int:
    """The key of one of the permutations that a seed stands for, an unsigned number of 64 bits.

    Args:
        seed: Any number that is not negative; one of more than 64 bits is hashed to 64.
        parts: Which permutation, each below 2^64.
    """
    if seed >= _SEEDS:
        seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")
    key = _one(seed)
    for part in parts:
        key = _mix(key, _one(part))
    return int(key[0])


def shuffled(places: Int64, size: int, key: int) -> Int64:
    """Read places of an endless sequence in which one permutation of 0..size-1 follows the other.

    Args:
        places: int64 [places]; place `n` lies in permutation `n // size`.
        size: Length of each permutation.
        key: From `key_of`.

    Returns:
        int64 [places], each in 0..size-1.
    """
    out = np.empty(len(places), np.int64)
    for start in range(0, len(places), _AT_ONCE):
        epoch, place = np.divmod(np.asarray(places[start : start + _AT_ONCE], np.int64), size)
        out[start : start + _AT_ONCE] = _permute(place, size, _mix(_one(key), epoch.astype(np.uint64)))
    return out


def _one(number: int) -> UInt64:
    """A number as an array, because only arrays are multiplied modulo 2^64 without a warning."""
    return np.array([number], np.uint64)


def _mix(value: UInt64, key: UInt64) -> UInt64:
    """Finalizer of SplitMix64 (Steele et al., 2014) over values and keys."""
    value = (value ^ key) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _permute(indices: Int64, size: int, keys: UInt64) -> Int64:
    """Images of `indices` under the permutations of 0..size-1 that `keys`, one for each index, name."""
    half = 1
    while (1 << (2 * half)) < size:
        half += 1
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)

    # The network permutes 0..4^half-1, at most four times as many as `size`. Whoever lands outside walks on.
    values = indices.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        left, right, key = values[walking] >> shift, values[walking] & low, keys[walking]
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + np.uint64(turn << 40), key) & low)
        values[walking] = (left << shift) | right
        walking = walking[values[walking] >= np.uint64(size)]
    return values.astype(np.int64)
