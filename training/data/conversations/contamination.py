"""Which conversations and pairs hold items of the evaluation sets, by the rule that training documents are held to.

A short question is looked for as a whole prompt, too: the overlap test leaves out items of a few words, because a long
document holds such words by chance. A prompt that is nothing else is no chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from training.data.conversations.messages import USER
from training.data.text.overlap import EvaluationItem, Overlap, OverlapIndex
from training.data.text.similarity import normalised_words

_PARTS = ("messages", "prompt", "chosen", "rejected")


class Contamination:
    """Finds evaluation items in conversations and pairs.

    Args:
        texts: Items whose words are looked for, as `OverlapIndex` does.
        prompts: Items whose text must be no prompt of a user, whatever its case, blanks and punctuation.
        ngram: Words per n-gram.
        overlap: Least share of an item's n-grams that makes a row contaminated.
    """

    def __init__(
        self, texts: Iterable[EvaluationItem], prompts: Iterable[EvaluationItem], ngram: int, overlap: float
    ) -> None:
        self._index = OverlapIndex(texts, ngram, overlap)
        self._prompts: dict[str, list[str]] = {}
        for item in sorted(set(prompts)):
            self._prompts.setdefault(words_key(item.text), []).append(item.id)

    def overlaps(self, row: Mapping[str, Any]) -> list[Overlap]:
        """The items that a row of `conversations` or `preferences` holds, by item id, each once."""
        messages = [message for part in _PARTS if part in row for message in json.loads(row[part])]
        # As one text: the words of a question and its answer may lie in two turns.
        text = "\n".join(_text(message) for message in messages)
        found = {overlap.item: overlap for overlap in self._index.overlaps(row["id"], text)}
        for message in messages:
            if message["role"] == USER:
                for item in self._prompts.get(words_key(message["content"]), ()):
                    found[item] = Overlap(row["id"], item, 1.0)
        return [found[item] for item in sorted(found)]


def uncontaminated(
    rows: Iterable[Mapping[str, Any]], contamination: Contamination, holders: list[Overlap]
) -> Iterator[Mapping[str, Any]]:
    """The rows that hold no evaluation item; the overlaps of the others are added to `holders`."""
    for row in rows:
        overlaps = contamination.overlaps(row)
        holders += overlaps
        if not overlaps:
            yield row


def words_key(prompt: str) -> str:
    """A prompt without case, punctuation and white space; as it is where nothing else is left."""
    return " ".join(normalised_words(prompt)) or prompt


def _text(message: Mapping[str, Any]) -> str:
    calls = [json.dumps(call["function"]["arguments"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls])
