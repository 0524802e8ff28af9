"""What a word is, in every script: one rule for near-duplicates, overlap with evaluation sets and leaked questions.

A word is a run of letters, marks and digits: vowel signs and accents belong to it. Some scripts put no space between
words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and the like. There every character with its marks is a word.
N-grams of words are n-grams of characters there, as is usual for these languages.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import regex

RUN = r"[\p{L}\p{M}\p{N}]+"
UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Javanese}\p{Balinese}]"
)
WIDE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}]"
_RUN = regex.compile(RUN)
_ASCII_RUN = regex.compile(r"[a-z0-9]+")
_UNSPACED = regex.compile(UNSPACED)
_PARTS = regex.compile(rf"{UNSPACED}\p{{M}}*|(?:(?!{UNSPACED}).)+")
_WIDE = regex.compile(WIDE)
_WIDE_LETTERS = 3


def words_of(text: str) -> list[str]:
    """Lower-case words in Unicode's composed form (NFC); punctuation, symbols and white space do not count."""
    plain = text.lower()
    if plain.isascii():
        return list(_ASCII_RUN.findall(plain))

    plain = unicodedata.normalize("NFC", plain)
    runs: list[str] = _RUN.findall(plain)
    if not has_unspaced(plain):
        return runs
    return [word for run in runs for word in (_PARTS.findall(run) if has_unspaced(run) else (run,))]


def has_unspaced(text: str) -> bool:
    """Whether a text holds a character of a script that puts no space between words."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def word_weight(words: Iterable[str]) -> float:
    """How many words these are worth: a character of a script without spaces counts as half a word."""
    return sum(0.5 if has_unspaced(word) else 1.0 for word in words)


def extent(text: str) -> int:
    """Length in characters, where one of Chinese or Japanese counts as three: it says as much as three letters."""
    return len(text) if text.isascii() else len(text) + (_WIDE_LETTERS - 1) * len(_WIDE.findall(text))
