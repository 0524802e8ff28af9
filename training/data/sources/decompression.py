"""The bytes of compressed files, decompressed on the fly, in bounded memory and up to a bound."""

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

# Text shrinks 3 to 20 times, logs that repeat themselves 100 times, zeros 1,000 (gzip) to 30,000 times (zstd).
MAX_RATIO = 200
# Any file may decompress to one document, however small the file is.
MIN_ALLOWANCE = 64 * 2**20
# The largest window that `zstd --long=31` writes. Its memory is bounded together with all other memory.
_ZSTD_WINDOW = 2**31
_BUFFER_BYTES = 1 << 17


class DecompressionBomb(ValueError):
    """A file holds more text than a file of its size can honestly hold."""

    def __init__(self) -> None:
        super().__init__(f"it decompresses to more than {MAX_RATIO} times its size, which no text does")


DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, DecompressionBomb)


def allowance(file_bytes: int) -> int:
    """The most bytes of text that a compressed file of `file_bytes` bytes may hold."""
    return max(MIN_ALLOWANCE, MAX_RATIO * file_bytes)


@contextmanager
def open_decompressed(path: Path, file_bytes: int) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed where its name ends with one of `COMPRESSIONS`.

    Reading raises one of `DECOMPRESSION_ERRORS`.

    Args:
        path: The file.
        file_bytes: Its size on disk.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        compression = compression_of(path.name)
        if not compression:
            yield raw
            return

        decompressed = stack.enter_context(
            gzip.GzipFile(fileobj=raw) if compression == ".gz" else _Frames(raw, _DECOMPRESSORS[compression])
        )
        bounded = _Bounded(decompressed, allowance(file_bytes))
        yield stack.enter_context(io.BufferedReader(bounded, _BUFFER_BYTES))


class _Bounded(io.RawIOBase):
    """Passes bytes on until there are more than `limit`."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = int(self._stream.readinto(buffer))
        self._left -= size
        if self._left < 0:
            raise DecompressionBomb
        return size


class _Decompressor(Protocol):
    """Decompresses one frame."""

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
    """Decompresses the frames of a file, one after the other.

    A frame that is cut short raises EOFError, and bytes that are no frame raise the library's own error. The libraries'
    own file readers may simply end there, and nobody would notice what is missing.
    """

    _CHUNK = 4096  # small, because each compressed byte can become thousands

    def __init__(self, raw: IO[bytes], new_frame: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._frame = new_frame()
        self._inside_frame = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = (self._frame.unused_data if self._frame.eof else b"") or self._raw.read(self._CHUNK)
            if not compressed:
                if self._inside_frame:
                    raise EOFError("the file ends in the middle of a frame of compressed data")
                return 0

            if self._frame.eof:
                self._frame = self._new_frame()
                compressed = compressed.lstrip(b"\0")  # a disk's and an archive's padding; no frame begins with it
            if compressed:
                self._ready = memoryview(self._frame.decompress(compressed))
                self._inside_frame = not self._frame.eof

        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
