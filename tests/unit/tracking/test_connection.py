"""Nothing that MLflow does can end a run, whatever it raises and however long it takes."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from pipeline.tracking.connection import Connection
from tests.patience import at_most
from training.specs.evidence import EvaluationReport


class NoCredentialsError(Exception):
    """As botocore's: of no class that MLflow names."""


class Client:
    """Stands for MLflow's."""

    def say(self) -> str:
        return "hello"


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    made = Connection("sqlite:///never.db", patience=0.2)
    monkeypatch.setattr(made, "_client", Client())
    return made


def damaged(_: Any) -> str:
    return str(EvaluationReport.model_validate_json("{"))


def unreachable(_: Any) -> str:
    raise ConnectionError("refused by http://ann:canary@host:5000")


def test_an_answer_is_returned(connection: Connection) -> None:
    assert connection.attempt("ask", lambda client: client.say(), "") == "hello"


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError("Unable to locate credentials for s3://ann:canary@bucket"),
        ModuleNotFoundError("no boto3"),
        FileNotFoundError("report.json"),
        KeyError("a defect"),
    ],
)
def test_an_error_of_any_kind_is_said_once_and_ends_nothing(
    connection: Connection, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Any) -> str:
        raise error

    with caplog.at_level(logging.WARNING, logger="gatehouse.tracker"):
        for _ in range(2):
            assert connection.attempt("record it", fails, "nothing") == "nothing"
    [record] = caplog.records
    assert type(error).__name__ in record.getMessage() and "canary" not in record.getMessage()
    assert connection.attempt("ask", lambda client: client.say(), "") == "hello", "MLflow itself is there"


def test_a_damaged_file_ends_nothing(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gatehouse.tracker"):
        assert connection.attempt("record it", damaged, "nothing") == "nothing"
    assert "ValidationError" in caplog.text


def test_an_mlflow_that_is_away_is_left_alone_for_a_while(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    assert connection.attempt("record it", unreachable, "nothing") == "nothing"
    assert "canary" not in caplog.text
    assert connection.attempt("ask", lambda client: client.say(), "nothing") == "nothing" and connection.is_down


def test_a_call_that_never_returns_is_given_up(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.tracking.connection._CALL_SECONDS", 0.2)
    answer = threading.Event()
    with at_most(5):
        assert connection.attempt("record it", lambda _: answer.wait(), False) is False
    assert "TimeoutError: no answer within 0.4 s" in caplog.text
    answer.set()
