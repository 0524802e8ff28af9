"""Bad rows: what may not be a document, and whether it is skipped and listed or stops the job."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from training.data.sources.file_names import printable
from training.errors import SourceError

MAX_DOCUMENT_BYTES = 64 * 2**20
# A compressed gigabyte of blank lines is one megabyte, and each of them takes as long as a short row.
MAX_BLANK_LINES = 100_000
LONGEST_MESSAGE = 500  # some messages quote a row's own keys, and a row may be long
_LIST_LIMIT = 100
MISSING = object()


class BadRows:
    """Counts the rows and files that cannot be read, or stops at the first one.

    Args:
        on_bad_row: Stop at the first one, or skip all of them.
        path: A JSONL file that gets one line for every skipped row. It exists, empty, when none was skipped.
        key: The recipe's key that skips them; a message names it.

    Attributes:
        count: Rows and files that were skipped.
        listed: The messages of the first hundred.
    """

    def __init__(self, on_bad_row: Literal["fail", "skip"], path: Path, key: str = "raw_corpus.on_bad_row") -> None:
        self._key = key
        self._fail = on_bad_row == "fail"
        self._path = path
        self._path.write_text("")
        self.count = 0
        self.listed: list[str] = []

    def report(self, message: str) -> None:
        """Count a bad row, or stop.

        Raises:
            SourceError: Bad rows are not to be skipped.
        """
        message = printable(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}...")
        if self._fail:
            raise SourceError(f"{message}, or set {self._key}: skip to leave out what cannot be read")

        self.count += 1
        # Opened anew for each row, since skipped rows are rare and nobody is there to close the file.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"message": message}) + "\n")
        if len(self.listed) < _LIST_LIMIT:
            self.listed.append(message)


def read_skipped(path: Path) -> Iterator[str]:
    """The messages that a `BadRows` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["message"]


def row_text(row: object, where: str, column: str, bad: BadRows) -> str | None:
    """The text of a row that is a mapping; None, and reported, if it has none.

    Args:
        row: The row.
        where: File and row, for messages.
        column: The key of the text. `data.text` is the key `data.text`, else the key `text` of the mapping `data`.
        bad: Where a row without text is reported.
    """
    if not isinstance(row, Mapping):
        bad.report(
            f"{where}: is a JSON {type(row).__name__}, not an object; write each row as an object with the key {column}"
        )
        return None

    value = field_of(row, column)
    if value is MISSING:
        bad.report(
            f"{where}: has no key {column!r}, only {names(column_paths(row))}; set text_column of the source to the "
            "one that holds the text, or exclude the file"
        )
        return None
    return text_value(value, where, column, bad)


def field_of(row: Mapping[str, Any], column: str) -> object:
    """The value of a key; `data.text` is the key `data.text`, else the key `text` of the mapping `data`.

    Returns:
        `MISSING` where there is none, None where the mapping is null.
    """
    if column in row:
        return row[column]

    value: object = row
    for key in column.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def column_paths(row: Mapping[str, Any]) -> Iterator[str]:
    """What `text_column` can name in a row: its keys, and `outer.inner` for those of a mapping in it."""
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


def text_value(value: object, where: str, column: str, bad: BadRows) -> str | None:
    """A value as the text of a document; None, and reported, if it is not text.

    Args:
        value: A text, or bytes that are read as UTF-8; anything else is reported.
        where: File and row, for messages.
        column: Where the value is from, for messages.
        bad: Where it is reported.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            report_not_utf8(where, column, bad)
            return None

    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        bad.report(
            f"{where}: {column!r} is {kind}, not text; repair the row or set text_column of the source to "
            "another column"
        )
        return None

    if len(value) > MAX_DOCUMENT_BYTES:
        bad.report(f"{where}: one document of more than {MAX_DOCUMENT_BYTES >> 20} MB; split it")
        return None
    return value if is_clean(value, where, bad) else None


def report_not_utf8(where: str, column: str, bad: BadRows) -> None:
    """Report a value of bytes that are not UTF-8."""
    bad.report(f"{where}: {column!r} is not UTF-8; repair the row or set text_column of the source to another column")


def is_clean(text: str, where: str, bad: BadRows) -> bool:
    """False, and reported, for text that UTF-8 files must not hold: NUL characters and lone surrogates."""
    problem = unclean(text)
    if problem:
        bad.report(f"{where}: {problem}")
    return not problem


def unclean(text: str) -> str:
    """What a UTF-8 file must not hold and this text does, with the remedy; empty for a clean text."""
    if "\0" in text:
        return "holds NUL characters, so it is not text; repair or exclude it"
    try:
        text.encode()  # some hundred times as fast as a look at each character
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which UTF-8 cannot express; repair or exclude it"
    return ""


def names(columns: Iterable[object]) -> str:
    """Columns as a message lists them, sorted; `nothing` for none."""
    return ", ".join(sorted(map(str, columns))) or "nothing"
