"""What a recipe's own code imports. The recipe's key `code` names a Python file; its decorated functions are used.

::

    from training.custom import Document, document_filter, document_source


    @document_source
    def tickets(path):
        for ticket in parse(path):
            yield Document(ticket.text, licence="CC0-1.0")


    @document_filter
    def no_signature(document):
        return "Sent from my phone" not in document.text

The file is imported in the processes of jobs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

MARK = "_gatehouse_kind"
FILTER, SOURCE = "document_filter", "document_source"

FilterT = TypeVar("FilterT", bound=Callable[["Document"], bool])
SourceT = TypeVar("SourceT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Document:
    """One text. A source yields it, and a filter is asked about it.

    Attributes:
        text: The whole text.
        licence: By default the one that the recipe gives for the source.
        source: Name of its source in the recipe. A source leaves it out, and the path too.
        path: Its file and row in the source, such as `2026/a.jsonl#17`.
    """

    text: str
    licence: str | None = None
    source: str = ""
    path: str = ""


def document_filter(function: FilterT) -> FilterT:
    """Mark a filter: it gets a `Document` and returns True for one that stays, False for one that is dropped.

    `corpus.rules.filters` names it. It has to say the same of the same document, in any process and in any order.
    """
    setattr(function, MARK, FILTER)
    return function


def document_source(function: SourceT) -> SourceT:
    """Mark a source: it yields each document as a text or as a `Document`.

    `function` of a source names it. Where the source has a `path`, it is called with the path of each file, and is
    called again when that file changes. Without one it is called once, without arguments, and what it reads is not
    watched.
    """
    setattr(function, MARK, SOURCE)
    return function
