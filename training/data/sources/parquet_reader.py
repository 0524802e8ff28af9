"""Reads the text column of a parquet file, in bounded memory."""

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
from training.data.sources.source_files import SourceFile
from training.specs.raw_corpus import Source

_BATCH_ROWS = 256
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

    keys = [] if column in schema.names else column.split(".")[1:]
    # As a dictionary, because each of a batch's rows may be the same long text.
    with pq.ParquetFile(file.path, read_dictionary=[column]) as table:
        number, left = 0, allowance(file.bytes)
        for index in range(table.num_row_groups):
            group = table.metadata.row_group(index)
            average_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
            batch_rows = min(_BATCH_ROWS, MAX_DOCUMENT_BYTES // average_bytes + 1)
            first = number

            for batch in table.iter_batches(batch_rows, [index], [column]):
                for value in batch.column(0):
                    number += 1
                    text = _text(value, keys, f"{file.path}: row {number}", column, bad)
                    if text is None:
                        continue
                    left -= len(text)
                    if left < 0:
                        raise DecompressionBomb
                    yield f"{file.name}#{number}", text

            # pyarrow gives the rows that are there, and does not compare their number with the footer's.
            if number - first != group.num_rows:
                bad.report(
                    f"{file.path}: row group {index} holds {number - first} rows, and its footer says "
                    f"{group.num_rows}; repair or exclude it"
                )


def _holds_text(schema: pa.Schema, file: SourceFile, source: Source, bad: BadRows) -> bool:
    column = source.text_column
    remedy = f"set text_column of the source {source.name} to the one that holds the text"
    if schema.names.count(column) > 1:
        bad.report(f"{file.path}: has several columns {column!r}, only {names(schema.names)}; {remedy}")
        return False

    kind = _type_of(schema, column)
    if kind is None:
        columns = names(column_paths(_nested(schema)))
        bad.report(f"{file.path}: has no column {column!r}, only {columns}; {remedy}")
        return False

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _TEXT_TYPES):
        bad.report(f"{file.path}: the column {column!r} holds {kind}, not text; {remedy}")
        return False
    return True


def _type_of(schema: pa.Schema, column: str) -> pa.DataType | None:
    """The type of a column, or of a field in columns of structs; None if there is none of this name."""
    if column in schema.names:
        return schema.field(column).type

    kind: pa.DataType = pa.struct(list(schema)) if len(set(schema.names)) == len(schema.names) else pa.null()
    for key in column.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
            return None
        kind = kind.field(key).type
    return kind


def _nested(schema: pa.Schema) -> Mapping[str, Any]:
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
