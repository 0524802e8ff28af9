"""The Dagster instance of this user."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.storage.event_log.migration import ASSET_KEY_INDEX_COLS
from dagster._core.storage.runs.migration import RUN_START_END
from dagster._core.storage.schedules.migration import SCHEDULE_TICKS_SELECTOR_ID

from pipeline.jobs.locks import in_turn
from pipeline.paths import home

_FOLDER = "GATEHOUSE_DAGSTER"
_DATABASES = {
    "history/runs.db": ("runs", RUN_START_END),
    "history/runs/index.db": ("event_logs", ASSET_KEY_INDEX_COLS),
    "schedules/schedules.db": ("instigators", SCHEDULE_TICKS_SELECTOR_ID),
}
"""Dagster's databases on SQLite: the table of each whose rows would be missed, and the last step of making it."""
_QUIET_SECONDS = 3.0


def open_instance() -> dg.DagsterInstance:
    """The instance, made if it is not there yet.

    One process makes it at a time. Two that made SQLite's tables at once would leave a version table with two rows, and
    no command could open that again. The tables are made beside their place and moved there once they are whole, so
    that a process that is killed meanwhile leaves nothing that counts.
    """
    with in_turn(home() / "instance.lock"):
        if _is_on_sqlite():
            _make_databases(Path(os.environ[_FOLDER]))
        return dg.DagsterInstance.get()


def _is_on_sqlite() -> bool:
    """Whether Dagster's settings keep its databases in the home, as they do out of the box."""
    settings = Path(os.environ["DAGSTER_HOME"]).expanduser() / "dagster.yaml"
    storage = (yaml.safe_load(settings.read_text(encoding="utf-8")) or {}).get("storage") if settings.exists() else None
    return storage == {"sqlite": {"base_dir": {"env": _FOLDER}}}


def _make_databases(folder: Path) -> None:
    """Make the databases that are not there, and anew those that a killed process left half-made.

    Once one of them holds anything, all are left to Dagster: it knows how to index what lies in the others.
    """
    lacking = [name for name, (_, last_step) in _DATABASES.items() if _is_lacking(folder / name, last_step)]
    if not lacking or any(_has_rows(folder / name, table) for name, (table, _) in _DATABASES.items()):
        return

    made = folder.with_name(f"{folder.name}-in-the-making")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with _pointed_to(made):
        dg.DagsterInstance.get().dispose()

    for name in lacking:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for old in (name, f"{name}-wal", f"{name}-shm"):  # SQLite would play a log back into the new database
            (folder / old).unlink(missing_ok=True)
        (made / name).replace(folder / name)
    shutil.rmtree(made)


def _is_lacking(database: Path, last_step: str) -> bool:
    """Whether a database is not there, or was left before it was whole.

    A database that a `dagster` command is making at this moment is waited for.
    """
    while database.exists():
        if _has_rows(database, "alembic_version") and _has_rows(database, "secondary_indexes", f"name = '{last_step}'"):
            return False
        if time.time() - database.stat().st_mtime > _QUIET_SECONDS:
            return True
        time.sleep(0.1)

    return True


def _has_rows(database: Path, table: str, where: str = "true") -> bool:
    """Whether a database has a table with a row for which an SQL condition holds."""
    if not database.exists():
        return False

    # rw: SQLite may have a log to play back, and must not create a database that does not exist.
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
        if not connection.execute("select 1 from sqlite_master where type = 'table' and name = ?", (table,)).fetchone():
            return False
        return connection.execute(f"select 1 from {table} where {where} limit 1").fetchone() is not None


@contextmanager
def _pointed_to(folder: Path) -> Iterator[None]:
    """Let Dagster's settings name another folder for a while."""
    before = os.environ[_FOLDER]
    os.environ[_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ[_FOLDER] = before
