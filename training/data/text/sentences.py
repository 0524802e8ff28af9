"""Paragraphs and sentences of prose in any script.

Ends of sentences follow Unicode's Sentence_Terminal property (UAX #29): `.`, `!`, `?` and the like need white space
and the beginning of another sentence after them; those of other scripts (`。`, `।`, `؟`, `۔`, `።`, `။`) end a sentence
wherever they stand. Thai and Lao have no such mark: spaces and line ends divide their clauses.
"""

from __future__ import annotations

from itertools import pairwise

import regex

from training.data.text.words import UNSPACED, WIDE, has_unspaced

SENTENCE_ENDS = ". ! ? … 。 । ؟ ۔"
_CLOSING = r"[\"'’”»›\p{Pe}]*"
_OPENING = r"[\"'‘“«‹¿¡\p{Ps}]*"
_SPACED_END = r"[.!?…‽]"
_OTHER_END = r"[[\p{Sentence_Break=STerm}།༎]--[!?‽]]"
_ENDS = {
    caseless: regex.compile(
        rf"{_OTHER_END}+{_CLOSING}\s*|{_SPACED_END}+{_CLOSING}\s+(?={_OPENING}{first}|`)", regex.VERSION1
    )
    for caseless, first in ((False, r"[\p{L}--\p{Ll}]"), (True, r"\p{L}"))
}
_OTHER = regex.compile(_OTHER_END, regex.VERSION1)
_LAST = regex.compile(rf"(?:{_SPACED_END}|{_OTHER_END}){_CLOSING}$", regex.VERSION1)
_SPACE = regex.compile(r"\s+")
_PARAGRAPH = regex.compile(r"\n\s*\n")
_WRAPPED_WIDE = regex.compile(rf"(?<={WIDE}|\p{{P}})\s*\n\s*(?={WIDE})")
_LETTER = regex.compile(r"\p{L}")
_UNSPACED = regex.compile(UNSPACED)
_CAPITAL, _SMALL = regex.compile(r"\p{Lu}"), regex.compile(r"\p{Ll}")
_BEGINNING = 20_000  # characters
_SMALL_PER_CAPITAL = 200  # English prose has a capital for about every 30 small letters


def paragraphs(text: str) -> list[str]:
    """What empty lines divide, each as one line; lines of Chinese and Japanese are joined without a space."""
    return [_one_line(part) for part in _PARAGRAPH.split(text) if part.strip()]


def _one_line(paragraph: str) -> str:
    if has_unspaced(paragraph) and _OTHER.search(paragraph):
        paragraph = _WRAPPED_WIDE.sub("", paragraph)
    return " ".join(paragraph.split())


def has_capitals(text: str) -> bool:
    """Whether the sentences of a text begin with capitals: no if nearly all letters of its beginning are small ones."""
    beginning = text[:_BEGINNING]
    return len(_CAPITAL.findall(beginning)) * _SMALL_PER_CAPITAL >= len(_SMALL.findall(beginning))


def sentences(paragraph: str, capitals: bool = True) -> list[str]:
    """The sentences of one line, with the white space after each: joined they are the line again.

    A line that is mostly in a script without spaces, and holds no sentence end of that script, is cut at its spaces.

    Args:
        paragraph: One line.
        capitals: Sentences begin with a capital, so that `e.g. this` is not cut.
    """
    ends = _ENDS[not capitals]
    if has_unspaced(paragraph) and _mostly_unspaced(paragraph) and not _OTHER.search(paragraph):
        ends = _SPACE
    cuts = [0, *(end.end() for end in ends.finditer(paragraph)), len(paragraph)]
    return [paragraph[start:stop] for start, stop in pairwise(cuts) if start < stop]


def ends_sentence(text: str) -> bool:
    """Whether a text ends with the end of a sentence, quotes and brackets aside."""
    return _LAST.search(text) is not None


def _mostly_unspaced(text: str) -> bool:
    return 2 * len(_UNSPACED.findall(text)) > len(_LETTER.findall(text))
