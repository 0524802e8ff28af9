"""Reads documents of token ids: rows of a list column, and streams in .npy files with an end of text between documents.

What the ids say is not known here; `TextsOfIds` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.sources.bad_rows import MAX_DOCUMENT_BYTES, BadRows
from training.data.sources.decompression import DecompressionBomb, allowance
from training.data.sources.file_names import format_in
from training.data.sources.formats import NPY, PARQUET
from training.data.sources.parquet_reader import (
    arrow_batches,
    arrow_reader,
    keys_of,
    kind_of_column,
    parquet_batches,
)
from training.data.sources.source_files import SourceFile
from training.specs.raw_corpus import Source

Ids = npt.NDArray[np.integer]
_AT_ONCE = 1 << 22  # ids that are looked at for an end of text
_LIST_TYPES = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


class IdsRow(NamedTuple):
    """One document as it was read.

    Attributes:
        path: See `provenance`.
        where: File and row, for messages.
        ids: Token ids, any integer type, [length].
        problem: Why it is no document; empty if it is one.
    """

    path: str
    where: str
    ids: Ids
    problem: str = ""


class TextsOfIds(Protocol):
    """Decodes documents.

    Attributes:
        end: Id of the token that ends a document.
        end_name: Its name.
        largest: The largest id that a document can hold.
    """

    end: int
    end_name: str
    largest: int

    def texts(self, rows: Iterator[IdsRow], bad: BadRows) -> Iterator[tuple[str, str]]:
        """Paths and texts of documents. Those that are none are reported, in their order."""
        ...


def read_ids(file: SourceFile, source: Source, decoder: TextsOfIds, bad: BadRows) -> Iterator[tuple[str, str]]:
    """Paths and texts of the documents of a file of token ids.

    Raises:
        ArrowException: While iterating: the file is damaged.
        DecompressionBomb: While iterating: it holds more text than a file of its size can.
    """
    format_ = format_in(file.name, source)
    if format_ == NPY:
        rows = _stream(file, decoder, bad)
    else:
        rows = (_parquet if format_ == PARQUET else _arrow)(file, source, decoder, bad)
    left = allowance(file.bytes)
    for path, text in decoder.texts(rows, bad):
        left -= len(text)
        if left < 0:
            raise DecompressionBomb
        yield path, text


def open_stream(file: SourceFile) -> Ids:
    """All ids of a .npy file, mapped from disk, any integer type, [ids].

    Raises:
        ValueError: It is no such file, or holds something else; the message says what.
    """
    array: Any = np.lib.format.open_memmap(file.path, mode="r")  # it reads no pickled objects
    if array.dtype.kind not in "iu":
        raise ValueError(f"it holds {array.dtype}, and ids are whole numbers")
    if array.ndim != 1:
        raise ValueError(
            f"it holds an array of the shape {array.shape}, and a stream has one dimension; write it as one, with an "
            "end of text after each document"
        )
    unread = file.status.st_size - array.offset - array.nbytes
    if array.size and unread:
        raise ValueError(f"{unread:,} bytes follow the array that its header describes")
    return np.asarray(array)


def range_of(file: SourceFile, ids: Ids) -> tuple[int, int]:
    """Places of the first id that is meant of a stream and of the one behind the last."""
    if file.lines is None:
        return 0, len(ids)
    header = file.status.st_size - ids.nbytes
    return (file.lines.start - header) // ids.itemsize, (file.lines.end - header) // ids.itemsize


def ends_in(ids: Ids, end: int, start: int, stop: int) -> Iterator[npt.NDArray[np.int64]]:
    """Places of the ends of text between two places of a stream, int64 [ends of a few million ids] each."""
    for first in range(start, stop, _AT_ONCE):
        yield np.flatnonzero(ids[first : min(first + _AT_ONCE, stop)] == end) + first


def _stream(file: SourceFile, decoder: TextsOfIds, bad: BadRows) -> Iterator[IdsRow]:
    try:
        ids = open_stream(file)
    except ValueError as error:
        bad.report(f"{file.shown}: is no stream of token ids ({error}); repair or exclude it")
        return
    if problem := _too_narrow(ids.dtype, decoder):
        bad.report(f"{file.shown}: {problem}")
        return

    begin, stop = range_of(file, ids)
    number = 1 + (file.lines.before if file.lines else 0)
    has_end = file.lines is not None or not len(ids)
    for places in ends_in(ids, decoder.end, begin, stop):
        for place in places.tolist():
            yield from _document(file, number, ids[begin:place])
            begin, number, has_end = place + 1, number + 1, True
    if not has_end:
        bad.report(
            f"{file.shown}: none of its {len(ids):,} ids ({ids.dtype}) is {decoder.end}, the end of text "
            f"{decoder.end_name}; put one after each document, or name the tokenizer that made them as tokenizer.from"
        )
        return
    yield from _document(file, number, ids[begin:stop])


def _too_narrow(kind: np.dtype[Any], decoder: TextsOfIds) -> str:
    """What is wrong with numbers of so few bits that ids became other ids in them; empty where all ids fit."""
    if np.iinfo(kind).max >= decoder.largest:
        return ""
    return (
        f"holds {kind}, and the ids of tokenizer.from go up to {decoder.largest:,}, so some became others when they "
        "were saved; write them with more bits"
    )


def _document(file: SourceFile, number: int, ids: Ids) -> Iterator[IdsRow]:
    """One document of a stream; nothing for two ends of text in a row."""
    where = f"{file.shown}: document {number}"
    if len(ids) > MAX_DOCUMENT_BYTES:
        problem = f"one document of {len(ids):,} ids; split it"
        yield IdsRow(f"{file.name}#{number}", where, ids[:0], problem)
    elif len(ids):
        yield IdsRow(f"{file.name}#{number}", where, ids)


def _parquet(file: SourceFile, source: Source, decoder: TextsOfIds, bad: BadRows) -> Iterator[IdsRow]:
    assert source.input_ids is not None
    schema = pq.read_schema(file.path)
    if not _holds_ids(schema, file, source, decoder, bad):
        return
    with pq.ParquetFile(file.path) as table:
        batches = parquet_batches(table, file, bad, [source.input_ids])
        yield from _rows(batches, keys_of(schema, source.input_ids), file, source.input_ids)


def _arrow(file: SourceFile, source: Source, decoder: TextsOfIds, bad: BadRows) -> Iterator[IdsRow]:
    assert source.input_ids is not None
    with pa.OSFile(str(file.path)) as opened:
        reader = arrow_reader(file, opened)
        if _holds_ids(reader.schema, file, source, decoder, bad):
            keys = keys_of(reader.schema, source.input_ids)
            top = source.input_ids.split(".")[0] if keys else source.input_ids
            batches = (batch.select([top]) for batch in arrow_batches(reader))
            yield from _rows(batches, keys, file, source.input_ids)


def _rows(batches: Iterator[pa.RecordBatch], keys: list[str], file: SourceFile, column: str) -> Iterator[IdsRow]:
    number = 0
    for batch in batches:
        for value in batch.column(0):
            number += 1
            ids, problem = _ids_of(value, keys, column)
            yield IdsRow(f"{file.name}#{number}", f"{file.shown}: row {number}", ids, problem)


def _ids_of(value: pa.Scalar, keys: list[str], column: str) -> tuple[Ids, str]:
    """The ids of a row, and why it has none."""
    nothing: Ids = np.empty(0, np.int64)
    for key in keys:
        value = value[key] if value.is_valid else value
    if not value.is_valid:
        return nothing, f"{column!r} is null, not a list of token ids; repair the row"
    if value.values.null_count:
        return nothing, f"{column!r} holds a null among its token ids; repair the row"
    if len(value.values) > MAX_DOCUMENT_BYTES:
        return nothing, f"one document of {len(value.values):,} ids; split it"
    return value.values.to_numpy(zero_copy_only=False), ""


def _holds_ids(schema: pa.Schema, file: SourceFile, source: Source, decoder: TextsOfIds, bad: BadRows) -> bool:
    column = source.input_ids
    assert column is not None
    remedy = f"set input_ids of the source {source.name} to the one that holds token ids"
    kind = kind_of_column(schema, column, file, remedy, bad)
    if kind is None:
        return False

    if not any(is_list(kind) for is_list in _LIST_TYPES) or not pa.types.is_integer(kind.value_type):
        bad.report(f"{file.shown}: the column {column!r} holds {kind}, and not lists of whole numbers; {remedy}")
        return False
    if problem := _too_narrow(np.dtype(kind.value_type.to_pandas_dtype()), decoder):
        bad.report(f"{file.shown}: the column {column!r} {problem}")
        return False
    return True
