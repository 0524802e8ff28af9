"""Reads the sources of a recipe as a stream of whole rows, in bounded memory.

JSON is read by Python's own reader and never through Arrow, which gives every object of a file the keys of all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.sources.bad_rows import BadRows
from training.data.sources.dataset_files import files_of
from training.data.sources.fetching import fetch_all
from training.data.sources.file_names import format_in
from training.data.sources.file_state import unchanged
from training.data.sources.formats import ARROW, CSV, JSON, JSON_LINES, PARQUET, TEXT
from training.data.sources.parquet_reader import arrow_rows, parquet_rows
from training.data.sources.readers import FileRow, csv_rows, json_line_rows, json_rows, text_rows
from training.data.sources.reading import items_of_files
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import PROJECT_ROOT, SourceFile
from training.errors import SourceError
from training.job.parts import Pool
from training.specs.origin import Origin

_READERS: dict[str, Callable[[SourceFile, BadRows], Iterator[FileRow]]] = {
    TEXT: text_rows,
    JSON_LINES: json_line_rows,
    JSON: json_rows,
    CSV: csv_rows,
    PARQUET: parquet_rows,
    ARROW: arrow_rows,
}


class SourceRow(NamedTuple):
    """One row of a source.

    Attributes:
        place: The file's path relative to its source, `:`, and the row's number from 1.
        where: The whole path and row, for messages.
        value: What stands there; nothing was checked.
    """

    place: str
    where: str
    value: object


def files_of_rows(
    source: Origin, pool: Pool, left_out: Counter[str], base: Path = PROJECT_ROOT
) -> Sequence[SourceFile | RemoteFile]:
    """The files of one source, in the order of their names. Remote ones are fetched, unless few of their rows are read.

    Args:
        source: A source with `path` or `dataset`.
        pool: Fetches.
        left_out: Files that are not read are counted here, by reason.
        base: The folder that relative paths start from.

    Raises:
        SourceError: Nothing is there to read, or a file cannot be fetched.
    """
    files = files_of(source, left_out, base)
    return files if source.limit is not None else fetch_all(files, source.name, pool)


def read_rows_of(
    source: Origin, files: Sequence[SourceFile | RemoteFile], bad: BadRows, folder: Path, left_out: Counter[str]
) -> Generator[SourceRow]:
    """The rows of the files of one source, in their order.

    Args:
        source: Whose files they are.
        files: What to read.
        bad: Where every row and file that cannot be read is reported.
        folder: Where remote files are fetched to.
        left_out: Files that give no row are counted here, by reason.

    Raises:
        SourceError: A file cannot be fetched or changes, or `bad` refuses a row.
    """

    def read(file: SourceFile) -> Generator[SourceRow]:
        format_ = format_in(file.name, source)
        if format_ is None:
            raise SourceError(f"source {source.name}: {file.shown} has no format that can be read; exclude it")
        with unchanged(file):
            for row in _READERS[format_](file, bad):
                yield SourceRow(f"{file.name}:{row.number}", row.where, row.value)

    return items_of_files(files, read, source, folder, bad, left_out)
