"""The one rule of near-duplicates, the Jaccard similarity of word shingles, and an exact search by it.

The builder of the corpus checks the candidates of its MinHash by this rule, and the gate searches for those it missed.

The search is prefix filtering (Chaudhuri et al., "A Primitive Operator for Similarity Joins", 2006; Bayardo et al.,
"Scaling Up All Pairs Similarity Search", 2007): two sets with similarity t share one of the |x| - ceil(t |x|) + 1
rarest elements of x. No pair is missed and none is estimated, so it can judge a MinHash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.text.word_codes import batches_of, text_code, word_codes
from training.data.text.words import words_of

Shingles = npt.NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_STREAM_BATCH = 512
_BUCKET_BITS = 22
_MOST_HITS = 2**22  # index entries that are looked at together: 32 MB for each array of them


@dataclass(frozen=True)
class Match:
    """A document of a stream that is similar to a query.

    Attributes:
        row: The document's place in the stream, from 0.
        similarity: Jaccard similarity, above 0 and at most 1.
    """

    row: int
    similarity: float


def normalised_words(text: str) -> list[str]:
    """Lower-case words, by the rule that the builders use; punctuation and white space do not count."""
    return words_of(text)


def shingle_sets(texts: Iterable[str], ngram: int) -> Iterator[Shingles]:
    """The distinct shingles of `ngram` words of every text, as sorted 64-bit hashes, uint64 [shingles] each.

    A text of fewer words is one shingle. A text without any word is a shingle too, so that it equals no other text.
    """
    for batch in batches_of(texts, str):
        codes, starts = word_codes(batch)
        windows = np.zeros(max(len(codes) - ngram + 1, 0), np.uint64)
        for place in range(ngram if len(windows) else 0):
            windows = windows * _FACTOR + codes[place : len(windows) + place]

        for text, start, end in zip(batch, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if end - start >= ngram:
                shingles = np.sort(windows[start : end - ngram + 1])
                yield shingles[np.concatenate([[True], shingles[1:] != shingles[:-1]])]
            else:
                yield np.array([_short(codes[start:end].tolist() or [text_code(text)])], np.uint64)


def _short(codes: list[int]) -> int:
    """The one shingle of a text with fewer words than a shingle."""
    value = 0
    for code in codes:
        value = (value * int(_FACTOR) + code) % 2**64
    return value


def jaccard(left: Shingles, right: Shingles, least: float = 0.0) -> float:
    """Size of the intersection over size of the union of two sets of shingles.

    Args:
        left: Sorted and distinct, uint64 [shingles].
        right: The same.
        least: Similarities below this one are not wanted.

    Returns:
        The similarity; 0 without comparing where the sizes alone keep it below `least`.
    """
    small, large = (left, right) if len(left) <= len(right) else (right, left)
    if len(small) == 0 or len(small) < least * len(large):
        return 0.0
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    common = int(np.count_nonzero(large[places] == small))
    return common / (len(small) + len(large) - common)


def similar_documents(
    queries: Sequence[Shingles],
    query_rows: Sequence[int],
    stream: Iterable[Shingles],
    threshold: float,
    index: PrefixIndex | None = None,
) -> dict[int, Match]:
    """For each query, the first document of the stream that is at least as similar as the threshold.

    A query leaves the index with its first match. So thousands of near-copies cost no more than thousands of documents
    that differ.

    Args:
        queries: Shingles of the queries.
        query_rows: The row of the stream that is the query itself and is passed over; -1 for none.
        stream: Shingles of all documents; only a batch of it is held.
        threshold: Least Jaccard similarity, above 0.
        index: Of these queries and this threshold, for who searches in many streams.

    Returns:
        Position in `queries` to the match.
    """
    index = copy(index) if index else PrefixIndex(queries, threshold)
    matches: dict[int, Match] = {}
    for first, batch in _batches(stream):
        start = 0
        while start < len(batch):
            pairs, count = index.candidates(batch[start:])
            matches_before = len(matches)
            for query, place in pairs:
                row = first + start + place
                if query in matches or row == query_rows[query]:
                    continue
                similarity = jaccard(queries[query], batch[start + place], threshold)
                if similarity >= threshold:
                    matches[query] = Match(row, similarity)

            if len(matches) > matches_before:
                index.drop(matches)
            start += count
    return matches


class PrefixIndex:
    """The prefix shingles of all queries, sorted, and the query that each belongs to.

    Args:
        queries: Shingles of the queries.
        threshold: Least Jaccard similarity, above 0.
    """

    def __init__(self, queries: Sequence[Shingles], threshold: float) -> None:
        # Any order of shingles will do if it is the same for all sets, so rarity is counted in buckets of them.
        counts = np.zeros(2**_BUCKET_BITS, np.int32)
        for shingles in queries:
            counts[_buckets(shingles)] += 1

        keys, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for number, shingles in enumerate(queries):
            if len(shingles):
                # The small number keeps rounding from raising the bound: a prefix too long misses no pair.
                length = len(shingles) - math.ceil(threshold * len(shingles) - 1e-9) + 1
                rarest = np.lexsort((shingles, counts[_buckets(shingles)]))[:length]
                keys.append(shingles[rarest])
                owners.append(np.full(len(rarest), number, np.int64))

        flat_keys, flat_owners = np.concatenate(keys), np.concatenate(owners)
        order = np.argsort(flat_keys, kind="stable")
        self._keys, self._owners, self._queries = flat_keys[order], flat_owners[order], len(queries)
        self._occupied = np.zeros(2**_BUCKET_BITS, np.bool_)
        self._occupied[_buckets(flat_keys)] = True

    def candidates(self, batch: Sequence[Shingles]) -> tuple[list[tuple[int, int]], int]:
        """Pairs (query, place in the batch) that share a prefix shingle.

        Returns:
            The pairs of the batch's first documents, and how many documents these are: at least one, and as many as
            have few enough entries of the index in common.
        """
        shingles = np.concatenate(batch)
        places = np.repeat(np.arange(len(batch)), [len(document) for document in batch])
        likely = self._occupied[_buckets(shingles)]  # spares most of them the binary search
        shingles, places = shingles[likely], places[likely]
        low = np.searchsorted(self._keys, shingles, side="left")
        hits = np.searchsorted(self._keys, shingles, side="right") - low

        # As many documents as keep the arrays below within their bound.
        totals = np.cumsum(np.bincount(places, hits, minlength=len(batch)))
        count = max(1, int(np.searchsorted(totals, _MOST_HITS, side="right")))
        first = places < count
        low, hits, places = low[first], hits[first], places[first]

        entries = np.arange(int(hits.sum())) + np.repeat(low - (np.cumsum(hits) - hits), hits)
        pairs = np.unique(self._owners[entries] * count + np.repeat(places, hits))
        return [(int(pair) // count, int(pair) % count) for pair in pairs], count

    def drop(self, queries: Mapping[int, object]) -> None:
        """Forget the entries of some queries."""
        dropped = np.zeros(self._queries, np.bool_)
        dropped[list(queries)] = True
        is_kept = ~dropped[self._owners]
        self._keys, self._owners = self._keys[is_kept], self._owners[is_kept]


def _buckets(shingles: Shingles) -> npt.NDArray[np.int64]:
    return (shingles >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


def _batches(stream: Iterable[Shingles]) -> Iterator[tuple[int, list[Shingles]]]:
    first, batch = 0, list[Shingles]()
    for shingles in stream:
        batch.append(shingles)
        if len(batch) == _STREAM_BATCH:
            yield first, batch
            first, batch = first + len(batch), []
    if batch:
        yield first, batch
