"""Token shards: the tokens of all documents on disk, and their memory-mapped reader.

::

    meta.json               dtype, vocabulary, tokens, documents, shards (tokens in each), sources, weights, tokenizer
    train/shard-00000.bin   tokens, little-endian uint16 (uint32 for a vocabulary above 65,536), whole documents only
    train/offsets.npy       int64 [documents + 1], where each document begins in the row of all shards
    train/source.npy        int32 [documents], number of the document's source in meta.json
    train/ids.npy           uint8 [documents, 32], SHA-256 of the document's text
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, overload

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from training.errors import InputRefused
from training.specs.base import Spec, canonical_json

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
META = "meta.json"
FOLDER = "train"
_MOST = (1 << 32) - 1
_AT_ONCE = 1 << 22  # documents


class ShardsMeta(Spec):
    """`meta.json` of the shards."""

    dtype: str = Field(pattern="^<u[24]$")
    vocabulary: int
    tokens: int
    documents: int
    shards: tuple[int, ...]
    sources: tuple[str, ...]
    weights: dict[str, float]
    tokenizer: str

    @model_validator(mode="after")
    def _holds_every_id(self) -> Self:
        if self.vocabulary - 1 > np.iinfo(self.dtype).max:
            raise ValueError(f"{self.dtype} does not hold the ids of a vocabulary of {self.vocabulary}")
        return self


class TokenReader(Protocol):
    """What the packer reads: documents as token sequences."""

    @property
    def lengths(self) -> Int64:
        """Tokens of every document, int64 [documents]."""

    def gather(self, documents: Int64, starts: Int64, lengths: Int64) -> tuple[Int64, Bool | None]:
        """Tokens `starts[i] : starts[i] + lengths[i]` of `documents[i]`, one after the other.

        Args:
            documents: Numbers of documents, int64 [pieces].
            starts: First token of each piece within its document, int64 [pieces].
            lengths: Tokens of each piece, int64 [pieces].

        Returns:
            Tokens, int64 [sum of lengths], and which of them are learned, bool of that shape; None stands for all.
        """

    def before(self, documents: Int64, starts: Int64) -> Int64:
        """The token before `starts[i]` of `documents[i]`, int64 [documents]; at 0 it is what documents begin after."""


class TokenWriter:
    """Writes documents in the order they are given; use it as a context manager.

    Args:
        folder: Where `meta.json` and `train/` go.
        vocabulary: Number of tokens; decides the element type.
        shard_tokens: A shard is closed before the document that would make it longer.

    Raises:
        InputRefused: The vocabulary has ids that do not fit 32 bits.
    """

    def __init__(self, folder: Path, vocabulary: int, shard_tokens: int) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._root = folder
        self._vocabulary = vocabulary
        self._dtype = unsigned_dtype(vocabulary - 1, "token ids")
        self._shard_tokens = shard_tokens
        self._lengths: list[Int64] = []
        self._shards: list[int] = []
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the open shard."""
        self._close()

    def add(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append one document.

        Args:
            tokens: Token ids below the vocabulary, any integer type, [length].
        """
        self.add_all(tokens, np.array([len(tokens)], np.int64))

    def add_all(self, tokens: npt.NDArray[np.integer], lengths: Int64) -> None:
        """Append documents.

        Args:
            tokens: Token ids below the vocabulary, one document after the other, any integer type, [sum of lengths].
            lengths: Tokens of each document, int64 [documents].

        Raises:
            ValueError: An id is not below the vocabulary: it would become another one.
        """
        if len(tokens):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self._vocabulary:
                raise ValueError(f"token ids {low} to {high} do not fit a vocabulary of {self._vocabulary}")
        ends = np.cumsum(lengths)
        first = start = 0
        while first < len(lengths):
            space = self._shard_tokens - (self._shards[-1] if self._file else 0)
            end = int(np.searchsorted(ends, start + space, side="right"))
            if end == first:
                if self._file is not None and self._shards[-1]:
                    self._close()
                    continue
                end = first + 1  # a document that is longer than a shard
            self._write(tokens[start : ends[end - 1]])
            first, start = end, int(ends[end - 1])
        self._lengths.append(np.asarray(lengths, np.int64))

    def _write(self, tokens: npt.NDArray[np.integer]) -> None:
        if self._file is None:
            self._file = (self._folder / f"shard-{len(self._shards):05d}.bin").open("wb")
            self._shards.append(0)
        self._file.write(tokens.astype(self._dtype).tobytes())
        self._shards[-1] += len(tokens)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(
        self,
        source: npt.NDArray[np.int32],
        ids: npt.NDArray[np.uint8],
        sources: tuple[str, ...],
        weights: dict[str, float],
        tokenizer: str,
    ) -> ShardsMeta:
        """Write the index and `meta.json`.

        Args:
            source: Source number of every document, int32 [documents].
            ids: SHA-256 of every document's text, uint8 [documents, 32].
            sources: Names of the sources.
            weights: Weight of each source by name.
            tokenizer: SHA-256 (hex) of tokenizer.json.

        Returns:
            What `meta.json` holds.
        """
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
        np.save(self._folder / "offsets.npy", offsets)
        np.save(self._folder / "source.npy", source.astype("<i4"))
        np.save(self._folder / "ids.npy", ids.astype(np.uint8))

        meta = ShardsMeta(
            dtype=self._dtype,
            vocabulary=self._vocabulary,
            tokens=int(offsets[-1]),
            documents=len(lengths),
            shards=tuple(self._shards),
            sources=sources,
            weights=weights,
            tokenizer=tokenizer,
        )
        (self._root / META).write_text(canonical_json(meta.model_dump(mode="json")) + "\n", encoding="utf-8")
        return meta


class TokenShards:
    """Reader of token shards; the tokens stay on disk until they are asked for.

    Args:
        folder: Holds `meta.json` and `train/`.

    Attributes:
        meta: `meta.json`.
        offsets: Where each document begins in the row of all shards, int64 [documents + 1].
        source: Number of each document's source, int32 [documents].
        ids: SHA-256 of each document's text, uint8 [documents, 32].

    Raises:
        InputRefused: A file is missing, or is not as long as `meta.json` says.
    """

    def __init__(self, folder: Path) -> None:
        self.meta = _read_meta(folder / META)
        train = folder / FOLDER
        self.offsets: Int64 = _load(train / "offsets.npy", "<i8", (self.meta.documents + 1,))
        self.source: npt.NDArray[np.int32] = _load(train / "source.npy", "<i4", (self.meta.documents,))
        self.ids: npt.NDArray[np.uint8] = _load(train / "ids.npy", "|u1", (self.meta.documents, 32))

        self._starts: Int64 = np.concatenate([[0], np.cumsum(self.meta.shards)]).astype(np.int64)
        if not self._starts[-1] == self.offsets[-1] == self.meta.tokens:
            raise InputRefused(
                f"{folder}: the shards hold {self._starts[-1]} tokens, the offsets {self.offsets[-1]}, "
                f"and meta.json says {self.meta.tokens}; materialize packed_shards again"
            )

        self._shards = [
            _map(train / f"shard-{number:05d}.bin", tokens, self.meta.dtype)
            for number, tokens in enumerate(self.meta.shards)
        ]

    @cached_property
    def lengths(self) -> Int64:
        """Tokens of every document, int64 [documents]; they are taken when they are asked for."""
        lengths: Int64 = np.diff(self.offsets)
        return lengths

    def tokens_of_sources(self) -> dict[str, int]:
        """Tokens of each source by name."""
        tokens = np.zeros(len(self.sources))
        for first in range(0, self.meta.documents, _AT_ONCE):
            lengths = np.diff(self.offsets[first : first + _AT_ONCE + 1])
            tokens += np.bincount(self.source[first : first + _AT_ONCE], lengths, minlength=len(self.sources))
        return {name: int(count) for name, count in zip(self.sources, tokens, strict=True)}

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources; `source` holds positions in it."""
        return self.meta.sources

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """Tokens of one document, a view of the file, uint16 or uint32 [length]."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        shard = min(shard, len(self._shards) - 1)
        base = int(self._starts[shard])
        return self._shards[shard][start - base : end - base]

    def gather(self, documents: Int64, starts: Int64, lengths: Int64) -> tuple[Int64, None]:
        """Tokens `starts[i] : starts[i] + lengths[i]` of `documents[i]`, one after the other; all are learned.

        Returns:
            int64 [sum of lengths], and None.
        """
        places = ranges(self.offsets[documents] + starts, lengths)
        out = np.empty(len(places), np.int64)
        shard = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(shard):
            inside = shard == number
            out[inside] = self._shards[number][places[inside] - self._starts[number]]
        return out, None


class DocumentsOfSources(Sequence[Int64]):
    """Numbers of the documents of each source, int64 [documents of the source]; found when they are asked for."""

    def __init__(self, shards: TokenShards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        """Number of sources."""
        return len(self._shards.sources)

    @overload
    def __getitem__(self, number: int) -> Int64: ...

    @overload
    def __getitem__(self, number: slice) -> list[Int64]: ...

    def __getitem__(self, number: int | slice) -> Int64 | list[Int64]:
        """The documents of one source, or of some."""
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return np.flatnonzero(self._shards.source == number)


class ShardDocuments:
    """The documents of token shards as training reads them: before each stands the token that ends every one of them.

    It is read from the shards: a model folder may name another end, and what begins a document must be what ended the
    one before.

    Args:
        shards: The tokens, of one document at least.

    Attributes:
        end: Id of that token.
    """

    def __init__(self, shards: TokenShards) -> None:
        self._shards = shards
        first, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        self.end = int(shards.gather(first, shards.lengths[:1] - 1, one)[0][0])

    @property
    def lengths(self) -> Int64:
        """Tokens of every document, its own end included, int64 [documents]."""
        return self._shards.lengths

    def gather(self, documents: Int64, starts: Int64, lengths: Int64) -> tuple[Int64, None]:
        """As `TokenShards.gather`."""
        return self._shards.gather(documents, starts, lengths)

    def before(self, documents: Int64, starts: Int64) -> Int64:
        """The token before, int64 [documents]; `end` at the beginning of a document."""
        inside = starts > 0
        out = np.full(len(starts), self.end, np.int64)
        out[inside] = self._shards.gather(documents[inside], starts[inside] - 1, np.ones(inside.sum(), np.int64))[0]
        return out


class ArrayTokens:
    """Token sequences in memory, read in the same way as `ShardDocuments`.

    The first token of a sequence is given and not learned: token 0 of the document that is read is the second one.

    Args:
        sequences: Integer arrays [length], at least one token each.
        masks: True (or 1) where a token is learned, of the same lengths; None learns all but the first.

    Raises:
        ValueError: A sequence is empty, or a mask is not as long as its sequence.
    """

    def __init__(
        self, sequences: Sequence[npt.NDArray[np.integer]], masks: Sequence[npt.NDArray[np.bool_]] | None = None
    ) -> None:
        sizes = np.array([len(sequence) for sequence in sequences], np.int64)
        if (sizes < 1).any():
            raise ValueError("every sequence needs a first token")
        self._lengths: Int64 = sizes - 1
        self._offsets: Int64 = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._tokens: Int64 = (np.concatenate(list(sequences)) if len(sequences) else np.empty(0)).astype(np.int64)
        self._mask: Bool | None = None
        if masks is not None:
            if [len(mask) for mask in masks] != sizes.tolist():
                raise ValueError("every mask must be as long as its sequence")
            self._mask = (np.concatenate(list(masks)) if len(masks) else np.empty(0)).astype(np.bool_)

    @property
    def lengths(self) -> Int64:
        """Tokens of every sequence after its first one, int64 [sequences]."""
        return self._lengths

    def gather(self, documents: Int64, starts: Int64, lengths: Int64) -> tuple[Int64, Bool | None]:
        """As `TokenShards.gather`, with the mask where there is one."""
        places = ranges(self._offsets[documents] + 1 + starts, lengths)
        return self._tokens[places], None if self._mask is None else self._mask[places]

    def before(self, documents: Int64, starts: Int64) -> Int64:
        """The token before, int64 [documents]; at 0 it is the first one of the sequence."""
        tokens_before: Int64 = self._tokens[self._offsets[documents] + starts]
        return tokens_before


def unsigned_dtype(most: int, what: str) -> str:
    """The element type of a file of numbers from 0 to `most`: 16 bits where they are enough, and else 32.

    Args:
        most: The largest number.
        what: What the numbers are, for the message.

    Raises:
        InputRefused: The largest number needs more than 32 bits.
    """
    if most > _MOST:
        raise InputRefused(f"{what} go up to {most:,}, and their files hold 32 bits: {_MOST:,}; divide the texts")
    return "<u2" if most < 1 << 16 else "<u4"


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """`arange(starts[i], starts[i] + lengths[i])` for every i, one after the other, int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    places: Int64 = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return places


def _read_meta(path: Path) -> ShardsMeta:
    try:
        return ShardsMeta.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise InputRefused(f"{path} is missing or damaged ({error}); materialize packed_shards again") from error


def _load(path: Path, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputRefused(f"{path} is missing or damaged ({error}); materialize packed_shards again") from error
    if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
        raise InputRefused(
            f"{path} holds {array.dtype} {array.shape}, and it should be {dtype} {shape}; materialize "
            "packed_shards again"
        )
    return array


def _map(path: Path, tokens: int, dtype: str) -> npt.NDArray[np.integer]:
    expected_bytes = tokens * np.dtype(dtype).itemsize
    actual_bytes = path.stat().st_size if path.is_file() else None
    if actual_bytes != expected_bytes:
        state = "is missing" if actual_bytes is None else f"has {actual_bytes} bytes"
        raise InputRefused(
            f"{path} {state}, and meta.json says {expected_bytes} bytes; materialize packed_shards again"
        )
    return np.memmap(path, dtype=dtype, mode="r") if tokens else np.empty(0, dtype)
