"""Cleaning of one document: one form of text, cutting of long ones, and reasons to drop a piece."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from training.data.sources.provenance import file_of, is_python, part_path
from training.data.tables import text_id
from training.data.text.cutting import cut
from training.specs.corpus import FEW_LETTERS, LONG_LINE, TOO_SHORT, CorpusSection

_LINE_END = re.compile(r"\r\n?")
_BREAK = regex.compile(r"\s|(?![\x00-\x7f])\p{P}")
_DATA = re.compile(r"[!-@\[-`{-~]")
_LONGEST_WORD, _MOST_DATA = 100, 0.2  # characters on average, and a share of a line
_NO_ASCII_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())


class Piece(NamedTuple):
    """A document, or a piece of one that was cut.

    Attributes:
        id: SHA-256 (hex) of its text.
        document: SHA-256 (hex) of the whole document's text.
        path: Where it is from; see `training.data.sources.provenance`.
        reason: Why it is dropped; None for a piece that stays.
    """

    id: str
    document: str
    text: str
    path: str
    domain: str
    reason: str | None


def normalised(text: str) -> str:
    """The one form in which texts are kept and compared.

    Line ends become `\\n` and letters are composed (Unicode's NFC). U+FEFF is removed: it marks byte order and prints
    nothing.
    """
    text = _LINE_END.sub("\n", text).replace("\ufeff", "")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def pieces_of(source: str, path: str, text: str, section: CorpusSection) -> list[Piece]:
    """The pieces of one document, in their order, each with the reason to drop it.

    Args:
        source: Name of its source.
        path: Its path in the source.
        text: As it was found.
        section: Limits and domains.
    """
    text = normalised(text)
    document = text_id(text)
    domain = section.domain_of(source, file_of(path))
    parts = cut(text, section.max_characters)
    if len(parts) == 1:
        return [Piece(document, document, text, path, domain, reason_to_drop(text, path, section))]
    return [
        Piece(text_id(part), document, part, part_path(path, number), domain, reason_to_drop(part, path, section))
        for number, part in enumerate(parts, start=1)
    ]


def reason_to_drop(text: str, path: str, section: CorpusSection) -> str | None:
    """The first rule of the recipe that a piece breaks."""
    if not text or len(text) < section.min_characters:
        return TOO_SHORT
    if _letters(text) < len(text) * section.min_letters:
        return FEW_LETTERS
    long_lines = [line for line in text.split("\n") if len(line) > section.max_line]
    if long_lines and (is_python(path) or not all(is_prose(line, section.max_line) for line in long_lines)):
        return LONG_LINE
    return None


def _letters(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, _NO_ASCII_LETTERS))
    return int(np.count_nonzero(_is_letter()[np.frombuffer(text.encode("utf-32-le"), "<u4")]))


@cache
def _is_letter() -> npt.NDArray[np.bool_]:
    """Whether each of Unicode's code points is a letter, bool [0x110000]."""
    return np.fromiter(map(str.isalpha, map(chr, range(0x110000))), np.bool_, 0x110000)


def is_prose(line: str, longest: int) -> bool:
    """Whether a long line is a paragraph, and not base64, minified code or a table in one line.

    Prose has a break at least every hundred characters on average, and none of its words is longer than `longest`. A
    break is white space or a mark of another script, such as an ideographic full stop. At most a fifth of prose is
    ASCII digits and punctuation.
    """
    words = _BREAK.split(line)
    return (
        len(words) * _LONGEST_WORD > len(line)
        and max(map(len, words)) <= longest
        and len(_DATA.findall(line)) <= _MOST_DATA * len(line)
    )
