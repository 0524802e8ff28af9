"""The bytes of packed files, unpacked on the fly, in bounded memory and up to a bound."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

# Text packs 3 to 20 times smaller, logs that repeat themselves 100 times, zeros 1,000 (gzip) to 30,000 times (zstd).
MAX_RATIO = 200
# What any file may unpack to, however small it is: one document.
MIN_ALLOWANCE = 64 * 2**20


class UnpackedTooMuch(ValueError):
    """A file holds more text than a file of its size can honestly hold."""

    def __init__(self) -> None:
        super().__init__(f"it unpacks to more than {MAX_RATIO} times its size, which no text does")


UNPACKING_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, UnpackedTooMuch)


def allowance(packed_bytes: int) -> int:
    """Most bytes of text that a packed file of a size may hold."""
    return max(MIN_ALLOWANCE, MAX_RATIO * packed_bytes)


@contextmanager
def opened(path: Path, packed_bytes: int) -> Iterator[IO[bytes]]:
    """A file's bytes; those of `.gz` and `.zst` are unpacked. Reading raises one of `UNPACKING_ERRORS`.

    Args:
        path: The file.
        packed_bytes: Its size.
    """
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("rb"))
        if path.suffix not in (".gz", ".zst"):
            yield raw
            return
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else _Zstd(raw))
        yield stack.enter_context(io.BufferedReader(_Bounded(unpacked, allowance(packed_bytes)), 1 << 17))


class _Bounded(io.RawIOBase):
    """Passes bytes on until there are more than `most`."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream = stream
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = int(self._stream.readinto(buffer))
        self._left -= size
        if self._left < 0:
            raise UnpackedTooMuch
        return size


class _Zstd(io.RawIOBase):
    """Unpacks zstd frames; a frame that is cut short raises EOFError, where the library's own reader just ends."""

    _CHUNK = 4096  # small, because each packed byte can become thousands

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = (self._frame.unused_data if self._frame.eof else b"") or self._raw.read(self._CHUNK)
            if not packed:
                if self._inside:
                    raise EOFError("the file ends in the middle of a zstd frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(packed))
            self._inside = not self._frame.eof
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
