"""Questions and answers from any text: how a passage goes on."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from training.data.text.sentences import SENTENCE_ENDS, has_capitals, paragraphs, sentences
from training.data.text.words import extent, words_of

_PROMPT = "How does this text go on?\n\n{passage}"
_MIN_WORDS = 13  # as many as the overlap test compares, so that it can look for every item in training text
_PASSAGE = (80, 300)  # extent, see `training.data.text.words`
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

    Passages do not overlap one another or the answers. At most 200 are taken, from the beginning. All lengths are
    extents: a character of Chinese or Japanese counts as three.

    Args:
        text: Prose, with paragraphs divided by empty lines.
        max_characters: Of an answer; places with a longer next sentence are skipped.
    """
    items: list[ContinuationItem] = []
    capitals = has_capitals(text)
    for paragraph in paragraphs(text):
        items += _paragraph_items(sentences(paragraph, capitals), max_characters)
        if len(items) >= _MAX_ITEMS:
            break
    return items[:_MAX_ITEMS]


def _paragraph_items(parts: list[str], max_characters: int) -> list[ContinuationItem]:
    items: list[ContinuationItem] = []
    passage = ""
    for sentence in parts:
        # A passage grows until it is long enough and the next sentence can be an answer.
        if _is_passage(passage) and _MIN_ANSWER <= extent(sentence.strip()) <= max_characters:
            items.append(ContinuationItem(passage.strip(), sentence.strip()))
            passage = ""
        elif extent(sentence) <= _PASSAGE[1]:
            passage = passage + sentence if extent(passage) <= _PASSAGE[1] else sentence
        else:
            passage = ""
    return items


def _is_passage(text: str) -> bool:
    return extent(text.strip()) >= _PASSAGE[0] and len(words_of(text)) >= _MIN_WORDS


def unused_paragraphs(text: str, max_characters: int) -> Counter[str]:
    """Why paragraphs of a text give no continuation: reason to number of paragraphs."""
    reasons: Counter[str] = Counter()
    capitals = has_capitals(text)
    for paragraph in paragraphs(text):
        parts = sentences(paragraph, capitals)
        if _paragraph_items(parts, max_characters):
            continue

        if extent(paragraph) < _PASSAGE[0] + _MIN_ANSWER:
            reasons[f"shorter than {_PASSAGE[0] + _MIN_ANSWER} characters"] += 1
        elif len(parts) == 1:
            reasons[f"without the end of a sentence inside ({SENTENCE_ENDS})"] += 1
        else:
            reasons[
                f"without {_PASSAGE[0]} characters and {_MIN_WORDS} words before a sentence of "
                f"{_MIN_ANSWER} to {max_characters} characters"
            ] += 1
    return reasons
