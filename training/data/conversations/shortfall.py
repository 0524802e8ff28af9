"""Why documents give no questions: what a person reads when a corpus has too few of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from training.data.conversations.continuations import unused_paragraphs
from training.data.conversations.items import MAX_ANSWER_CHARACTERS, items_of
from training.data.sources.provenance import is_python

Row = dict[str, Any]
_NO_DOCSTRING = "Python modules without a public name that has a docstring"


def unused_text(documents: Iterable[Mapping[str, Any]], max_characters: int = MAX_ANSWER_CHARACTERS) -> list[Row]:
    """Reasons why parts of documents give no question, the commonest first.

    Args:
        documents: Rows of the corpus.
        max_characters: Of an answer.

    Returns:
        `reason`, `count` of paragraphs or modules, and the `path` of the first document with one.
    """
    counts: Counter[str] = Counter()
    paths: dict[str, str] = {}
    for document in documents:
        reasons: Counter[str] = Counter()
        if not is_python(document["path"]):
            unused = unused_paragraphs(document["text"], max_characters)
            reasons = Counter({f"paragraphs {reason}": count for reason, count in unused.items()})
        elif not items_of(dict(document), max_characters):
            reasons[_NO_DOCSTRING] = 1

        counts += reasons
        for reason in reasons:
            paths.setdefault(reason, document["path"])
    return [{"reason": reason, "count": count, "path": paths[reason]} for reason, count in counts.most_common()]


def in_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """The reasons as the end of a sentence.

    Args:
        rows: As `unused_text` returns them.
    """
    reasons = "; ".join(f"{row['count']:,} {row['reason']}, such as in {row['path']}" for row in rows)
    return reasons or "there is no text"
