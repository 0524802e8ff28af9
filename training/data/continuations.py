"""Questions and answers from any text: how a passage goes on."""

from __future__ import annotations

import re
from typing import NamedTuple

_PROMPT = "How does this text go on?\n\n{passage}"
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\W\d_a-z])")
_PARAGRAPH = re.compile(r"\n\s*\n")
_MIN_WORDS = 13  # as many as the overlap test compares, so that every item can be told from training text
_PASSAGE = (80, 300)
_MIN_ANSWER = 20
_MAX_ITEMS = 200


class ContinuationItem(NamedTuple):
    """A passage and what follows it."""

    passage: str
    answer: str

    @property
    def prompt(self) -> str:
        """The question."""
        return _PROMPT.format(passage=self.passage)


def continuation_items(text: str, max_characters: int) -> list[ContinuationItem]:
    """Passages of a text, each with the sentence that follows it in the same paragraph.

    Passages do not overlap one another or the answers. At most 200 are taken, from the beginning.

    Args:
        text: Prose, with paragraphs divided by empty lines.
        max_characters: Of an answer; places with a longer next sentence are skipped.
    """
    items: list[ContinuationItem] = []
    for paragraph in _PARAGRAPH.split(text):
        passage = ""
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            fits = len(passage) >= _PASSAGE[0] and len(passage.split()) >= _MIN_WORDS
            if fits and _MIN_ANSWER <= len(sentence) <= max_characters:
                items.append(ContinuationItem(passage, sentence))
                passage = ""
            elif len(sentence) <= _PASSAGE[1]:
                passage = f"{passage} {sentence}".strip() if len(passage) <= _PASSAGE[1] else sentence
            else:
                passage = ""
        if len(items) >= _MAX_ITEMS:
            break
    return items[:_MAX_ITEMS]
