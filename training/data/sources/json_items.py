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

    Only the item at hand is in memory, which `json.load` cannot do.

    Args:
        stream: The file.
        start: Its first bytes, if they were read already.

    Raises:
        ValueError: While iterating: something is not JSON, or an item is longer than `MAX_DOCUMENT_BYTES`.
        RecursionError: While iterating: an item is nested too deeply.
    """

    def __init__(self, stream: IO[bytes], start: bytes = b"") -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = self._decoder.decode(start)
        self._position = 0  # in `_text`, up to which it was parsed

    def __iter__(self) -> Iterator[Any]:
        if self._peek() != "[":
            while self._peek():
                yield self._value()
            return

        self._position += 1
        if self._peek() == "]":
            self._position += 1
        else:
            yield from self._array()
        if self._peek():
            raise ValueError("something follows the end of the array")

    def _array(self) -> Iterator[Any]:
        while True:
            self._peek()  # skips the white space before the item
            yield self._value()

            end = self._peek()
            if end not in ("]", ","):
                raise ValueError("expecting ',' or ']' after the item" if end else "the file ends within the array")
            self._position += 1
            if end == "]":
                return

    def _peek(self) -> str:
        """Go to the next character that is no white space and return it; empty at the file's end."""
        while True:
            blank = _BLANK.match(self._text, self._position)
            self._position = blank.end() if blank else self._position
            if self._position < len(self._text) or not self._read(_CHUNK):
                return self._text[self._position : self._position + 1]

    def _value(self) -> Any:
        while True:
            size = len(self._text) - self._position
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._position)
            except ValueError:
                # The item may only be incomplete. Its text grows fourfold before each new try, so that a long item is
                # parsed a few times and not once for every chunk.
                if size > MAX_DOCUMENT_BYTES or not self._read(min(3 * size, MAX_DOCUMENT_BYTES)):
                    raise
                continue

            if end == len(self._text) and self._read(_CHUNK):
                continue  # the rest of a number may follow
            self._position = end
            return value

    def _read(self, size: int) -> bool:
        """Read on by at least `size` bytes; False at the file's end."""
        data = self._stream.read(max(size, _CHUNK))
        self._text = self._text[self._position :] + self._decoder.decode(data, final=not data)
        self._position = 0
        return bool(data)
