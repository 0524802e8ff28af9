"""Cuts long texts into parts that read well and lose nothing."""

from __future__ import annotations

import math
import re

# Where a text may be cut, best first: after a paragraph, a line, a sentence, a word.
_BORDERS = tuple(
    map(re.compile, (r"\n[ \t]*\n\s*", r"\n", r"[.!?…]['\"’”»)\]]*\s+|[。！？।॥۔።][’”」』）]*\s*", r"\s+"))
)


def cut(text: str, limit: int) -> list[str]:
    """Cut a text into parts of at most `limit` characters, about equal in length where its borders allow it.

    What is left of the text is divided into as few equal parts as the limit allows, and the first of these is looked
    at. The cut is made at the end of the last paragraph that ends in its second half. If none ends there, the last line
    decides, then the last sentence, then the last word. If there is none of these either, the cut is made at its end.

    Returns:
        Parts that make the text when they are put together.
    """
    parts, start = [], 0
    while len(text) - start > limit:
        left = len(text) - start
        even = math.ceil(left / math.ceil(left / limit))
        end = _border(text, start + even // 2, start + even)
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _border(text: str, first: int, last: int) -> int:
    """The best place to cut, after `first` and at most at `last`."""
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(text, first, last)]
        if ends:
            return ends[-1]
    return last
