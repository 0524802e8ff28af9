"""Which training documents hold items of the evaluation sets.

This is the overlap test of GPT-3 (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C). Words are
hashed to 64 bits, and a window of n words to the polynomial of its words' hashes modulo 2**64 (Karp and Rabin, 1987).
With prefix sums every window costs one subtraction and one multiplication, whatever n is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.text.words import word_hash, word_weight, words_of

_MIN_WORDS = 6
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
Hashes = npt.NDArray[np.uint64]


class EvaluationItem(NamedTuple):
    """What must not be trained on.

    Attributes:
        id: Depends on nothing but the item.
        text: Its words are looked for in training documents.
    """

    id: str
    text: str


class Overlap(NamedTuple):
    """A training document that holds an item.

    Attributes:
        document: Its id.
        item: The item's id.
        share: The part of the item's n-grams that the document holds, above 0 and at most 1.
    """

    document: str
    item: str
    share: float


class OverlapIndex:
    """An inverted index from hashed n-grams to evaluation items.

    Args:
        items: An item with fewer words than `ngram` is looked for as a whole. One with fewer than 6 words, or 12
            characters of a script without spaces, is not looked for at all.
        ngram: Words per n-gram; a character of a script without spaces is a word, see `words_of`.
        overlap: Least share of an item's n-grams that excludes a document.
    """

    def __init__(self, items: Iterable[EvaluationItem], ngram: int, overlap: float) -> None:
        self._overlap = overlap
        self._items: list[EvaluationItem] = []
        self._sizes: list[int] = []
        self._words: dict[str, int] = {}
        postings: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for item in sorted(set(items)):
            words = words_of(item.text)
            if word_weight(words) < _MIN_WORDS:
                continue

            length = min(ngram, len(words))
            for word in words:
                if word not in self._words:
                    self._words[word] = word_hash(word) or 1  # 0 stands for a word that no item holds
            grams = _Windows(self._hashed(words)).of(length)
            for gram in grams.tolist():
                postings[length][gram].append(len(self._items))
            self._items.append(item)
            self._sizes.append(len(grams))

        self._postings = {length: dict(by_gram) for length, by_gram in sorted(postings.items())}
        self._grams = {
            length: np.sort(np.fromiter(by_gram, np.uint64, len(by_gram))) for length, by_gram in self._postings.items()
        }

    def overlaps(self, document: str, text: str) -> Iterator[Overlap]:
        """The items that a document holds, by item id."""
        windows = _Windows(self._hashed(words_of(text)))
        shared = Counter[int]()
        for length, item_grams in self._grams.items():
            grams = windows.of(length)
            places = np.minimum(np.searchsorted(item_grams, grams), len(item_grams) - 1)
            for gram in grams[item_grams[places] == grams].tolist():
                shared.update(self._postings[length][gram])

        for index in sorted(shared):
            share = shared[index] / self._sizes[index]
            if share >= self._overlap:
                yield Overlap(document, self._items[index].id, share)

    def _hashed(self, words: list[str]) -> Hashes:
        """Hash of each word; 0 for words that no item holds."""
        return np.fromiter((self._words.get(word, 0) for word in words), np.uint64, len(words))


class _Windows:
    """Hashes of windows of one text's words.

    Args:
        words: Hash of each word, 0 for an unknown one, uint64 [words].
    """

    def __init__(self, words: Hashes) -> None:
        self._unknown_before = np.concatenate([[0], np.cumsum(words == 0)])
        with np.errstate(over="ignore"):
            terms = words * _powers(_BASE, len(words))
            self._prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        self._inverse = _powers(_INVERSE, len(words))

    def of(self, length: int) -> Hashes:
        """The distinct hashes of the windows of `length` words that hold no unknown word, uint64, sorted."""
        starts = np.flatnonzero(self._unknown_before[length:] == self._unknown_before[:-length])
        with np.errstate(over="ignore"):
            return np.unique((self._prefix[starts + length] - self._prefix[starts]) * self._inverse[starts])


def _powers(base: int, count: int) -> Hashes:
    """1, base, base squared, ... modulo 2**64, uint64 [count]."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)
