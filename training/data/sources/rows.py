"""Reads the sources of a recipe as a stream of whole rows, in bounded memory.

JSON is read by Python's own reader and never through Arrow, which gives every object of a file the keys of all others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.sources.bad_rows import BadRows
from training.data.sources.fetching import fetch_all, fetched
from training.data.sources.formats import ARROW, CSV, JSON, JSON_LINES, PARQUET, TEXT
from training.data.sources.parquet_reader import arrow_rows, parquet_rows
from training.data.sources.readers import FileRow, csv_rows, json_line_rows, json_rows, text_rows
from training.data.sources.reading import check_builder, dataset_error, items_of_files, not_of_the_split
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import (
    PROJECT_ROOT,
    SourceFile,
    format_in,
    list_source,
    local_dataset,
    require_unchanged,
)
from training.data.sources.source_state import pinned_revision
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
_HUB = re.compile(r"hf://datasets/(?P<dataset>[^@]+)@[^/]+/(?P<name>.+)")


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
    if source.dataset is not None:
        return _dataset_files(source, base, left_out)
    listing = list_source(source, base)
    left_out.update(listing.left_out)
    return listing.all_files if source.limit is not None else fetch_all(listing.all_files, source.name, pool)


def read_rows_of(
    source: Origin, files: Sequence[SourceFile | RemoteFile], bad: BadRows, folder: Path, left_out: Counter[str]
) -> Iterator[SourceRow]:
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

    def read(listed: SourceFile | RemoteFile) -> Iterator[SourceRow]:
        file = fetched(listed, source.name, folder) if isinstance(listed, RemoteFile) else listed
        format_ = format_in(file.name, source)
        if format_ is None:
            raise SourceError(f"source {source.name}: {file.shown} has no format that can be read; exclude it")
        for row in _READERS[format_](file, bad):
            yield SourceRow(f"{file.name}:{row.number}", row.where, row.value)
        require_unchanged(file)

    yield from items_of_files(files, read, source, bad, left_out)


def _dataset_files(source: Origin, base: Path, left_out: Counter[str]) -> list[SourceFile]:
    """The files that a dataset's split names, on this machine. Code in datasets is never run.

    The library says only which files they are. It would read JSON through Arrow.
    """
    import datasets  # takes 1.5 s, and most recipes have no dataset

    folder = local_dataset(source, base)
    revision = None if folder else pinned_revision(source)
    try:
        builder = datasets.load_dataset_builder(str(folder or source.dataset), source.config, revision=revision)
        check_builder(builder, source, folder)
        by_split = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    except SourceError:
        raise
    except Exception as error:  # the library documents no errors; the network, the hub or the data can fail
        raise dataset_error(source, error) from error

    if source.split not in by_split:
        raise SourceError(
            f"source {source.name}: the dataset {source.dataset} has no split {source.split}, only "
            f"{', '.join(sorted(by_split)) or 'none'}; name one of them as it is"
        )
    if folder is not None:
        left_out.update(not_of_the_split(builder, source, base))
    return [_dataset_file(str(file), folder, source) for file in sorted(map(str, by_split[source.split]))]


def _dataset_file(address: str, folder: Path | None, source: Origin) -> SourceFile:
    """A dataset's file, fetched from the hub where it does not lie here."""
    if "://" not in address:
        path = Path(address)
        name = path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else path.name
        return SourceFile(path, name, path.stat())

    from huggingface_hub import hf_hub_download

    parts = _HUB.fullmatch(address)
    if parts is None:
        raise SourceError(f"source {source.name}: the dataset names the file {address}, which is not its own")
    try:
        path = Path(
            hf_hub_download(parts["dataset"], parts["name"], repo_type="dataset", revision=pinned_revision(source))
        )
    except Exception as error:  # the network and the hub can fail in many ways
        raise dataset_error(source, error) from error
    return SourceFile(path, parts["name"], path.stat())
