"""Readers of one file each: texts, pages of HTML, JSON lines, JSON and CSV.

Those of `read_...` yield pairs: a document's path (see `provenance`) and its text. Those of `..._rows` yield whole
rows, and the others take their texts from them. Rows that cannot be read are reported to `bad`. A file that cannot be
opened or decompressed raises one of `DECOMPRESSION_ERRORS`.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from training.data.sources.bad_rows import (
    MAX_BLANK_LINES,
    MAX_DOCUMENT_BYTES,
    BadRows,
    is_clean,
    names,
    row_text,
    text_value,
)
from training.data.sources.decompression import DecompressionBomb, open_decompressed
from training.data.sources.encodings import page_encoding, python_encoding
from training.data.sources.formats import suffix_of
from training.data.sources.json_items import JsonItems
from training.data.sources.source_files import SourceFile
from training.specs.raw_corpus import Source


class FileRow(NamedTuple):
    """One row of a file, as it was read.

    Attributes:
        number: Of the line or item in its file, from 1.
        where: File and row, for messages.
        value: What stands there; nothing was checked.
    """

    number: int
    where: str
    value: object


def read_text(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The one document of a file, in UTF-8; a Python file may declare another encoding in its first two lines."""
    yield from _text_of(file, bad)


def read_html(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The one page of a file, with its tags, in the encoding that it names."""
    yield from _text_of(file, bad, page_encoding)


def _text_of(
    file: SourceFile, bad: BadRows, encoding_in: Callable[[bytes], str] | None = None
) -> Iterator[tuple[str, str]]:
    with open_decompressed(file.path, file.bytes) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        bad.report(
            f"{file.path}: one document of more than {MAX_DOCUMENT_BYTES >> 20} MB; split it, or make it a "
            ".jsonl file with one document a line"
        )
        return

    if encoding_in is not None:
        encoding = encoding_in(data)
    else:
        # `utf-8-sig` is UTF-8 with or without a byte order mark.
        encoding = python_encoding(data) if suffix_of(file.name) == ".py" else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        bad.report(
            f"{file.path}: line {line} is not {name} (byte 0x{data[error.start]:02x}); convert the file to "
            "UTF-8 or exclude it"
        )
        return

    if is_clean(text, f"{file.path}", bad):
        yield file.name, text


def text_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The one text of a file as a row with the key `text`."""
    for _, text in _text_of(file, bad):
        yield FileRow(1, f"{file.path}", {"text": text})


def read_json_lines(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The documents of a file with one JSON object a line, or of a JSON array under the same suffix."""
    yield from _texts(json_line_rows(file, bad), file, source, bad)


def read_json(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The documents of a JSON array of objects, or of one or more objects that follow each other."""
    yield from _texts(json_rows(file, bad), file, source, bad)


def _texts(rows: Iterator[FileRow], file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    for row in rows:
        text = row_text(row.value, row.where, source.text_column, bad)
        if text is not None:
            yield f"{file.name}#{row.number}", text


def json_line_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The values of a file with one JSON value a line, or of a JSON array under the same suffix."""
    blank_lines, started = 0, False
    with open_decompressed(file.path, file.bytes) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
            blank_lines = 0 if line.strip() else blank_lines + 1
            if blank_lines and blank_lines < MAX_BLANK_LINES:
                continue

            where = f"{file.path}:{number}"
            if blank_lines:
                bad.report(f"{where}: {blank_lines:,} blank lines one after the other; repair or exclude the file")
                return

            # The suffix is not believed: a whole array is often saved under it.
            is_first, started = not started, True
            if is_first and line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                yield from _json_items(file, bad, stream, line)
                return

            if len(line) > MAX_DOCUMENT_BYTES:
                bad.report(f"{where}: a line of more than {MAX_DOCUMENT_BYTES >> 20} MB; put one row on each line")
                while line and not line.endswith(b"\n"):  # the rows after it are read all the same
                    line = stream.readline(MAX_DOCUMENT_BYTES + 1)
                continue

            try:
                value = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                byte = line[error.start]
                bad.report(f"{where}: is not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8 or exclude it")
            except (ValueError, RecursionError) as error:
                bad.report(f"{where}: is not JSON ({error}); repair the line")
            else:
                yield FileRow(number, where, value)


def json_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The items of a JSON array, or one or more values that follow each other."""
    with open_decompressed(file.path, file.bytes) as stream:
        yield from _json_items(file, bad, stream, b"")


def _json_items(file: SourceFile, bad: BadRows, stream: IO[bytes], start: bytes) -> Iterator[FileRow]:
    number = 0
    try:
        for number, value in enumerate(JsonItems(stream, start), start=1):
            yield FileRow(number, f"{file.path}: item {number}", value)
    except DecompressionBomb:
        raise  # also a ValueError, but one of the whole file and not of this item
    except UnicodeDecodeError as error:
        bad.report(
            f"{file.path}: what follows item {number} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert "
            "the file to UTF-8 or exclude it"
        )
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        bad.report(f"{file.path}: item {number + 1}: is not JSON ({reason}); the rest was not read; repair the file")


def read_csv(file: SourceFile, source: Source, bad: BadRows) -> Iterator[tuple[str, str]]:
    """The documents of a file of values separated by commas, or by tabs in .tsv, with a line of names first."""
    column = source.text_column
    for header, row, where, number in _csv_values(file, bad, lambda header: _has_column(header, file, source, bad)):
        text = _csv_text(row[header.index(column)], where, column, bad)
        if text is not None:
            yield f"{file.name}#{number}", text


def csv_rows(file: SourceFile, bad: BadRows) -> Iterator[FileRow]:
    """The rows of such a file as mappings from the names in its first line to texts."""
    for header, row, where, number in _csv_values(file, bad, lambda header: _has_distinct_names(header, file, bad)):
        texts = [_csv_text(value, where, name, bad) for name, value in zip(header, row, strict=True)]
        if None not in texts:
            yield FileRow(number, where, dict(zip(header, texts, strict=True)))


def _csv_values(
    file: SourceFile, bad: BadRows, is_usable: Callable[[list[str]], bool]
) -> Iterator[tuple[list[str], list[str], str, int]]:
    """The names of the first line, the values of a row, where it stands, and its number from 1.

    Values in double quotes may hold line ends, as in RFC 4180. A row with more or fewer values than the first line is
    bad: an unquoted comma cuts a text short, and the number of values is the only sign of it.

    Args:
        file: What to read.
        bad: Where a bad row is reported.
        is_usable: Whether rows with these names are read; it reports why not.
    """
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    with open_decompressed(file.path, file.bytes) as stream:
        reader = csv.reader(_csv_lines(stream), strict=True, delimiter="\t" if suffix_of(file.name) == ".tsv" else ",")
        rows = (row for row in reader if row)  # blank lines hold no row
        try:
            header = next(rows, None)
            if header is None or not is_usable(header):
                return

            for number, row in enumerate(rows, start=1):
                where = f"{file.path}:{reader.line_num}"
                if len(row) != len(header):
                    bad.report(
                        f"{where}: has {len(row)} values, and the first line {len(header)}; put values that "
                        "hold the separator in double quotes"
                    )
                    continue
                yield header, row, where, number
        except csv.Error as error:
            bad.report(f"{file.path}:{reader.line_num}: is not CSV ({error}); the rest was not read; repair the file")


def _csv_lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines of a CSV file. Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row alone."""
    blank_lines = 0
    for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
        blank_lines = 0 if line.strip() else blank_lines + 1
        if blank_lines == MAX_BLANK_LINES:
            raise csv.Error(f"{blank_lines:,} blank lines one after the other")
        if len(line) > MAX_DOCUMENT_BYTES:
            raise csv.Error(f"a line of more than {MAX_DOCUMENT_BYTES >> 20} MB")
        yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode(errors="surrogateescape")


def _has_column(header: list[str], file: SourceFile, source: Source, bad: BadRows) -> bool:
    if header.count(source.text_column) == 1:
        return True
    problem = "several columns" if source.text_column in header else "no column"
    bad.report(
        f"{file.path}: has {problem} {source.text_column!r}, only {names(header)}; set text_column of the source "
        f"{source.name} to the one that holds the text, or exclude the file"
    )
    return False


def _has_distinct_names(header: list[str], file: SourceFile, bad: BadRows) -> bool:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        bad.report(f"{file.path}: has several columns {twice[0]!r}; rename all but one of them, or exclude the file")
    return not twice


def _csv_text(value: str, where: str, column: str, bad: BadRows) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        bad.report(f"{where}: {column!r} is not UTF-8; convert the file to UTF-8 or exclude it")
        return None
    return text_value(value, where, column, bad)
