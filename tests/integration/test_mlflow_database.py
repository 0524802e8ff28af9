"""MLflow's SQLite database: whole after any kill, and at home wherever its folder is."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.database import _make, prepared
from pipeline.tracking.tracker import Tracker
from tests.integration.test_tracker import JOB, client_of

STEPS = (1, 60, 300, 700, 1100, 1600)
"""Of the some 1,670 statements by which MLflow makes its tables."""


class Interruption(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database that nobody has written to."""
    home = tmp_path_factory.mktemp("whole") / "home"
    with prepared(uri_in(home)):
        pass
    return home


def uri_in(home: Path) -> str:
    return f"sqlite:///{home}/mlflow/mlflow.db"


def database_in(home: Path) -> Path:
    return home / "mlflow" / "mlflow.db"


def at_statement(step: int, act: Any) -> Iterator[None]:
    """Let something happen before a statement, of any engine of this process."""
    import sqlalchemy

    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            act()

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", before)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", before)


def killed(home: Path, step: int, number: int) -> None:
    """Make the database in a process that a signal ends before a statement."""
    child = os.fork()
    if child == 0:
        try:
            for handled in (signal.SIGINT, signal.SIGTERM):
                signal.signal(handled, signal.default_int_handler if handled == signal.SIGINT else signal.SIG_DFL)
            next(at_statement(step, lambda: os.kill(os.getpid(), number)))
            with prepared(uri_in(home)):
                os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] != 0, "it was not killed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_kill_at_any_migration_leaves_nothing_half_made(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    for step in STEPS:
        killed(home, step, number)
        assert not database_in(home).exists()
    tracker = Tracker(uri_in(home), "tiny")
    run_id = tracker.begin("key", JOB)
    assert run_id is not None and client_of(uri_in(home)).get_run(run_id).info.status == "RUNNING"
    assert sorted(path.name for path in database_in(home).parent.glob(".*")) == [], "what a kill left is gone"


@pytest.mark.parametrize("step", [60, 1100])
def test_what_a_kill_once_left_half_made_is_made_anew(
    tmp_path: Path, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    database = database_in(tmp_path)
    database.parent.mkdir()

    def stop() -> None:
        raise Interruption

    listening = at_statement(step, stop)
    next(listening)
    with pytest.raises(Interruption):
        _make(database)
    next(listening, None)
    assert database.exists()
    assert Tracker(uri_in(tmp_path), "tiny").begin("key", JOB) is not None
    assert "was left half made and holds nothing: it is made anew" in caplog.text


def test_what_holds_a_run_is_never_made_anew(tmp_path: Path) -> None:
    database = database_in(tmp_path)
    database.parent.mkdir()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("INSERT INTO runs VALUES ('precious')")
    before = database.read_bytes()
    with prepared(uri_in(tmp_path)):
        assert database.read_bytes() == before


def test_a_whole_one_is_left_alone(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(whole, tmp_path / "home")
    before = database_in(tmp_path / "home").read_bytes()
    with prepared(uri_in(tmp_path / "home")):
        assert database_in(tmp_path / "home").read_bytes() == before
    assert not caplog.text


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_a_home_elsewhere_writes_nothing_to_the_old_one(
    whole: Path, tmp_path: Path, moved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking._tracking_service import utils as mlflow_utils

    old, new = tmp_path / "100% old", tmp_path / "new"
    shutil.copytree(whole, old)
    tracker = Tracker(uri_in(old), "tiny")
    run_id = tracker.begin("key", JOB)
    assert run_id is not None
    client = client_of(uri_in(old))
    client.log_text(run_id, "before", "first.txt")
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, "base_model", run_id)
    client.create_registered_model("base_model")
    client.create_model_version("base_model", model.artifact_location, run_id, await_creation_for=None)
    elsewhere = f"file://{tmp_path}/somebody's"
    client.create_experiment("somebody's", elsewhere)
    shutil.move(old, new) if moved else shutil.copytree(old, new)
    before = tree(old) if old.exists() else {}
    mlflow_utils._artifact_repos_cache.clear()  # as in a new process
    assert Tracker(uri_in(new), "tiny").begin("another", JOB) is not None
    client = client_of(uri_in(new))
    client.log_text(run_id, "after", "second.txt")
    assert {item.path for item in client.list_artifacts(run_id)} == {"first.txt", "second.txt"}
    root = (new / "mlflow" / "artifacts").as_uri()
    version = client.get_model_version("base_model", "1")
    for address in (
        client.get_run(run_id).info.artifact_uri,
        client.get_experiment(experiment).artifact_location,
        client.get_logged_model(model.model_id).artifact_location,
        version.source,
    ):
        assert address == root or address.startswith(f"{root}/")
    assert client.get_experiment_by_name("somebody's").artifact_location == elsewhere
    assert (tree(old) if old.exists() else {}) == before and old.exists() is not moved
    assert "was moved or copied: its artifacts are in" in caplog.text
