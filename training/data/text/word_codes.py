"""Words as numbers of 64 bits, for many texts at once: what near-duplicates and overlaps are found by.

A word's number is the polynomial of its UTF-8 bytes modulo 2**64 (Karp and Rabin, "Efficient Randomized
Pattern-Matching Algorithms", 1987), mixed by the finalizer of SplitMix64 (Steele et al., 2014). With prefix sums all
words of a megabyte cost a few operations of numpy. Which words a text has is decided by `words_of`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.data.text.words import words_of

Codes = npt.NDArray[np.uint64]
BATCH_CHARACTERS = 2**20  # of the texts that are looked at together; their arrays take some 50 MB
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_KEPT_POWERS = 2**21
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
    characters = np.frombuffer(b"".join(part + b"\0" for part in marked), np.uint8)
    text_starts = np.cumsum([0, *(len(part) + 1 for part in marked)])

    borders = np.flatnonzero(np.diff(characters != 0, prepend=False))
    starts, ends = borders[::2], borders[1::2]
    with np.errstate(over="ignore"):
        sums = np.zeros(len(characters) + 1, np.uint64)
        np.cumsum(characters * POWERS.first(len(characters)), out=sums[1:])
        polynomials = (sums[ends] - sums[starts]) * INVERSES.first(len(characters))[starts]
        return _mixed(polynomials), np.searchsorted(starts, text_starts)


def text_code(text: str) -> int:
    """A text without any word as a number, so that it equals no other text."""
    with np.errstate(over="ignore"):
        characters = np.frombuffer(text.encode() + b"\1", np.uint8)
        return int(_mixed(np.array([(characters * POWERS.first(len(characters))).sum(dtype=np.uint64)]))[0])


def _words_alone(text: str) -> bytes:
    """The words in lower case and in UTF-8, with bytes of zero between them."""
    lower = text.lower()
    if lower.isascii():
        return lower.encode().translate(_ASCII_WORDS)
    return "\0".join(words_of(text)).encode()


def _mixed(values: Codes) -> Codes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
