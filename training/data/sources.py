"""Reads the sources of a recipe as a stream of documents, in bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from training.data.source_state import (
    PLAIN_FORMATS,
    PROJECT_ROOT,
    SourceFile,
    format_of,
    local_dataset,
    pinned_revision,
    source_files,
)
from training.data.unpacking import UNPACKING_ERRORS, UnpackedTooMuch, allowance, opened
from training.errors import SourceError
from training.specs.raw_corpus import Source

MAX_DOCUMENT_BYTES = 64 * 2**20
READING_MEMORY = 4 * 2**30  # a longest document takes 1 GB in all its forms, a row group of parquet as much
STDLIB_LICENCE = "PSF-2.0"
_BATCH_ROWS = 256
_LIST_LIMIT = 100
_MAX_BLANK_LINES = 100_000  # packed, a gigabyte of them is one megabyte, and each takes as long as a short row
_DATASET_FORMATS = ("parquet", "json", "csv", "text", "arrow")  # the others decode archives, images and what not
_LONGEST_MESSAGE = 500  # a row's own keys are part of some, and a row may be long


class Document(NamedTuple):
    """One text and where it is from.

    `path` is the file's path relative to its source; a row of a .jsonl or .parquet file adds `#` and its number, which
    counts from 1.
    """

    text: str
    source: str
    path: str
    licence: str | None


class BadRows:
    """What happens to a row or file that cannot be read.

    Args:
        on_bad_row: Stop at the first one, or skip all of them.
        path: Every skipped row becomes a line of this JSONL file; it is there, empty, when none was skipped.

    Attributes:
        count: Rows and files that were skipped.
        listed: The messages of the first hundred.
    """

    def __init__(self, on_bad_row: Literal["fail", "skip"], path: Path) -> None:
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
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}..."
        if self._fail:
            raise SourceError(f"{message}, or set raw_corpus.on_bad_row: skip to leave out what cannot be read")
        self.count += 1
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"message": message}) + "\n")
        if len(self.listed) < _LIST_LIMIT:
            self.listed.append(message)


def read_source(source: Source, bad: BadRows, base: Path = PROJECT_ROOT) -> Iterator[Document]:
    """The documents of one source, in the order of its files' names.

    Args:
        source: What to read.
        bad: Told about every row and file that cannot be read.
        base: Where relative paths start.

    Raises:
        SourceError: Nothing is there to read, or `bad` refuses a row.
    """
    documents = _dataset(source, bad, base) if source.dataset is not None else _files(source, bad, base)
    for count, document in enumerate(documents):
        if count == source.max_documents:
            return
        yield document


def licence_of(source: Source) -> str | None:
    """The licence recorded for a source's documents."""
    return source.licence or (STDLIB_LICENCE if source.stdlib else None)


def _files(source: Source, bad: BadRows, base: Path) -> Iterator[Document]:
    for file in source_files(source, base):
        format_ = format_of(file.name)
        read: Callable[[SourceFile, Source, BadRows], Iterator[tuple[str, str]]] = (
            _plain if format_ in PLAIN_FORMATS else _jsonl if format_ == ".jsonl" else _parquet)
        try:
            for path, text in read(file, source, bad):
                yield Document(text, source.name, path, licence_of(source))
        except (*UNPACKING_ERRORS, pa.ArrowException, MemoryError) as error:
            bad.report(f"{file.path}: cannot be read ({_reason(error)}); repair or exclude it")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {READING_MEMORY >> 30} GB of memory"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.strip().rstrip(".")


def _plain(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    with opened(file.path, file.bytes) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        bad.report(f"{file.path}: one document of more than {MAX_DOCUMENT_BYTES >> 20} MB; split it, or make it a "
                   ".jsonl file with one document a line")
        return
    text = _decoded(data, f"{file.path}", bad)
    if text is not None:
        yield file.name, text


def _decoded(data: bytes, where: str, bad: BadRows) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad.report(f"{where}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); convert the file to UTF-8 or "
                   "exclude it")
        return None
    return text if _clean(text, where, bad) else None


def _clean(text: str, where: str, bad: BadRows) -> bool:
    """False, and reported, for text that UTF-8 files must not hold: NUL characters and lone surrogates."""
    if "\0" in text:
        bad.report(f"{where}: holds NUL characters, so it is not text; repair or exclude it")
        return False
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        bad.report(f"{where}: holds half of a surrogate pair, which UTF-8 cannot express; repair or exclude it")
        return False
    return True


def _jsonl(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    blank = 0
    with opened(file.path, file.bytes) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
            blank = 0 if line.strip() else blank + 1
            if blank and blank < _MAX_BLANK_LINES:
                continue
            where = f"{file.path}:{number}"
            if blank:
                bad.report(f"{where}: {blank:,} blank lines one after the other; repair or exclude the file")
                return
            if len(line) > MAX_DOCUMENT_BYTES:
                bad.report(f"{where}: a line of more than {MAX_DOCUMENT_BYTES >> 20} MB; put one document on each line")
                return
            text = _json_text(line, where, source.text_column, bad)
            if text is not None:
                yield f"{file.name}#{number}", text


def _json_text(line: bytes, where: str, column: str, bad: BadRows) -> str | None:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        bad.report(f"{where}: is not UTF-8 (byte 0x{line[error.start]:02x}); convert the file to UTF-8 or exclude it")
        return None
    except (ValueError, RecursionError) as error:
        bad.report(f"{where}: is not JSON ({error}); repair the line")
        return None
    if not isinstance(row, dict):
        bad.report(f"{where}: is a JSON {type(row).__name__}, not an object; write one object a line")
        return None
    if column not in row:
        bad.report(f"{where}: has no key {column!r}, only {_names(row)}; set text_column of the source {_COLUMN_HINT}")
        return None
    return _text_value(row[column], where, column, bad)


def _text_value(value: object, where: str, column: str, bad: BadRows) -> str | None:
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        bad.report(f"{where}: {column!r} is {found}, not text; repair the row {_COLUMN_HINT}")
        return None
    if len(value) > MAX_DOCUMENT_BYTES:
        bad.report(f"{where}: one document of more than {MAX_DOCUMENT_BYTES >> 20} MB; split it")
        return None
    return value if _clean(value, where, bad) else None


_COLUMN_HINT = "or choose the column that holds the text"


def _names(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"


def _parquet(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    column = source.text_column
    if not _text_column(pq.read_schema(file.path), file, source, bad):
        return
    # As a dictionary, because each of a batch's rows may be the same long text.
    with pq.ParquetFile(file.path, read_dictionary=[column]) as table:
        number, left = 0, allowance(file.bytes)
        for index in range(table.num_row_groups):
            group = table.metadata.row_group(index)
            average = max(1, group.total_byte_size // max(1, group.num_rows))
            first = number
            for batch in table.iter_batches(min(_BATCH_ROWS, MAX_DOCUMENT_BYTES // average + 1), [index], [column]):
                for value in batch.column(0):
                    number += 1
                    text = _parquet_text(value, f"{file.path}: row {number}", column, bad)
                    if text is not None:
                        left -= len(text)
                        if left < 0:
                            raise UnpackedTooMuch
                        yield f"{file.name}#{number}", text
            if number - first != group.num_rows:
                bad.report(f"{file.path}: row group {index} holds {number - first} rows, and its footer says "
                           f"{group.num_rows}; repair or exclude it")


def _text_column(schema: pa.Schema, file: SourceFile, source: Source, bad: BadRows) -> bool:
    column = source.text_column
    hint = f"set text_column of the source {source.name} to "
    if schema.names.count(column) != 1:
        found = "several columns" if column in schema.names else "no column"
        bad.report(f"{file.path}: has {found} {column!r}, only {_names(schema.names)}; {hint}the one that holds the "
                   "text")
        return False
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        bad.report(f"{file.path}: the column {column!r} holds {kind}, not text; {hint}one that does")
        return False
    return True


def _parquet_text(value: pa.Scalar, where: str, column: str, bad: BadRows) -> str | None:
    try:
        return _text_value(value.as_py(), where, column, bad)
    except UnicodeDecodeError:
        bad.report(f"{where}: {column!r} is not UTF-8; repair the row {_COLUMN_HINT}")
        return None


def _dataset(source: Source, bad: BadRows, base: Path) -> Iterator[Document]:
    rows, columns = _stream(source, base)
    if columns is not None and source.text_column not in columns:
        raise SourceError(f"source {source.name}: the dataset {source.dataset} has no column {source.text_column!r}, "
                          f"only {_names(columns)}; set text_column to the one that holds the text")
    for number, row in enumerate(rows, start=1):
        where = f"{source.dataset} ({source.split}): row {number}"
        text = _text_value(row.get(source.text_column), where, source.text_column, bad)
        if text is not None:
            yield Document(text, source.name, f"{source.split}#{number}", source.licence)


def _stream(source: Source, base: Path) -> tuple[Iterator[dict[str, Any]], list[str] | None]:
    """The rows of a dataset, and its columns where they are known beforehand; code in datasets is never run."""
    import datasets  # 1.5 s to import, and most recipes have no dataset

    folder = local_dataset(source, base)
    revision = None if folder else pinned_revision(source)
    try:
        builder = datasets.load_dataset_builder(str(folder or source.dataset), source.config, revision=revision)
        _check_builder(builder, source, folder)
        stream = builder.as_streaming_dataset(split=source.split)
    except SourceError:
        raise
    except Exception as error:
        raise _dataset_error(source, error) from error

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield from stream
        except Exception as error:
            raise _dataset_error(source, error) from error

    return rows(), stream.column_names


def _check_builder(builder: Any, source: Source, folder: Path | None) -> None:
    """Refuse formats that are not tables of text, and a card that names files outside the dataset's folder."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _DATASET_FORMATS:
        raise SourceError(f"source {source.name}: the dataset {source.dataset} holds files of the kind {kind}, and "
                          f"those that are read are {', '.join(_DATASET_FORMATS)}; convert it")
    if folder is None:
        return
    root = os.path.realpath(folder)
    for file in (file for found in (builder.config.data_files or {}).values() for file in found):
        if not os.path.realpath(file).startswith(f"{root}{os.sep}"):
            raise SourceError(f"source {source.name}: {folder} names the file {file}, which lies outside of it; "
                              "correct its README.md or remove the link")


def _dataset_error(source: Source, error: Exception) -> SourceError:
    reason = f"it takes more than {READING_MEMORY >> 30} GB of memory" if isinstance(error, MemoryError) else \
        str(error).strip()[:_LONGEST_MESSAGE] or type(error).__name__
    return SourceError(f"source {source.name}: the dataset {source.dataset} cannot be read ({reason}); check its name, "
                       "config, split and revision, and that the hub can be reached from here")
