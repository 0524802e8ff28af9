"""The way to the tracking store: environment, one-time creation, and what happens while it cannot be reached.

MLflow is imported inside functions only. A call that fails, however it fails, is logged and answered with the caller's
fallback. After a call that could not reach the store nothing is tried for a while, so that a dead server costs a run
seconds and not minutes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.paths import home
from pipeline.tracking.database import artifacts_beside, prepared, sqlite_file

logger = logging.getLogger("gatehouse.tracker")

DOWN_SECONDS = 30.0
PATIENCE = 20.0
_ATTEMPTS = 3
_CALL_SECONDS = 20.0  # of one call; MLflow waits as long for SQLite's lock
_OPENING_SECONDS = 60.0  # more where MLflow has still to be imported, or its tables made
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):\S+@|(?<=[?&]password=)[^&\s]+")
# By default MLflow tries a dead server again for minutes, and may load pickled models.
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
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
_OF_A_STORE = {"MlflowException", "SQLAlchemyError", "OSError"}
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
        self._logged: set[str] = set()

    @property
    def artifact_location(self) -> str | None:
        """Where a new experiment keeps its artifacts: beside a SQLite file, in the home, or where the server says."""
        if database := sqlite_file(self._uri):
            return artifacts_beside(database)
        return (home() / "mlflow" / "artifacts").as_uri() if self._is_database else None

    @property
    def is_down(self) -> bool:
        """True for a while after a call that could not reach the store."""
        return time.monotonic() < self._down_until

    def client(self) -> Any:
        """The `mlflow.MlflowClient`; the first call imports MLflow and prepares the database."""
        with self._opening:
            if self._client is None:
                for name, value in _ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `attempt` logs it in one line
                from mlflow import MlflowClient

                with prepared(self._uri):
                    if self._is_database:
                        _require_database(self._uri)
                    client = MlflowClient(self._uri, self._uri)
                    if self._is_database:
                        client.search_experiments(max_results=1)
                self._client = client

            return self._client

    def attempt(self, what: str, call: Callable[[Any], _T], fallback: _T) -> _T:
        """`call` with the client; `fallback` when the store is down, too slow, or refuses, or when anything else fails.

        The call must be idempotent. It is repeated when another process kept SQLite locked beyond MLflow's own 20
        seconds, or created the same row at the same moment. It runs in a thread of its own and may still be running
        there after it was given up.
        """
        if self.is_down:
            logger.debug("tracking is down: skipped to %s", what)
            return fallback

        for repeat in range(_ATTEMPTS):
            try:
                return self._in_time(call)
            except Exception as error:  # boto3, other artifact stores and damaged files each raise their own
                if _is_collision(error) and repeat + 1 < _ATTEMPTS:
                    time.sleep(0.5 * (repeat + 1))
                    continue
                self._note(what, error)
                break

        return fallback

    @property
    def _is_database(self) -> bool:
        return not self._uri.startswith(("http://", "https://"))

    def _in_time(self, call: Callable[[Any], _T]) -> _T:
        """The answer of a call.

        Raises:
            TimeoutError: There is none in time.
        """
        answer: Future[_T] = Future()

        def work() -> None:
            try:
                answer.set_result(call(_Hurried(self.client(), self._patience)))
            except BaseException as error:
                answer.set_exception(error)

        limit = self._patience + _CALL_SECONDS + (_OPENING_SECONDS if self._client is None else 0.0)
        # A thread: nothing else gives up a call to a database that has stopped answering.
        thread = threading.Thread(target=work, name="gatehouse-tracker-call", daemon=True)
        thread.start()
        thread.join(limit)
        if not answer.done():
            raise TimeoutError(f"no answer within {limit:g} s")
        return answer.result()

    def _note(self, what: str, error: Exception) -> None:
        first_line = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {without_password(first_line)[:400]}"
        message = f"{what}; the run goes on without it: {reason}"
        if message not in self._logged:
            self._logged.add(message)
            logger.warning("MLflow could not %s", message)

        if _is_outage(error):
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
    return _PASSWORD.sub(lambda match: f"{match[1]}:***@" if match[1] is not None else "***", text)


def _is_outage(error: Exception) -> bool:
    """Whether the store is down. A refusal or a damaged file is no outage: the next call may succeed."""
    if isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in _REFUSALS:
        return False
    # By name: MLflow may be what cannot be imported.
    return not _OF_A_STORE.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _is_collision(error: Exception) -> bool:
    text = str(error).lower()
    return "database is locked" in text or "integrityerror" in text or "unique constraint" in text


def _require_database(uri: str) -> None:
    """Fail at once where a database does not answer: MLflow would try again for minutes."""
    if sqlite_file(uri):
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    engine.connect().close()
