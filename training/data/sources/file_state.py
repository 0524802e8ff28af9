"""By what a file of a source is told from the one that was listed. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from training.data.sources.file_names import printable
from training.data.sources.source_files import SourceFile
from training.errors import SourceError

_STATE = ("st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns")


def state_of(files: Iterable[SourceFile]) -> str:
    """Digest of the names and states of some files: another one if a file was written to or replaced."""
    states = [
        [
            *(file.remote.state if file.remote else [file.name, *(getattr(file.status, field) for field in _STATE)]),
            *([file.lines.start, file.lines.end] if file.lines else ()),
        ]
        for file in files
    ]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


@contextmanager
def unchanged(file: SourceFile) -> Iterator[None]:
    """Read a file inside of this, also up to a limit: one that changes since it was listed stops the job.

    What was read of it may be half of the old and half of the new. That counts more than a bad row in it.

    Raises:
        SourceError: It was written to, replaced or removed.
    """
    try:
        yield
    finally:
        _require_unchanged(file)


def _require_unchanged(file: SourceFile) -> None:
    try:
        status = file.path.stat()
    except OSError as error:
        raise SourceError(f"{printable(file.shown)}: {error.strerror} while it was read; start again") from error
    if any(getattr(status, field) != getattr(file.status, field) for field in _STATE):
        raise SourceError(
            f"{printable(file.shown)}: it changed while it was read; start again when nobody writes to it"
        )
