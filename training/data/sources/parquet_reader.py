"""Reads the text column, or whole rows, of Parquet and Arrow files, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.sources.bad_rows import (
    MAX_DOCUMENT_BYTES,
    BadRows,
    column_paths,
    names,
    report_not_utf8,
    text_value,
)
from training.data.sources.decompression import DecompressionBomb, allowance
from training.data.sources.readers import FileRow
from training.data.sources.source_files import SourceFile
from training.specs.raw_corpus import Source

_BATCH_ROWS = 256
_ARROW_FILE = b"ARROW1"  # a stream has no such mark
_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def read_parquet(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """Paths and texts of the rows of a parquet file; see `readers`.

    Raises:
        ArrowException: While iterating: the file is damaged.
        DecompressionBomb: While iterating: it holds more text than a file of its size can.
    """
    column = source.text_column
    schema = pq.read_schema(file.path)
    if not _holds_text(schema, file, source, bad):
        return

    # As a dictionary, because each of a batch's rows may be the same long text.
    with pq.ParquetFile(file.path, read_dictionary=[column]) as table:
        yield from _texts(parquet_batches(table, file, bad, [column]), keys_of(schema, column), file, column, bad)


def read_arrow(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """Paths and texts of the rows of an Arrow file or stream; see `read_parquet`."""
    column = source.text_column
    with pa.OSFile(str(file.path)) as opened:
        reader = arrow_reader(file, opened)
        if _holds_text(reader.schema, file, source, bad):
            keys = keys_of(reader.schema, column)
            top = column if not keys else column.split(".")[0]
            batches = (batch.select([top]) for batch in arrow_batches(reader))
            yield from _texts(batches, keys, file, column, bad)


def parquet_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The rows of a parquet file as mappings, without the keys that are null; see `plain`.

    Raises:
        ArrowException: While iterating: the file is damaged.
        DecompressionBomb: While iterating: it holds more than a file of its size can.
    """
    if _has_distinct_columns(pq.read_schema(file.path), file, bad):
        with pq.ParquetFile(file.path) as table:
            yield from _rows(parquet_batches(table, file, bad, None), file, bad)


def arrow_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The rows of an Arrow file or stream as mappings; see `parquet_rows`."""
    with pa.OSFile(str(file.path)) as opened:
        reader = arrow_reader(file, opened)
        if _has_distinct_columns(reader.schema, file, bad):
            yield from _rows(arrow_batches(reader), file, bad)


def parquet_batches(
    table: pq.ParquetFile, file: SourceFile, bad: BadRows, columns: list[str] | None
) -> Iterator[pa.RecordBatch]:
    """Some rows at a time of a parquet file; all columns where none are named."""
    for index in range(table.num_row_groups):
        group = table.metadata.row_group(index)
        average_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        batch_rows = min(_BATCH_ROWS, MAX_DOCUMENT_BYTES // average_bytes + 1)

        rows = 0
        for batch in table.iter_batches(batch_rows, [index], columns):
            rows += batch.num_rows
            yield batch

        # pyarrow gives the rows that are there, and does not compare their number with the footer's.
        if rows != group.num_rows:
            bad.report(
                f"{file.shown}: row group {index} holds {rows} rows, and its footer says "
                f"{group.num_rows}; repair or exclude it"
            )


def arrow_reader(file: SourceFile, opened: pa.NativeFile) -> Any:
    """A reader of an Arrow file, which Feather files of version 2 are, or of a stream, as `datasets` saves them."""
    with file.path.open("rb") as stream:
        is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
    return pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)


def arrow_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    """Some rows at a time of an Arrow file or stream."""
    is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
    batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        # Nothing else compares the offsets of a damaged file with the bytes that are there.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _texts(
    batches: Iterator[pa.RecordBatch], keys: list[str], file: SourceFile, column: str, bad: BadRows
) -> Iterator[tuple[str, str]]:
    number, left = 0, allowance(file.bytes)
    for batch in batches:
        for value in batch.column(0):
            number += 1
            text = _text(value, keys, f"{file.shown}: row {number}", column, bad)
            if text is None:
                continue
            left -= len(text)
            if left < 0:
                raise DecompressionBomb
            yield f"{file.name}#{number}", text


def _rows(batches: Iterator[pa.RecordBatch], file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    number, left = 0, allowance(file.bytes)
    for batch in batches:
        left -= batch.nbytes
        if left < 0:
            raise DecompressionBomb
        for index in range(batch.num_rows):
            number += 1
            where = f"{file.shown}: row {number}"
            row = {}
            try:
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    value = plain(column[index].as_py(), column.type)
                    if value is not None:
                        row[name] = value
            except UnicodeDecodeError:
                report_not_utf8(where, name, bad)
                continue
            yield FileRow(number, where, row)


def plain(value: Any, kind: pa.DataType) -> Any:
    """A value of an Arrow array as JSON would give it.

    Arrow has one set of keys for all objects of a column, and null where an object lacks a key. So a null key cannot
    be told from a missing one, and is left out. Objects in JSON files keep their nulls, and so do maps and lists.

    Raises:
        UnicodeDecodeError: Bytes are not UTF-8.
    """
    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        return plain(value, kind.value_type)
    if pa.types.is_struct(kind):
        inner = {field.name: plain(value[field.name], field.type) for field in kind}
        return {key: item for key, item in inner.items() if item is not None}
    if pa.types.is_map(kind):
        return {key: plain(item, kind.item_type) for key, item in value}
    if isinstance(value, list):
        return [plain(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str | bool | int | float) else str(value)


def _has_distinct_columns(schema: pa.Schema, file: SourceFile, bad: BadRows) -> bool:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        bad.report(f"{file.shown}: has several columns {twice[0]!r}; rename all but one of them, or exclude the file")
    return not twice


def keys_of(schema: pa.Schema, column: str) -> list[str]:
    """The keys that lead from a column of structs to the text."""
    return [] if column in schema.names else column.split(".")[1:]


def kind_of_column(schema: pa.Schema, column: str, file: SourceFile, remedy: str, bad: BadRows) -> pa.DataType | None:
    """The type of a file's column. One that is not there, or is there twice, is reported with a remedy."""
    if schema.names.count(column) > 1:
        bad.report(f"{file.shown}: has several columns {column!r}, only {names(schema.names)}; {remedy}")
        return None

    kind = type_of(schema, column)
    if kind is None:
        columns = names(column_paths(nested_columns(schema)))
        bad.report(f"{file.shown}: has no column {column!r}, only {columns}; {remedy}")
    return kind


def _holds_text(schema: pa.Schema, file: SourceFile, source: Source, bad: BadRows) -> bool:
    column = source.text_column
    remedy = f"set text_column of the source {source.name} to the one that holds the text"
    kind = kind_of_column(schema, column, file, remedy, bad)
    if kind is None:
        return False

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _TEXT_TYPES):
        bad.report(f"{file.shown}: the column {column!r} holds {kind}, not text; {remedy}")
        return False
    return True


def type_of(schema: pa.Schema, column: str) -> pa.DataType | None:
    """The type of a column, or of a field in columns of structs; None if there is none of this name."""
    if column in schema.names:
        return schema.field(column).type

    kind: pa.DataType = pa.struct(list(schema)) if len(set(schema.names)) == len(schema.names) else pa.null()
    for key in column.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
            return None
        kind = kind.field(key).type
    return kind


def nested_columns(schema: pa.Schema) -> Mapping[str, Any]:
    """Columns as a row's keys: those of structs with their fields' names below them."""
    return {
        field.name: {inner.name: None for inner in field.type} if pa.types.is_struct(field.type) else None
        for field in schema
    }


def _text(value: pa.Scalar, keys: list[str], where: str, column: str, bad: BadRows) -> str | None:
    try:
        plain = value.as_py()
        for key in keys:
            plain = plain and plain[key]
    except UnicodeDecodeError:
        report_not_utf8(where, column, bad)
        return None
    return text_value(plain, where, column, bad)
