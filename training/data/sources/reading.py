"""Reads the sources of a recipe as a stream of documents, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa

from training.data.sources.bad_rows import BadRows
from training.data.sources.dataset_files import files_of
from training.data.sources.decompression import DECOMPRESSION_ERRORS
from training.data.sources.fetching import fetched
from training.data.sources.file_state import unchanged
from training.data.sources.formats import ARROW, CSV, JSON, JSON_LINES, PARQUET, TEXT
from training.data.sources.parquet_reader import read_arrow, read_parquet
from training.data.sources.readers import read_csv, read_json, read_json_lines, read_text
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import (
    PROJECT_ROOT,
    SourceFile,
    format_in,
)
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

# The longest document takes 1 GB as bytes, text and the row around it; a row group of parquet takes as much.
READING_MEMORY = 4 * 2**30
_TOO_MUCH_MEMORY = f"it takes more than {READING_MEMORY >> 30} GB of memory"
STDLIB_LICENCE = "PSF-2.0"
WITHOUT_DOCUMENT, BEYOND_LIMIT = "without a row of text", "beyond max_documents"
WITHOUT_ROW, BEYOND_ROWS = "without a row", "beyond max_rows"
_READERS: dict[str, Callable[[SourceFile, Source, BadRows], Iterator[tuple[str, str]]]] = {
    TEXT: read_text,
    JSON_LINES: read_json_lines,
    JSON: read_json,
    CSV: read_csv,
    PARQUET: read_parquet,
    ARROW: read_arrow,
}
ItemT = TypeVar("ItemT")


class Document(NamedTuple):
    """One text and where it is from.

    Attributes:
        text: The whole text.
        source: Name of the source in the recipe.
        path: The file's path relative to its source; for a row of a file, `#` and its number from 1 follow.
        licence: The licence of the text; None if the recipe names none.
    """

    text: str
    source: str
    path: str
    licence: str | None


def read_source(
    source: Source, bad: BadRows, folder: Path, base: Path = PROJECT_ROOT, left_out: Counter[str] | None = None
) -> Iterator[Document]:
    """The documents of one source, in the order of its files' names.

    Args:
        source: What to read.
        bad: Where every row and file that cannot be read is reported.
        folder: Where remote files are fetched to.
        base: The folder that relative paths start from.
        left_out: Files that give no document are counted here, by reason.

    Raises:
        SourceError: Nothing is there to read, or `bad` refuses a row.
    """
    counted = Counter[str]() if left_out is None else left_out
    return read_files(source, files_of(source, counted, base), bad, folder, counted)


def licence_of(source: Source) -> str | None:
    """The licence recorded for a source's documents."""
    return source.licence or (STDLIB_LICENCE if source.stdlib else None)


def read_files(
    source: Source, files: Sequence[SourceFile | RemoteFile], bad: BadRows, folder: Path, left_out: Counter[str]
) -> Iterator[Document]:
    """The documents of some files of a source, in their order; see `read_source`."""

    def read(listed: SourceFile | RemoteFile) -> Generator[Document]:
        file = fetched(listed, source.name, folder) if isinstance(listed, RemoteFile) else listed
        reader = _READERS[format_in(file.name, source) or TEXT]
        with unchanged(file):
            for path, text in reader(file, source, bad):
                yield Document(text, source.name, path, licence_of(source))

    return items_of_files(files, read, source, bad, left_out)


def items_of_files(
    files: Sequence[SourceFile | RemoteFile],
    read: Callable[[SourceFile | RemoteFile], Generator[ItemT]],
    source: Origin,
    bad: BadRows,
    left_out: Counter[str],
) -> Iterator[ItemT]:
    """What the files of a source hold, in their order, up to the source's limit.

    Args:
        files: What to read.
        read: Reads one file, and fetches it where it is remote.
        source: Whose files they are.
        bad: Where a file that cannot be read is reported.
        left_out: Files that give nothing are counted here, by reason.
    """
    count = 0
    for place, file in enumerate(files):
        if count == source.limit:
            left_out[BEYOND_LIMIT if isinstance(source, Source) else BEYOND_ROWS] += len(files) - place
            return

        count_before, bad_before = count, bad.count
        try:
            with closing(read(file)) as items:
                for item in items:
                    count += 1
                    yield item
                    if count == source.limit:
                        break
        except (*DECOMPRESSION_ERRORS, pa.ArrowException, MemoryError) as error:
            bad.report(f"{file.shown}: cannot be read ({_reason(error)}); repair or exclude it")

        # A part of a file is no file that was left out.
        is_whole = isinstance(file, RemoteFile) or file.lines is None
        if is_whole and (count, bad.count) == (count_before, bad_before):
            left_out[WITHOUT_DOCUMENT if isinstance(source, Source) else WITHOUT_ROW] += 1


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return _TOO_MUCH_MEMORY
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.strip().rstrip(".")
