"""The way to the tracking store: environment, one-time creation, and what happens while it cannot be reached.

MLflow is imported inside functions only. A call that fails because the store is down is logged and answered with the
caller's fallback, and for a while nothing is tried at all: a dead server costs a run seconds rather than minutes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.environment import home

logger = logging.getLogger("gatehouse.tracker")

DOWN_SECONDS = 30.0
PATIENCE = 20.0
_ATTEMPTS = 3
_SQLITE = "sqlite:///"
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):\S+@|(?<=[?&]password=)[^&\s]+")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "PGCONNECT_TIMEOUT": "5",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
}
_T = TypeVar("_T")


class Connection:
    """One tracking store.

    Args:
        uri: `sqlite:///<file>`, another database's URL, or the URL of an MLflow server.
        patience: Seconds after which an attempt gives a slow server up.
    """

    def __init__(self, uri: str, patience: float = PATIENCE) -> None:
        self._uri = uri
        self._patience = patience
        self._client: Any = None
        self._opening = threading.Lock()
        self._down_until = 0.0

    @property
    def artifact_location(self) -> str | None:
        """Where a new experiment keeps its artifacts: beside a SQLite file, in the home, or where the server says."""
        if self._uri.startswith(_SQLITE):
            return (Path(self._uri.removeprefix(_SQLITE)).parent / "artifacts").absolute().as_uri()
        return (home() / "mlflow" / "artifacts").as_uri() if self._is_database else None

    @property
    def is_down(self) -> bool:
        """True for a while after a call that could not reach the store."""
        return time.monotonic() < self._down_until

    def client(self) -> Any:
        """The `mlflow.MlflowClient`; the first call imports MLflow and creates the database where there is none."""
        with self._opening:
            if self._client is None:
                for name, value in _ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `attempt` says it in one line
                from mlflow import MlflowClient
                with _one_process(self._uri):
                    if self._is_database:
                        _require_database(self._uri)
                    client = MlflowClient(self._uri, self._uri)
                    if self._is_database:
                        client.search_experiments(max_results=1)
                self._client = client
            return self._client

    def attempt(self, what: str, call: Callable[[Any], _T], fallback: _T) -> _T:
        """`call` with the client; `fallback` when the store is down, too slow, or refuses.

        The call is repeated when another process kept SQLite locked beyond MLflow's own 20 seconds, or created the
        same row at the same moment, so it must be idempotent.
        """
        if self.is_down:
            logger.debug("tracking is down: skipped to %s", what)
            return fallback
        for repeat in range(_ATTEMPTS):
            try:
                return call(_Hurried(self.client(), self._patience))
            except _failures() as error:
                if _is_collision(error) and repeat + 1 < _ATTEMPTS:
                    time.sleep(0.5 * (repeat + 1))
                    continue
                self._note(what, error)
                break
        return fallback

    @property
    def _is_database(self) -> bool:
        return not self._uri.startswith(("http://", "https://"))

    def _note(self, what: str, error: Exception) -> None:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("MLflow could not %s; the run goes on without it: %s", what, without_password(first_line)[:400])
        if not _is_refusal(error):
            self._down_until = time.monotonic() + DOWN_SECONDS


class _Hurried:
    """The client, until an attempt has taken too long: then its next call raises."""

    def __init__(self, client: Any, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def __getattr__(self, name: str) -> Any:
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"it is too slow: not done after {self._seconds:g} s")
        return getattr(self._client, name)


def without_password(text: str) -> str:
    """A text in which no URL shows its password."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else "***", text)


def _failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError
    return (MlflowException, SQLAlchemyError, OSError)


def _is_refusal(error: Exception) -> bool:
    """True when the store answered, and the answer was no: the next call may well succeed."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST",
                                                  "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")


def _is_collision(error: Exception) -> bool:
    text = str(error).lower()
    return "database is locked" in text or "integrityerror" in text or "unique constraint" in text


def _require_database(uri: str) -> None:
    """Fail at once where a database does not answer: MLflow alone would try again for minutes."""
    if uri.startswith(_SQLITE):
        return
    import sqlalchemy
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    engine.connect().close()


@contextmanager
def _one_process(uri: str) -> Iterator[None]:
    """Let one process at a time create a SQLite database: MLflow's migrations do not guard themselves."""
    if not uri.startswith(_SQLITE):
        yield
        return
    database = Path(uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
