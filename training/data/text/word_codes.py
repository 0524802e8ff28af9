"""Words as numbers of 64 bits, for many texts at once: what near-duplicates and overlaps are found by.

A word's number is the polynomial of its characters modulo 2**64 (Karp and Rabin, "Efficient Randomized
Pattern-Matching Algorithms", 1987), mixed by the finalizer of SplitMix64 (Steele et al., 2014). With prefix sums all
words of a megabyte cost a few operations of numpy. Which words a text has is decided by `words_of`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import regex

from training.data.text.words import RUN, UNSPACED

Codes = npt.NDArray[np.uint64]
T = TypeVar("T")
BATCH_CHARACTERS = 2**20  # of the texts that are looked at together; their arrays take some 50 MB
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_KEPT_POWERS = 2**21
_SEPARATOR, _WORD, _MARK, _UNSPACED, _UNSPACED_MARK = range(5)
_ASCII_WORDS = bytes(code if chr(code).isalnum() and code < 128 else 0 for code in range(256))


class _Powers:
    """Powers of a number modulo 2**64."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._kept = np.empty(0, np.uint64)

    def first(self, count: int) -> Codes:
        """1, base, base squared, ..., uint64 [count]."""
        if count > _KEPT_POWERS:
            return self._computed(count)
        if count > len(self._kept):
            self._kept = self._computed(min(_KEPT_POWERS, 2 * count))
        return self._kept[:count]

    def _computed(self, count: int) -> Codes:
        factors = np.full(count, self._base, np.uint64)
        factors[:1] = 1
        return np.cumprod(factors, dtype=np.uint64)


POWERS, INVERSES = _Powers(_BASE), _Powers(_INVERSE)


def word_codes(texts: Sequence[str]) -> tuple[Codes, npt.NDArray[np.int64]]:
    """The words of some texts as numbers.

    Equal words have equal numbers. Different ones have different numbers, up to the chance of one in 2**64.

    Args:
        texts: Together some megabytes at most.

    Returns:
        The numbers, uint64 [words], and where the words of each text begin, int64 [texts + 1].
    """
    marked = [_words_alone(text) for text in texts]
    separator = np.zeros(1, np.uint8)
    characters = np.concatenate([np.empty(0, np.uint8), *(part for text in marked for part in (text, separator))])
    text_starts = np.cumsum([0, *(len(text) + 1 for text in marked)])

    borders = np.flatnonzero(np.diff(characters != 0, prepend=False))
    starts, ends = borders[::2], borders[1::2]
    with np.errstate(over="ignore"):
        sums = np.zeros(len(characters) + 1, np.uint64)
        np.cumsum(characters * POWERS.first(len(characters)), out=sums[1:])
        polynomials = (sums[ends] - sums[starts]) * INVERSES.first(len(characters))[starts]
        return _mixed(polynomials), np.searchsorted(starts, text_starts)


def batches_of(rows: Iterable[T], text_of: Callable[[T], str], most: int = BATCH_CHARACTERS) -> Iterator[list[T]]:
    """Rows in lists whose texts have about `most` characters together."""
    batch: list[T] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(text_of(row))
        if characters >= most:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def text_code(text: str) -> int:
    """A text without any word as a number, so that it equals no other text."""
    with np.errstate(over="ignore"):
        characters = np.frombuffer(text.encode() + b"\1", np.uint8)
        return int(_mixed(np.array([(characters * POWERS.first(len(characters))).sum(dtype=np.uint64)]))[0])


def _words_alone(text: str) -> npt.NDArray[np.unsignedinteger]:
    """The characters of the words in lower case, with zeros between the words, uint8 or uint32."""
    plain = text.lower()
    if plain.isascii():
        return np.frombuffer(plain.encode().translate(_ASCII_WORDS), np.uint8)

    characters = np.frombuffer(unicodedata.normalize("NFC", plain).encode("utf-32-le"), "<u4")
    kinds = _kinds()[characters]
    alone = np.where(kinds == _SEPARATOR, 0, characters).astype(np.uint32)
    is_unspaced = kinds >= _UNSPACED
    if not is_unspaced.any():
        return alone

    # A character of a script without spaces is a word, with all marks that follow it. Some of these belong to such a
    # script themselves; elsewhere one of those is a word of its own.
    last_base = np.maximum.accumulate(np.where(kinds == _MARK, 0, np.arange(len(kinds))))
    follows_unspaced = np.concatenate([[False], is_unspaced[last_base[:-1]]])
    begins = kinds == _UNSPACED
    begins |= (kinds == _WORD) & follows_unspaced
    begins |= (kinds == _UNSPACED_MARK) & ~follows_unspaced
    return np.insert(alone, np.flatnonzero(begins), 0)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Which part each of Unicode's code points has in words, uint8 [0x110000]."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    every = "".join(map(chr, points))
    kinds = np.zeros(len(points), np.uint8)
    patterns = {
        _WORD: RUN,
        _UNSPACED: rf"(?:(?=[\p{{L}}\p{{N}}]){UNSPACED})+",
        _MARK: r"\p{M}+",
        _UNSPACED_MARK: rf"(?:(?=\p{{M}}){UNSPACED})+",
    }
    for kind, pattern in patterns.items():
        for match in regex.finditer(pattern, every):
            kinds[match.start() : match.end()] = kind
    by_point = np.zeros(0x110000, np.uint8)
    by_point[points] = kinds
    return by_point


def _mixed(values: Codes) -> Codes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
