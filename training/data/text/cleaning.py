"""Cleaning of one document: one form of text, the recipe's rules, cutting, and reasons to drop a piece."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from training.custom import Document
from training.data.custom_code import Filter
from training.data.sources.provenance import file_of, is_python, part_path
from training.data.tables import text_id
from training.data.text.cutting import cut
from training.data.text.languages import UNKNOWN, language_of
from training.data.text.normal_form import normalised
from training.data.text.personal import scrub
from training.data.text.quality import broken_rule, c4_lines
from training.specs.cleaning import Rules
from training.specs.corpus import FEW_LETTERS, LANGUAGE, LICENCE, LONG_LINE, LOW_QUALITY, TOO_SHORT, CorpusSection

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
        why: What the rule says of it; empty where the reason says all.
    """

    id: str
    document: str
    text: str
    path: str
    domain: str
    reason: str | None
    why: str = ""


class Cleaned(NamedTuple):
    """What becomes of a document.

    Attributes:
        pieces: In their order. A document that is dropped whole is one piece.
        scrubbed: How much personal data was replaced, by kind.
        language: ISO 639-1 code or `unknown`; empty where nobody asked.
    """

    pieces: list[Piece]
    scrubbed: Counter[str]
    language: str


def clean(
    source: str,
    path: str,
    text: str,
    section: CorpusSection,
    licence: str | None = None,
    filters: Sequence[Filter] = (),
) -> Cleaned:
    """The pieces of one document, each with the reason to drop it.

    Args:
        source: Name of its source.
        path: Its path in the source.
        text: As it was found.
        section: Limits, rules and domains.
        licence: Of the text; None where none is known.
        filters: Of the recipe's own code, those that the section names.

    Raises:
        RecipeError: A filter fails.
    """
    text, scrubbed = scrub(normalised(text), section.scrub)
    domain, language = section.domain_of(source, file_of(path)), ""
    rules = section.rules
    if rules is not None:
        text, language, reason, why = _judged(text, rules, licence, _is_prose_of(source, path, rules))
        if reason is None:
            document = Document(text, licence, source, path)
            reason = next((filter_.reason for filter_ in filters if not filter_.keeps(document)), None)
        if reason is not None:
            digest = text_id(text)
            return Cleaned([Piece(digest, digest, text, path, domain, reason, why)], scrubbed, language)

    digest = text_id(text)
    parts = cut(text, section.max_characters)
    if len(parts) == 1:
        whole = Piece(digest, digest, text, path, domain, reason_to_drop(text, path, section))
        return Cleaned([whole], scrubbed, language)
    pieces = [
        Piece(text_id(part), digest, part, part_path(path, number), domain, reason_to_drop(part, path, section))
        for number, part in enumerate(parts, start=1)
    ]
    return Cleaned(pieces, scrubbed, language)


def _is_prose_of(source: str, path: str, rules: Rules) -> bool:
    return not is_python(path) and (not rules.sources or source in rules.sources)


def _judged(text: str, rules: Rules, licence: str | None, prose: bool) -> tuple[str, str, str | None, str]:
    """The text that is left, its language, and the reason to drop the document with what the rule says."""
    language = ""
    if rules.licences and licence not in rules.licences:
        return text, language, LICENCE, f"its licence is {licence or 'not known'}"
    if not prose:
        return text, language, None, ""

    if rules.languages is not None:
        language = language_of(text, rules.languages.confidence)
        kept = rules.languages.unknown == "keep" if language == UNKNOWN else language in rules.languages.keep
        if not kept:
            return text, language, LANGUAGE, f"its language is {language}"
    if rules.c4 is not None:
        text, why = c4_lines(text, rules.c4)
        if why:
            return text, language, LOW_QUALITY, f"c4: {why}"
    rule, why = broken_rule(text, rules)
    return text, language, LOW_QUALITY if rule else None, f"{rule}: {why}" if rule else ""


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
