"""One message about a full disk, wherever it is noticed: in a file, in Dagster's database or in MLflow's."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline.paths import home

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_FOR_A_PAGE = 65_536  # bytes; with less SQLite may call a full disk an I/O error


def explain_full_disk(error: BaseException) -> str:
    """One message about the full disk, if an error or one of its causes is about that; else empty."""
    for cause in _causes(error):
        folder = _folder(cause)
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _is_full_database(cause, folder):
            free = shutil.disk_usage(folder).free
            return (
                f"{folder}: the disk is full, {free / 1000:,.0f} kB are free; make room there and start the same "
                "command again: nothing that was published is lost, and it goes on where it stopped"
            )
    return ""


def _is_full_database(error: BaseException, folder: Path) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False

    name = getattr(error, "sqlite_errorname", "")
    return name == "SQLITE_FULL" or (
        name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and shutil.disk_usage(folder).free < _ROOM_FOR_A_PAGE
    )


def _folder(error: BaseException) -> Path:
    """The folder of the file that an error names, or of all state."""
    named = getattr(error, "filename", None)
    folder = Path(named).absolute().parent if isinstance(named, str) else home()
    # The folder itself may be what could not be made.
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, nearest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
