"""Reads the sources of a recipe as a stream of documents, in bounded memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa

from training.data.custom_code import CustomCode
from training.data.sources.bad_rows import BadRows, is_clean, text_value
from training.data.sources.dataset_files import files_of
from training.data.sources.decompression import DECOMPRESSION_ERRORS
from training.data.sources.fetching import fetched
from training.data.sources.file_names import format_in
from training.data.sources.file_state import unchanged
from training.data.sources.formats import ARROW, CSV, HTML, JSON, JSON_LINES, PARQUET, TEXT
from training.data.sources.html_pages import HtmlPages
from training.data.sources.parquet_reader import read_arrow, read_parquet
from training.data.sources.readers import (
    is_lfs_pointer,
    read_csv,
    read_html,
    read_json,
    read_json_lines,
    read_text,
)
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import PROJECT_ROOT, SourceFile, is_function_alone
from training.data.sources.token_ids import TextsOfIds, read_ids
from training.specs.origin import Origin
from training.specs.raw_corpus import Source

# The longest document takes 1 GB as bytes, text and the row around it; a row group of parquet takes as much.
READING_MEMORY = 4 * 2**30
_TOO_MUCH_MEMORY = f"it takes more than {READING_MEMORY >> 30} GB of memory"
_BEGINNING = 1024  # bytes; a pointer of Git LFS is shorter
STDLIB_LICENCE = "PSF-2.0"
WITHOUT_DOCUMENT, BEYOND_LIMIT = "without a row of text", "beyond max_documents"
WITHOUT_ROW, BEYOND_ROWS = "without a row", "beyond max_rows"
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
    folder: Path,
    base: Path = PROJECT_ROOT,
    left_out: Counter[str] | None = None,
    on_lost: OnLost = _ignore,
    code: CustomCode | None = None,
    decoder: TextsOfIds | None = None,
) -> Generator[Document]:
    """The documents of one source, in the order of its files' names.

    Args:
        source: What to read.
        bad: Where every row and file that cannot be read is reported.
        folder: Where remote files are fetched to.
        base: The folder that relative paths start from.
        left_out: Files and pages that give no document are counted here, by reason.
        on_lost: Is called for each page of HTML that gives none.
        code: The recipe's own, with the function of the source.
        decoder: Decodes token ids, where the source holds them.

    Raises:
        SourceError: Nothing is there to read, or `bad` refuses a row.
        RecipeError: A function of the recipe's own code fails.
    """
    counted = Counter[str]() if left_out is None else left_out
    return read_files(source, files_of(source, counted, base), bad, folder, counted, on_lost, code, decoder)


def licence_of(source: Source) -> str | None:
    """The licence recorded for a source's documents."""
    return source.licence or (STDLIB_LICENCE if source.stdlib else None)


def read_files(
    source: Source,
    files: Sequence[SourceFile | RemoteFile],
    bad: BadRows,
    folder: Path,
    left_out: Counter[str],
    on_lost: OnLost = _ignore,
    code: CustomCode | None = None,
    decoder: TextsOfIds | None = None,
) -> Generator[Document]:
    """The documents of some files of a source, in their order; see `read_source`."""
    if is_function_alone(source):
        yield from itertools.islice(_custom_documents(source, code, bad), source.limit)
        return
    page_texts = _PageTexts(bad, left_out, on_lost)

    def read(file: SourceFile) -> Generator[Document]:
        with unchanged(file):
            if source.function is not None:
                with file.path.open("rb") as stream:
                    if is_lfs_pointer(stream.read(_BEGINNING), file, bad):
                        return
                yield from _custom_documents(source, code, bad, file)
                return
            for path, text in _texts_of(file, source, bad, page_texts, decoder):
                yield Document(text, source.name, path, licence_of(source))

    yield from items_of_files(files, read, source, folder, bad, left_out)


def _texts_of(
    file: SourceFile, source: Source, bad: BadRows, page_texts: _PageTexts, decoder: TextsOfIds | None
) -> Iterator[tuple[str, str]]:
    if source.input_ids is not None:
        assert decoder is not None, "a source of token ids is read with their tokenizer"
        return read_ids(file, source, decoder, bad)
    format_ = format_in(file.name, source) or TEXT
    texts = _READERS[format_](file, source, bad)
    is_html = format_ == HTML or (source.text_format == "html" and format_ != TEXT)
    return page_texts.of(texts) if is_html else texts


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
    files: Sequence[SourceFile | RemoteFile],
    read: Callable[[SourceFile], Generator[ItemT]],
    source: Origin,
    folder: Path,
    bad: BadRows,
    left_out: Counter[str],
) -> Generator[ItemT]:
    """What the files of a source hold, in their order, up to the source's limit.

    Args:
        files: What to read.
        read: Reads one file.
        source: Whose files they are.
        folder: Where a remote file is fetched to when it is its turn.
        bad: Where a file that cannot be read is reported.
        left_out: Files that give nothing are counted here, by reason.
    """
    count = 0
    for place, listed in enumerate(files):
        if count == source.limit:
            left_out[BEYOND_LIMIT if isinstance(source, Source) else BEYOND_ROWS] += len(files) - place
            return

        # Outside of what is caught below: a full disk is no bad file that may be skipped.
        file = fetched(listed, source.name, folder) if isinstance(listed, RemoteFile) else listed
        before = count, bad.count, left_out.total()
        try:
            with closing(read(file)) as items:
                for item in items:
                    count += 1
                    yield item
                    if count == source.limit:
                        break
        except (*DECOMPRESSION_ERRORS, pa.ArrowException, MemoryError) as error:
            bad.report(f"{file.shown}: cannot be read ({_reason(error)}); repair or exclude it")

        if file.lines is None and (count, bad.count, left_out.total()) == before:  # a piece of a file is no file
            left_out[WITHOUT_DOCUMENT if isinstance(source, Source) else WITHOUT_ROW] += 1


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return _TOO_MUCH_MEMORY
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.strip().rstrip(".")
