"""Cuts long texts into parts that read well and lose nothing."""

from __future__ import annotations

import math
import re

# Where a text may be cut, best first: behind a paragraph, a line, a sentence, a word.
_BORDERS = tuple(
    map(re.compile, (r"\n[ \t]*\n\s*", r"\n", r"[.!?…]['\"’”»)\]]*\s+|[。！？।॥۔።][’”」』）]*\s*", r"\s+"))
)


def cut(text: str, limit: int) -> list[str]:
    """Cut a text into parts of at most `limit` characters, about equal ones where its borders allow it.

    A part ends with the last paragraph that ends in the second half of an even part. Where no paragraph does, it ends
    with the last line, else with the last sentence or word; a text without any is cut at its even part.

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
    """The best place to cut, behind `first` and not behind `last`."""
    for border in _BORDERS:
        ends = [found.end() for found in border.finditer(text, first, last)]
        if ends:
            return ends[-1]
    return last
