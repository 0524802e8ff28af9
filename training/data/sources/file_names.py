"""Whether and how a source reads a file, by the file's name. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

from training.data.sources.formats import (
    CUSTOM,
    HTML,
    ID_FORMATS,
    READABLE,
    TEXT,
    format_of,
    id_format_of,
    shown_suffix,
)
from training.specs.conversations import PLAIN_TEXT, ConversationSource
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

EXCLUDED, EMPTY, HIDDEN = "excluded", "empty", "hidden"
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def reason_to_leave_out(name: str, source: Origin) -> str | None:
    """Why a source does not read a file of this name: `excluded`, or its suffix; None where it does."""
    if (source.include and not matches(name, source.include)) or matches(name, source.exclude):
        return EXCLUDED
    return None if format_in(name, source) else shown_suffix(name)


def format_in(name: str, source: Origin) -> str | None:
    """The format by which a source reads a file; None if it does not read it.

    A file of plain text is a text of a corpus. Beside rows it is mostly a note about them, so that a source of
    conversations reads it where it says so, and no page of HTML.
    """
    if isinstance(source, Source):
        if source.function is not None:
            return CUSTOM
        if source.input_ids is not None:
            return id_format_of(name)
        return format_of(name, source.text_suffixes)
    format_ = format_of(name)
    reads_text = isinstance(source, ConversationSource) and source.format == PLAIN_TEXT
    return format_ if format_ not in (TEXT, HTML) or (reads_text and format_ == TEXT) else None


def readable(source: Origin) -> str:
    """The suffixes of files that a source can read, for messages."""
    holds_ids = isinstance(source, Source) and source.input_ids is not None
    return f"{', '.join(ID_FORMATS)} (token ids, not compressed)" if holds_ids else READABLE


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a relative path matches one of the globs; `*` also matches `/`, and a leading `**/` may match nothing."""
    name = nfc(name)
    return any(
        fnmatchcase(name, pattern) or (pattern.startswith("**/") and fnmatchcase(name, pattern[3:]))
        for pattern in map(nfc, globs)
    )


def nfc(text: str) -> str:
    """A text in the Unicode form NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def printable(text: str) -> str:
    """A text for messages: what is not UTF-8 and what would move a terminal's cursor is escaped."""
    return _UNSHOWABLE.sub(lambda match: ascii(match[0])[1:-1], text)
