"""Exact search for near-duplicates by the Jaccard similarity of word shingles.

Prefix filtering (Chaudhuri et al., "A Primitive Operator for Similarity Joins", 2006; Bayardo et al., "Scaling Up All
Pairs Similarity Search", 2007): two sets with similarity t share one of the |x| - ceil(t |x|) + 1 rarest elements of x.
No pair is missed and none is estimated, so it can judge a MinHash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.words import words_of

Shingles = npt.NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_STREAM_BATCH = 512


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value


@dataclass(frozen=True)
class Match:
    """The most similar other document of a query."""

    row: int
    similarity: float


def normalised_words(text: str) -> list[str]:
    """Lower-case words, by the rule that the builders use; punctuation and white space do not count."""
    return words_of(text)


def shingle_sets(texts: Iterable[str], ngram: int) -> Iterator[Shingles]:
    """The distinct shingles of `ngram` words of every text, sorted 64-bit hashes; a shorter text is one shingle."""
    hashes = _WordHashes()
    for text in texts:
        words = normalised_words(text)
        codes = np.fromiter(map(hashes.__getitem__, words), np.uint64, len(words))
        width = min(ngram, len(codes))
        windows = np.zeros(len(codes) - width + 1 if width else 0, np.uint64)
        for place in range(width):
            windows = windows * _FACTOR + codes[place:len(codes) - width + 1 + place]
        yield np.unique(windows)


def most_similar(queries: Sequence[Shingles], query_rows: Sequence[int], stream: Iterable[Shingles],
                 threshold: float) -> dict[int, Match]:
    """For each query, the most similar document of the stream, if it is at least as similar as the threshold.

    Args:
        queries: Shingles of the queries.
        query_rows: The row of the stream that is the query itself and is passed over; -1 for none.
        stream: Shingles of all documents; only a batch of it is held.
        threshold: Least Jaccard similarity, above 0.

    Returns:
        Position in `queries` to the match. Documents without any word match nothing.
    """
    keys, owners = _prefix_index(queries, threshold)
    found: dict[int, Match] = {}
    for first, batch in _batches(stream):
        for query, place in _candidates(keys, owners, batch):
            row = first + place
            if row == query_rows[query]:
                continue
            similarity = jaccard(queries[query], batch[place], threshold)
            if similarity >= threshold and (query not in found or similarity > found[query].similarity):
                found[query] = Match(row, similarity)
    return found


def jaccard(left: Shingles, right: Shingles, least: float = 0.0) -> float:
    """Size of the intersection over size of the union; 0 where the sizes alone keep it below `least`."""
    small, large = sorted((len(left), len(right)))
    if small == 0 or small < least * large:
        return 0.0
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (small + large - common)


def _prefix_index(queries: Sequence[Shingles], threshold: float) -> tuple[Shingles, npt.NDArray[np.int64]]:
    """Sorted prefix shingles of all queries and the query that each belongs to."""
    everything = np.concatenate([np.empty(0, np.uint64), *queries])
    values, counts = np.unique(everything, return_counts=True)
    keys, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for number, shingles in enumerate(queries):
        if len(shingles):
            length = len(shingles) - math.ceil(threshold * len(shingles) - 1e-9) + 1
            rarest = np.lexsort((shingles, counts[np.searchsorted(values, shingles)]))[:length]
            keys.append(shingles[rarest])
            owners.append(np.full(len(rarest), number, np.int64))
    flat_keys, flat_owners = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(flat_keys, kind="stable")
    return flat_keys[order], flat_owners[order]


def _candidates(keys: Shingles, owners: npt.NDArray[np.int64], batch: Sequence[Shingles]) -> list[tuple[int, int]]:
    """Pairs (query, place in the batch) that share a prefix shingle."""
    shingles = np.concatenate(batch)
    places = np.repeat(np.arange(len(batch)), [len(one) for one in batch])
    low, high = np.searchsorted(keys, shingles, side="left"), np.searchsorted(keys, shingles, side="right")
    hits = high - low
    ends = np.cumsum(hits)
    entries = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(low - (ends - hits), hits)
    pairs = np.unique(owners[entries] * len(batch) + np.repeat(places, hits))
    return [(int(pair) // len(batch), int(pair) % len(batch)) for pair in pairs]


def _batches(stream: Iterable[Shingles]) -> Iterator[tuple[int, list[Shingles]]]:
    first, batch = 0, list[Shingles]()
    for shingles in stream:
        batch.append(shingles)
        if len(batch) == _STREAM_BATCH:
            yield first, batch
            first, batch = first + len(batch), []
    if batch:
        yield first, batch
