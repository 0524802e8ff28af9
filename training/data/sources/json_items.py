"""Reads JSON files of any length item by item."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from training.data.sources.bad_rows import MAX_DOCUMENT_BYTES

_BLANK = re.compile(r"[ \t\r\n]*")
_CHUNK = 1 << 20


class JsonItems:
    """Iterates over the items of the array that a file holds, or over the values that follow each other in it.

    Only the item at hand is in memory. Iterating raises ValueError (or RecursionError) at what is not JSON, and at an
    item that is not complete within `MAX_DOCUMENT_BYTES`.

    Args:
        stream: The file.
        start: What was read of it already.
    """

    def __init__(self, stream: IO[bytes], start: bytes = b"") -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = self._decoder.decode(start)
        self._at = 0  # where the rest begins in `_text`

    def __iter__(self) -> Iterator[Any]:
        if self._next() != "[":
            while self._next():
                yield self._value()
            return

        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            yield from self._array()
        if self._next():
            raise ValueError("something follows the end of the array")

    def _array(self) -> Iterator[Any]:
        while True:
            self._next()
            yield self._value()
            end = self._next()
            if end not in ("]", ","):
                raise ValueError("expecting ',' or ']' after the item" if end else "the file ends within the array")
            self._at += 1
            if end == "]":
                return

    def _next(self) -> str:
        """The next character that is no white space, still to be taken; empty at the file's end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text) or not self._read(_CHUNK):
                return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        while True:
            size = len(self._text) - self._at
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except ValueError:
                if size > MAX_DOCUMENT_BYTES or not self._read(min(3 * size, MAX_DOCUMENT_BYTES)):
                    raise
                continue
            if end == len(self._text) and self._read(_CHUNK):
                continue  # the rest of a number may follow
            self._at = end
            return value

    def _read(self, size: int) -> bool:
        """Read on by `size` bytes, many where the item at hand is long already; False at the file's end."""
        data = self._stream.read(max(size, _CHUNK))
        self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        self._at = 0
        return bool(data)
