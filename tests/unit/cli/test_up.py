"""What `gatehouse up` starts, and how it takes the loss of MLflow's server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import server, serving
from pipeline.jobs.local import free_port
from pipeline.paths import prepare
from training.errors import GatehouseError


class Dummy(server.Server):
    """A server that is one process without work."""

    instances: list[Dummy] = []

    def __init__(self, name: str, command: list[str], url: str, probe: str, lock: Path) -> None:
        super().__init__(name, [sys.executable, "-c", "import time; time.sleep(600)"], url, probe, lock)
        self.name = name
        self.instances.append(self)

    def await_answer(self) -> None:
        self.require_alive()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the variables that a command sets as they were."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own MLflow", "MLflow elsewhere"])
def test_an_mlflow_that_is_a_server_already_is_linked_to(
    monkeypatch: pytest.MonkeyPatch, elsewhere: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if elsewhere:
        os.environ["MLFLOW_TRACKING_URI"] = "http://ann:canary@localhost:1"
    monkeypatch.setattr(Dummy, "instances", [])
    monkeypatch.setattr(serving, "Server", Dummy)
    monkeypatch.setattr(serving, "repair", lambda *_: None)
    monkeypatch.setattr(serving, "_watch", interrupted)
    monkeypatch.setattr(serving.signal, "signal", lambda *_: None)
    prepare()
    own = free_port()
    serving.serve([], free_port(), own)
    assert [made.name for made in Dummy.instances] == (["dagster"] if elsewhere else ["mlflow", "dagster"])
    assert ("MLFLOW_BACKEND_STORE_URI" in os.environ) is not elsewhere
    said = capsys.readouterr().out
    assert ("http://localhost:1/#/" if elsewhere else f"http://127.0.0.1:{own}/#/") in said and "canary" not in said


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_end_of_a_log_shows_no_password(tmp_path: Path) -> None:
    code = "raise SystemExit('no store for postgresql://ann:canary@db/mlflow')"
    ended = server.Server("mlflow", [sys.executable, "-c", code], "http://127.0.0.1:1", "/health", tmp_path / "lock")
    ended.start()
    with pytest.raises(GatehouseError, match=r"no store for postgresql://ann:\*\*\*@db") as error:
        ended.await_answer()
    assert "canary" not in str(error.value)


class Flaky:
    """A server that ends, starts and answers when it is told to."""

    log = Path("mlflow.log")

    def __init__(self) -> None:
        self.starts = 0
        self.is_alive = self.does_answer = True

    def alive(self) -> bool:
        return self.is_alive

    def answers(self) -> bool:
        return self.does_answer

    def start(self) -> None:
        self.starts += 1


def test_a_lost_server_is_tried_again_and_again_and_each_thing_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: now[0])
    flaky, said = Flaky(), list[str]()
    standby = server.Standby(flaky, "MLflow", said.append)  # type: ignore[arg-type]
    standby.look()
    assert not flaky.starts and not said
    flaky.is_alive = False
    for look in range(40):
        standby.look()
        assert flaky.starts == 1 + look // 7, "at once, then every 30 seconds"
        now[0] += 5
    assert said == [
        "MLflow has ended; it is started again.",
        "MLflow does not start; that is tried again every 30 s, and runs go on without it. Its log is mlflow.log.",
    ]
    flaky.is_alive = True
    for _ in range(10):
        standby.look()
        now[0] += 5
    assert said[2:] == ["MLflow answers again."]
    flaky.is_alive = False
    standby.look()
    assert said[3:] == ["MLflow has ended; it is started again."]
