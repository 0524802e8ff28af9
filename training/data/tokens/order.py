"""The order of the training data as a pure function of (seed, row number).

Blocks of 1024 rows hold every source in its share and are shuffled; within a source, each epoch is a permutation of all
its rows. Both permutations are Feistel networks with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002): a row is computed from its number alone, so row 10,000,000 costs what row 10 costs and no state has to
be saved or replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numba
import numpy as np

from training.data.tokens.shards import Int64

BLOCK = 1024
_UNIT = 1 << 48
_ROUNDS = 6
_BLOCKS_KEY = 0xB10C
_SEEDS = 1 << 64


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
        taken = np.stack([self.taken(block * BLOCK) for block in range(first, last + 2)])
        source, nth = np.empty(count, np.int64), np.empty(count, np.int64)
        _fill_compiled(source, nth, start, taken, key_of(self.seed, _BLOCKS_KEY))
        return source, nth

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
    key = np.uint64(seed)
    for part in parts:
        key = np.uint64(_mix_compiled(key, np.uint64(part)))
    return int(key)


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
    _shuffle_compiled(out, np.ascontiguousarray(places, np.int64), size, np.uint64(key))
    return out


def _mix(value: np.uint64, key: np.uint64) -> np.uint64:
    """Finalizer of SplitMix64 (Steele et al., 2014) over value and key."""
    value = (value ^ key) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# Compiled whenever this module is loaded. numba's cache would be pickles beside the code, and nothing verifies those.
_mix_compiled = numba.njit("uint64(uint64, uint64)")(_mix)


def _permute(index: np.int64, size: np.int64, key: np.uint64) -> np.int64:
    """Image of `index` under the permutation of 0..size-1 that `key` names."""
    half = 1
    while (1 << (2 * half)) < size:
        half += 1
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    value = np.uint64(index)

    # The network permutes 0..4^half-1, at most four times as many as `size`. Whoever lands outside walks on.
    while True:
        left, right = value >> shift, value & low
        for turn in range(_ROUNDS):
            mixed = _mix_compiled(right + np.uint64(turn << 40), key) & low
            left, right = right, left ^ mixed
        value = (left << shift) | right
        if value < np.uint64(size):
            return np.int64(value)


_permute_compiled = numba.njit("int64(int64, int64, uint64)")(_permute)


def _shuffle(out: Int64, places: Int64, size: int, key: np.uint64) -> None:
    """Fill `out`; each epoch of `size` places has a key of its own."""
    for index in range(len(places)):
        key_of_epoch = _mix_compiled(key, np.uint64(places[index] // size))
        out[index] = _permute_compiled(places[index] % size, size, key_of_epoch)


_shuffle_compiled = numba.njit("(int64[::1], int64[::1], int64, uint64)")(_shuffle)


def _fill(source: Int64, nth: Int64, start: int, taken: Int64, key: np.uint64) -> None:
    """Fill `source` and `nth`; `taken` int64 [blocks + 1, sources] counts the rows taken before each block.

    The shuffle of a block decides only which source comes when. Each source's rows stay in the order of its epochs, so
    an epoch ends exactly where all rows were read. That is why a block is always walked from its beginning.
    """
    first = start // BLOCK
    end = start + len(source)
    for block in range(len(taken) - 1):
        key_of_block = _mix_compiled(key, np.uint64(first + block))
        rows_before = taken[block].copy()
        begin = (first + block) * BLOCK

        for place in range(min(BLOCK, end - begin)):
            slot = _permute_compiled(place, BLOCK, key_of_block)
            which = 0
            while slot >= taken[block + 1, which] - taken[block, which]:
                slot -= taken[block + 1, which] - taken[block, which]
                which += 1

            if begin + place >= start:
                source[begin + place - start] = which
                nth[begin + place - start] = rows_before[which]
            rows_before[which] += 1


_fill_compiled = numba.njit("(int64[::1], int64[::1], int64, int64[:, ::1], uint64)")(_fill)
