"""A cheap digest of the state of a recipe's sources. Imports nothing heavy: the control plane uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from training.data.sources.source_files import (
    PROJECT_ROOT,
    SourceFile,
    is_function_alone,
    is_stdlib,
    list_source,
    local_dataset,
    shown_reasons,
    unmatched_globs,
)
from training.errors import SourceError
from training.specs.base import digest_of
from training.specs.origin import Origin

_COMMIT = re.compile(r"[0-9a-f]{40}")


def source_state(sources: Iterable[Origin], base: Path = PROJECT_ROOT) -> str:
    """SHA-256 (hex) of the state of all sources: names, sizes, times and inodes of files, commits of datasets.

    No file is opened. The state changes with any write to a file, even one that sets its time of change back, and when
    another file is moved to its place. It also changes with a copy to another machine: the texts are gathered again
    there, and their content is the same. The standard library is installed and not written to, so its state is its
    names, sizes and times of change, the same wherever it was installed from the same package. What a function reads
    that gets no files is not known here.

    Raises:
        SourceError: A source has no file, or a dataset has no commit.
    """
    return digest_of([_state(source, base) for source in sources])


def _state(source: Origin, base: Path) -> list[object]:
    if source.dataset is not None and local_dataset(source, base) is None:
        return [source.name, source.dataset, source.config, source.split, pinned_revision(source)]
    if is_function_alone(source):
        return [source.name]  # the digest of its code is part of the identity as a file
    return [source.name, [_file_state(file, is_stdlib(source)) for file in list_source(source, base).files]]


def _file_state(file: SourceFile, installed: bool) -> list[object]:
    state = [file.name, file.bytes, file.status.st_mtime_ns]
    # Nobody can set a time of status change back, as `touch -r` does with the time of change.
    return state if installed else [*state, file.status.st_ctime_ns, file.status.st_ino]


def describe_source(source: Origin, base: Path = PROJECT_ROOT) -> str:
    """The files of a source that are read and left out, in one line: `notes: 497 files, 11.4 MB; left out: 3 .pdf`.

    Raises:
        SourceError: A source has no file, or a dataset has no commit.
    """
    if source.dataset is not None and local_dataset(source, base) is None:
        return f"{source.name}: the dataset {source.dataset} at {pinned_revision(source)[:12]}"
    if is_function_alone(source):
        return f"{source.name}: what a function yields; what it reads is not watched"
    listing = list_source(source, base)
    files = f"{len(listing.files):,} file{'' if len(listing.files) == 1 else 's'}"
    size = sum(file.bytes for file in listing.files)
    text = f"{source.name}: {files}, " + (f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB")
    text += f"; left out: {shown_reasons(listing.left_out)}" if listing.left_out else ""
    unmatched = unmatched_globs(source, listing)
    return f"{text}; no file matches {', '.join(unmatched)}" if unmatched else text


def pinned_revision(source: Origin) -> str:
    """The commit of a dataset on the hub.

    Raises:
        SourceError: It is missing, or is a name that can move, such as a branch.
    """
    if source.revision is None or not _COMMIT.fullmatch(source.revision):
        raise SourceError(
            f"source {source.name}: revision must be the commit of the dataset {source.dataset} (40 hex "
            f"digits, found {source.revision!r}); its page on the hub lists them under Files, History"
        )
    return source.revision
