"""Which training documents hold items of the evaluation sets.

This is the overlap test of GPT-3 (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C). A window of
n words is hashed to the polynomial of its words' numbers modulo 2**64, as a word is to that of its bytes. With prefix
sums every window costs one subtraction and one multiplication, whatever n is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.text.word_codes import INVERSES, POWERS, Codes, word_codes
from training.data.text.words import word_weight, words_of

_MIN_WORDS = 6
_BUCKET_BITS = 22


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
        postings: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._may_be_known = np.zeros(2**_BUCKET_BITS, np.bool_)
        for item in sorted(set(items)):
            words = words_of(item.text)
            if word_weight(words) < _MIN_WORDS:
                continue

            length = min(ngram, len(words))
            codes, _ = word_codes([item.text])
            self._may_be_known[_buckets(codes)] = True
            grams = np.unique(_Windows(codes).of(length)[1])
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
        return self.overlaps_of([document], [text])

    def overlaps_of(self, documents: Sequence[str], texts: Sequence[str]) -> Iterator[Overlap]:
        """The items that some documents hold, by document and item id.

        Args:
            documents: Their ids.
            texts: Their texts, together some megabytes at most.
        """
        codes, starts = word_codes(texts)
        words = np.zeros(len(codes) + len(texts), np.uint64)  # with an unknown word after each text
        owner = np.repeat(np.arange(len(texts)), np.diff(starts) + 1)
        is_word = np.ones(len(words), np.bool_)
        is_word[starts[1:] + np.arange(len(texts))] = False
        words[is_word] = np.where(self._may_be_known[_buckets(codes)], codes, 0)
        windows = _Windows(words)

        shared: dict[int, Counter[int]] = defaultdict(Counter)
        for length, item_grams in self._grams.items():
            places, grams = windows.of(length)
            nearest = np.minimum(np.searchsorted(item_grams, grams), len(item_grams) - 1)
            is_held = item_grams[nearest] == grams
            for number, gram in set(zip(owner[places[is_held]].tolist(), grams[is_held].tolist(), strict=True)):
                shared[number].update(self._postings[length][gram])

        for number in sorted(shared):
            for index in sorted(shared[number]):
                share = shared[number][index] / self._sizes[index]
                if share >= self._overlap:
                    yield Overlap(documents[number], self._items[index].id, share)


class _Windows:
    """Hashes of windows of words.

    Args:
        words: Number of each word, 0 for an unknown one, uint64 [words].
    """

    def __init__(self, words: Codes) -> None:
        self._unknown_before = np.concatenate([[0], np.cumsum(words == 0)])
        with np.errstate(over="ignore"):
            terms = words * POWERS.first(len(words))
            self._prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        self._inverse = INVERSES.first(len(words))

    def of(self, length: int) -> tuple[npt.NDArray[np.int64], Codes]:
        """Where the windows of `length` words that hold no unknown word begin, int64, and their hashes, uint64."""
        starts = np.flatnonzero(self._unknown_before[length:] == self._unknown_before[:-length])
        with np.errstate(over="ignore"):
            return starts, (self._prefix[starts + length] - self._prefix[starts]) * self._inverse[starts]


def _buckets(codes: Codes) -> npt.NDArray[np.int64]:
    return (codes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
