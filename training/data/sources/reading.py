"""Reads the sources of a recipe as a stream of documents, in bounded memory."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from training.data.custom_code import CustomCode
from training.data.sources.bad_rows import LONGEST_MESSAGE, BadRows, is_clean, names, row_text, text_value
from training.data.sources.decompression import DECOMPRESSION_ERRORS
from training.data.sources.formats import ARROW, CSV, HTML, JSON, JSON_LINES, PARQUET, TEXT
from training.data.sources.html_pages import HtmlPages
from training.data.sources.parquet_reader import read_arrow, read_parquet
from training.data.sources.readers import read_csv, read_html, read_json, read_json_lines, read_text
from training.data.sources.source_files import (
    PROJECT_ROOT,
    SourceFile,
    format_in,
    is_function_alone,
    list_source,
    local_dataset,
    require_unchanged,
)
from training.data.sources.source_state import pinned_revision
from training.errors import SourceError
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

# The longest document takes 1 GB as bytes, text and the row around it; a row group of parquet takes as much.
READING_MEMORY = 4 * 2**30
_TOO_MUCH_MEMORY = f"it takes more than {READING_MEMORY >> 30} GB of memory"
STDLIB_LICENCE = "PSF-2.0"
WITHOUT_DOCUMENT, BEYOND_LIMIT = "without a row of text", "beyond max_documents"
WITHOUT_ROW, BEYOND_ROWS = "without a row", "beyond max_rows"
_DATASET_FORMATS = ("parquet", "json", "csv", "text", "arrow")  # the others decode archives, images and the like
_READERS: dict[str, Callable[[SourceFile, Source, BadRows], Iterator[tuple[str, str]]]] = {
    TEXT: read_text,
    HTML: read_html,
    JSON_LINES: read_json_lines,
    JSON: read_json,
    CSV: read_csv,
    PARQUET: read_parquet,
    ARROW: read_arrow,
}
ItemT = TypeVar("ItemT")
OnLost = Callable[[str, str], None]  # gets the path of a page and the reason for which it gave no text


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


def _ignore(_path: str, _reason: str) -> None:
    pass


def read_source(
    source: Source,
    bad: BadRows,
    base: Path = PROJECT_ROOT,
    left_out: Counter[str] | None = None,
    on_lost: OnLost = _ignore,
    code: CustomCode | None = None,
) -> Iterator[Document]:
    """The documents of one source, in the order of its files' names.

    Args:
        source: What to read.
        bad: Where every row and file that cannot be read is reported.
        base: The folder that relative paths start from.
        left_out: Files and pages that give no document are counted here, by reason.
        on_lost: Is called for each page of HTML that gives none.
        code: The recipe's own, with the function of the source.

    Raises:
        SourceError: Nothing is there to read, or `bad` refuses a row.
        RecipeError: A function of the recipe's own code fails.
    """
    counted = Counter[str]() if left_out is None else left_out
    if source.dataset is not None:
        return _read_dataset(source, bad, base, counted, on_lost)
    if is_function_alone(source):
        return itertools.islice(_custom_documents(source, code, bad), source.limit)
    listing = list_source(source, base)
    counted.update(listing.left_out)
    return read_files(source, listing.files, bad, counted, on_lost, code)


def licence_of(source: Source) -> str | None:
    """The licence recorded for a source's documents."""
    return source.licence or (STDLIB_LICENCE if source.stdlib else None)


def read_files(
    source: Source,
    files: Sequence[SourceFile],
    bad: BadRows,
    left_out: Counter[str],
    on_lost: OnLost = _ignore,
    code: CustomCode | None = None,
) -> Iterator[Document]:
    """The documents of some files of a source, in their order; see `read_source`."""
    page_texts = _PageTexts(bad, left_out, on_lost)

    def read(file: SourceFile) -> Iterator[Document]:
        if source.function is not None:
            yield from _custom_documents(source, code, bad, file)
            require_unchanged(file)
            return

        format_ = format_in(file.name, source) or TEXT
        texts = _READERS[format_](file, source, bad)
        if format_ == HTML or (source.text_format == "html" and format_ != TEXT):
            texts = page_texts.of(texts)
        for path, text in texts:
            yield Document(text, source.name, path, licence_of(source))
        require_unchanged(file)

    return items_of_files(files, read, source, bad, left_out)


def _custom_documents(
    source: Source, code: CustomCode | None, bad: BadRows, file: SourceFile | None = None
) -> Iterator[Document]:
    """What the function of a source yields, of a file or of everything."""
    assert code is not None and source.function is not None
    where = f"{source.name}/{file.name}" if file else source.name
    arguments = (file.path,) if file else ()
    for number, document in enumerate(code.documents(source.function, where, *arguments), start=1):
        path = f"{file.name if file else source.function}#{number}"
        text = text_value(document.text, f"{source.name}/{path}", source.function, bad)
        if text is not None:
            yield Document(text, source.name, path, document.licence or licence_of(source))


class _PageTexts:
    """Takes the texts out of pages of HTML. A page that gives none is counted by its reason and is no document."""

    def __init__(self, bad: BadRows, left_out: Counter[str], on_lost: OnLost) -> None:
        self._pages, self._bad, self._left_out, self._on_lost = HtmlPages(), bad, left_out, on_lost

    def of(self, pages: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Paths of pages with their texts."""
        for path, markup in pages:
            page = self._pages.extract(markup)
            if page.reason:
                self._left_out[page.reason] += 1
                self._on_lost(path, page.reason)
            elif is_clean(page.text, path, self._bad):
                yield path, page.text


def items_of_files(
    files: Sequence[SourceFile],
    read: Callable[[SourceFile], Iterator[ItemT]],
    source: Origin,
    bad: BadRows,
    left_out: Counter[str],
) -> Iterator[ItemT]:
    """What the files of a source hold, in their order, up to the source's limit.

    Args:
        files: What to read.
        read: Reads one file.
        source: Whose files they are.
        bad: Where a file that cannot be read is reported.
        left_out: Files that give nothing are counted here, by reason.
    """
    count = 0
    for place, file in enumerate(files):
        if count == source.limit:
            left_out[BEYOND_LIMIT if isinstance(source, Source) else BEYOND_ROWS] += len(files) - place
            return

        before = count, bad.count, left_out.total()
        try:
            for item in read(file):
                count += 1
                yield item
                if count == source.limit:
                    break
        except (*DECOMPRESSION_ERRORS, pa.ArrowException, MemoryError) as error:
            bad.report(f"{file.path}: cannot be read ({_reason(error)}); repair or exclude it")

        if (count, bad.count, left_out.total()) == before:
            left_out[WITHOUT_DOCUMENT if isinstance(source, Source) else WITHOUT_ROW] += 1


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return _TOO_MUCH_MEMORY
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.strip().rstrip(".")


def _read_dataset(
    source: Source, bad: BadRows, base: Path, left_out: Counter[str], on_lost: OnLost
) -> Iterator[Document]:
    column = source.text_column
    rows, columns = _stream(source, base, left_out)
    if columns is not None and column not in columns and column.partition(".")[0] not in columns:
        raise SourceError(
            f"source {source.name}: the dataset {source.dataset} has no column {column!r}, only "
            f"{names(columns)}; set text_column to the one that holds the text"
        )

    texts: Iterator[tuple[str, str]] = (
        (f"{source.split}#{number}", text)
        for number, row in enumerate(rows, start=1)
        if (text := row_text(row, f"{source.dataset} ({source.split}): row {number}", column, bad)) is not None
    )
    if source.text_format == "html":
        texts = _PageTexts(bad, left_out, on_lost).of(texts)
    for path, text in itertools.islice(texts, source.max_documents):
        yield Document(text, source.name, path, source.licence)


def _stream(source: Source, base: Path, left_out: Counter[str]) -> tuple[Iterator[dict[str, Any]], list[str] | None]:
    """The rows of a dataset, and its columns where they are known beforehand. Code in datasets is never run."""
    import datasets  # takes 1.5 s, and most recipes have no dataset

    folder = local_dataset(source, base)
    revision = None if folder else pinned_revision(source)
    try:
        builder = datasets.load_dataset_builder(str(folder or source.dataset), source.config, revision=revision)
        check_builder(builder, source, folder)
        stream = builder.as_streaming_dataset(split=source.split)
        if folder is not None:
            left_out.update(not_of_the_split(builder, source, base))
    except SourceError:
        raise
    except Exception as error:  # the library documents no errors; the network, the hub or the data can fail
        raise dataset_error(source, error) from error

    def rows() -> Iterator[dict[str, Any]]:
        try:
            yield from stream
        except Exception as error:
            raise dataset_error(source, error) from error

    return rows(), stream.column_names


def check_builder(builder: Any, source: Origin, folder: Path | None) -> None:
    """Refuse formats that are not tables of text, and a card that names files outside the dataset's folder."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _DATASET_FORMATS:
        raise SourceError(
            f"source {source.name}: the dataset {source.dataset} holds {kind} files, and Gatehouse reads "
            f"{', '.join(_DATASET_FORMATS)}; convert it"
        )
    if folder is None or source.follow_links:
        return

    root = os.path.realpath(folder)
    for file in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
        if not os.path.realpath(file).startswith(f"{root}{os.sep}"):
            raise SourceError(
                f"source {source.name}: {folder} names the file {file}, which lies outside of it; "
                "set follow_links: true of the source to read it, or correct the folder's README.md"
            )


def not_of_the_split(builder: Any, source: Origin, base: Path) -> Counter[str]:
    """Files of a dataset's folder that its split does not name, and those that no dataset can name, by reason."""
    # A split may be written `train[:10%]+validation`.
    splits = {part.partition("[")[0].strip() for part in source.split.split("+")}
    files = {
        os.path.realpath(file)
        for split, files in (builder.config.data_files or {}).items()
        for file in files
        if str(split) in splits
    }
    listing = list_source(source, base)
    others = sum(os.path.realpath(file.path) not in files for file in listing.files)
    return listing.left_out + Counter({f"not of the split {source.split}": others})


def dataset_error(source: Origin, error: Exception) -> SourceError:
    """What a person is told of a dataset that cannot be read."""
    message = str(error).strip()[:LONGEST_MESSAGE] or type(error).__name__
    reason = _TOO_MUCH_MEMORY if isinstance(error, MemoryError) else message
    return SourceError(
        f"source {source.name}: the dataset {source.dataset} cannot be read ({reason}); check its name, "
        "config, split and revision, and that the hub can be reached from here"
    )
