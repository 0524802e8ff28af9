"""A full disk is one message, wherever it was noticed."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy

from pipeline import full_disk
from pipeline.full_disk import explain_full_disk


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("GATEHOUSE_HOME", str(folder))
    return folder


def full_database(path: Path) -> sqlalchemy.exc.OperationalError:
    """What Dagster's storage raises when SQLite finds no room for a row."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("pragma max_page_count = 2"))
        connection.execute(sqlalchemy.text("create table event_logs (event text)"))
        with pytest.raises(sqlalchemy.exc.OperationalError) as error:
            connection.execute(sqlalchemy.text("insert into event_logs values (:event)"), {"event": "x" * 100_000})
    return error.value


def test_a_file_that_finds_no_room_is_told_with_its_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk.shutil, "disk_usage", lambda _path: SimpleNamespace(free=12_345))
    error = OSError(errno.ENOSPC, "No space left on device", str(home / "store" / "manifest.json"))
    assert explain_full_disk(error).startswith(f"{home}: the disk is full, 12 kB are free; make room there")


def test_a_database_that_finds_no_room_is_told_with_the_home(home: Path) -> None:
    assert f"{home}: the disk is full" in explain_full_disk(full_database(home / "index.db"))


def test_what_came_of_a_full_disk_is_a_full_disk_too(home: Path) -> None:
    step = RuntimeError("the step failed")
    step.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert f"{home}: the disk is full" in explain_full_disk(step)


@pytest.mark.parametrize(("free", "full"), [(0, True), (10**9, False)])
def test_an_io_error_of_a_database_is_a_full_disk_where_none_is_free(
    home: Path, monkeypatch: pytest.MonkeyPatch, free: int, full: bool
) -> None:
    monkeypatch.setattr(full_disk.shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_WRITE"
    assert bool(explain_full_disk(error)) is full


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        ValueError("full"),
        sqlite3.OperationalError("no such table: event_logs"),
    ],
)
def test_other_errors_are_none(home: Path, error: Exception) -> None:
    assert explain_full_disk(error) == ""
