"""Dagster's databases are whole after any kill while they were made, and what they hold is never made anew."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from pipeline.defs import instance
from pipeline.defs.instance import open_instance
from tests.conftest import ROOT

_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
_MAKE = "from pipeline.paths import prepare; prepare(); from pipeline.defs.instance import open_instance; "


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's settings out of the box; nothing is waited for."""
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    monkeypatch.setattr(instance, "_QUIET_SECONDS", 0.0)


def new_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    monkeypatch.setenv("GATEHOUSE_HOME", str(folder))
    monkeypatch.setenv("GATEHOUSE_DAGSTER", str(folder / "dagster"))
    return folder / "dagster"


def schema(folder: Path) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Each database's tables and indexes, its revision and the steps that are done."""
    schemas = {}
    for name in _DATABASES:
        with closing(sqlite3.connect(folder / name)) as connection:
            queries = (
                "select name from sqlite_master",
                "select version_num from alembic_version",
                "select name from secondary_indexes where migration_completed is not null",
            )
            objects, revision, steps = (sorted(row[0] for row in connection.execute(query)) for query in queries)
            schemas[name] = (objects, revision, steps)
    return schemas


def dying(make: Callable[[], object], statement: int) -> bool:
    """Run a function in a process that dies before its so-manieth SQL statement; return whether it came to that."""
    if (child := os.fork()) == 0:
        done = [0]

        def count(*_: object) -> None:
            done[0] += 1
            if done[0] == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        make()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """What is made where nobody is killed."""
    folder = new_home(tmp_path / "whole", monkeypatch)
    open_instance().dispose()
    assert not list(folder.parent.glob("*in-the-making*"))
    return schema(folder)


@pytest.mark.parametrize("make", [open_instance, dg.DagsterInstance.get], ids=["gatehouse", "dagster"])
def test_a_kill_while_the_databases_are_made_leaves_no_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], object],
    whole: dict[str, tuple[list[str], list[str], list[str]]],
) -> None:
    """Both a killed command of ours and a killed command of Dagster's."""
    for statement in range(5, 1000, 23):
        folder = new_home(tmp_path / f"home {statement}", monkeypatch)
        died = dying(make, statement)
        open_instance().dispose()
        assert schema(folder) == whole, f"killed before statement {statement}"
        if not died:
            break
    assert 100 < statement < 500, "the kills reach to the end of the making"


def test_what_an_instance_holds_is_never_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_home(tmp_path / "home", monkeypatch)
    opened = open_instance()
    opened.report_runless_asset_event(dg.AssetMaterialization("corpus"))
    opened.dispose()
    (folder / _DATABASES[2]).unlink()
    with closing(sqlite3.connect(folder / _DATABASES[1])) as connection, connection:
        connection.execute("delete from secondary_indexes")
    opened = open_instance()
    assert opened.get_latest_materialization_event(dg.AssetKey("corpus")) is not None
    opened.dispose()


def test_a_database_that_is_being_made_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, tuple[list[str], list[str], list[str]]]
) -> None:
    monkeypatch.setattr(instance, "_QUIET_SECONDS", 60.0)
    folder = new_home(tmp_path / "home", monkeypatch)
    assert dying(dg.DagsterInstance.get, 20)
    if (child := os.fork()) == 0:
        time.sleep(0.5)
        dg.DagsterInstance.get()
        os._exit(0)
    marker = (folder / _DATABASES[0]).stat().st_ino
    open_instance().dispose()
    os.waitpid(child, 0)
    assert (folder / _DATABASES[0]).stat().st_ino == marker, "it is the one that the other process made"
    assert whole.keys() == schema(folder).keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_first_command_is_interrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    whole: dict[str, tuple[list[str], list[str], list[str]]],
) -> None:
    folder = new_home(tmp_path / "home", monkeypatch)
    with subprocess.Popen(
        [sys.executable, "-c", _MAKE + "open_instance()"], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(tmp_path.glob("home/dagster*/history/runs.db")):
            time.sleep(0.002)
        process.send_signal(number)
    open_instance().dispose()
    assert schema(folder) == whole
