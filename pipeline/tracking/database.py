"""MLflow's SQLite database: it is made whole or not at all, and finds its artifacts where the folder is now.

MLflow makes its tables by some hundred migrations. A kill can leave them half done, and nothing heals that later. It
also writes the absolute address of every artifact into the database; a moved or copied folder keeps the old ones.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.jobs.locks import plain_lock
from training.store.storage import fsync

logger = logging.getLogger("gatehouse.tracker")

_SQLITE = "sqlite:///"
_BESIDE = ("", "-journal", "-wal", "-shm")
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database, None for any other tracking store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifacts_beside(database: Path) -> str:
    """Address of the folder beside a database that holds its artifacts."""
    return (database.parent / "artifacts").absolute().as_uri()


@contextmanager
def prepared(uri: str) -> Iterator[None]:
    """Make a SQLite database where there is none, let it point to its artifacts, and keep other processes away.

    Two that open a new database would both write MLflow's default experiment, and one of them would fail. Nothing
    happens for any other tracking store.
    """
    database = sqlite_file(uri)
    if database is None:
        yield
        return

    database.parent.mkdir(parents=True, exist_ok=True)
    with plain_lock(database.with_name(f"{database.name}.lock")):
        _make_whole(database)
        _follow_the_folder(database)
        yield


def prepare(uri: str) -> None:
    """Do the same for a server that opens the database by itself. A failure is only logged."""
    try:
        with prepared(uri):
            pass
    except Exception as error:
        logger.warning("MLflow's database could not be prepared: %s: %s", type(error).__name__, error)


def _make_whole(database: Path) -> None:
    for half_made in database.parent.glob(f".{database.name}-*"):  # left by a kill: this process has the lock
        half_made.unlink()
    if database.exists() and (_holds_anything(database) or _is_whole(database)):
        return

    if database.exists():
        logger.warning("%s was left half made and holds nothing: it is made anew", database)
        for suffix in _BESIDE:
            database.with_name(database.name + suffix).unlink(missing_ok=True)

    # Made under another name, and renamed when it is whole: a kill in between leaves nothing that counts.
    temporary = database.with_name(f".{database.name}-{uuid.uuid4().hex[:8]}")
    _make(temporary)
    fsync(temporary)
    temporary.replace(database)
    fsync(database.parent)


def _make(path: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    engine = _engine(path)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def _is_whole(database: Path) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _all_tables_exist, _verify_schema

    engine = _engine(database)
    try:
        _verify_schema(engine)
        return bool(_all_tables_exist(engine))
    except MlflowException:
        return False
    finally:
        engine.dispose()


def _engine(path: Path) -> Any:
    """An engine that does not wait for the disk: the file is synced once, when it is whole."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(path)))

    @sqlalchemy.event.listens_for(engine, "connect")
    def _unsynced(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return engine


def _holds_anything(database: Path) -> bool:
    """Whether somebody wrote to a database; one that cannot be read may hold everything."""
    user_rows = (("runs", ""), ("registered_models", ""), ("experiments", "WHERE experiment_id != 0"))
    try:
        with closing(sqlite3.connect(database)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return any(
                table in tables and connection.execute(f"SELECT 1 FROM {table} {condition} LIMIT 1").fetchone()
                for table, condition in user_rows
            )
    except sqlite3.DatabaseError:
        return True


def _follow_the_folder(database: Path) -> None:
    """Replace the addresses of artifacts that lie beside the database as it was called before it was moved or copied.

    Artifacts that a person keeps elsewhere are left alone: only a folder with the same last two names counts as ours.
    """
    now = artifacts_beside(database)
    tail = f"/{'/'.join(now.split('/')[-2:])}"
    try:
        _rewrite(database, now, tail)
    except sqlite3.DatabaseError as error:
        logger.warning("%s cannot be searched for addresses of an earlier folder: %s", database, error)


def _rewrite(database: Path, now: str, tail: str) -> None:
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments WHERE experiment_id != 0")
        for (before,) in locations.fetchall():
            if before == now or not before or not before.startswith("file:") or not before.endswith(tail):
                continue

            for table, column in _ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                )
            message = "the folder of MLflow's database was moved or copied: its artifacts are in %s, no longer in %s"
            logger.warning(message, now, before)
