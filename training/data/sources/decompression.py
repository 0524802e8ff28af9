"""The bytes of packed files, unpacked on the fly, in bounded memory and up to a bound."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from training.data.sources.formats import compression_of

# Text packs 3 to 20 times smaller, logs that repeat themselves 100 times, zeros 1,000 (gzip) to 30,000 times (zstd).
MAX_RATIO = 200
# What any file may unpack to, however small it is: one document.
MIN_ALLOWANCE = 64 * 2**20
# The greatest that `zstd --long=31` writes. What it takes is bounded with all other memory.
_ZSTD_WINDOW = 2**31


class UnpackedTooMuch(ValueError):
    """A file holds more text than a file of its size can honestly hold."""

    def __init__(self) -> None:
        super().__init__(f"it unpacks to more than {MAX_RATIO} times its size, which no text does")


UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, UnpackedTooMuch)


def allowance(packed_bytes: int) -> int:
    """Most bytes of text that a packed file of a size may hold."""
    return max(MIN_ALLOWANCE, MAX_RATIO * packed_bytes)


@contextmanager
def opened(path: Path, packed_bytes: int) -> Iterator[io.BufferedReader]:
    """A file's bytes, unpacked where its name ends with one of `COMPRESSIONS`.

    Reading raises one of `UNPACKING_ERRORS`.

    Args:
        path: The file.
        packed_bytes: Its size.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        compression = compression_of(path.name)
        if not compression:
            yield raw
            return
        unpacked = stack.enter_context(
            gzip.GzipFile(fileobj=raw) if compression == ".gz" else _Frames(raw, _DECOMPRESSORS[compression])
        )
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


class _Decompressor(Protocol):
    """Unpacks one frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(),
}


class _Frames(io.RawIOBase):
    """Unpacks frames that follow each other.

    A frame that is cut short raises EOFError and bytes that are no frame an error of the library, where the libraries'
    own readers just end.
    """

    _CHUNK = 4096  # small, because each packed byte can become thousands

    def __init__(self, raw: IO[bytes], new_frame: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._frame = new_frame()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = (self._frame.unused_data if self._frame.eof else b"") or self._raw.read(self._CHUNK)
            if not packed:
                if self._inside:
                    raise EOFError("the file ends in the middle of a frame of packed data")
                return 0

            if self._frame.eof:
                self._frame = self._new_frame()
                packed = packed.lstrip(b"\0")  # a disk's and an archive's padding; no frame begins with it
            if packed:
                self._ready = memoryview(self._frame.decompress(packed))
                self._inside = not self._frame.eof

        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
