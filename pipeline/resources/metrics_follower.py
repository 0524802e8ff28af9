"""Carries a job's metric events to MLflow in batches, from a thread of its own: a slow tracker never holds up a run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from pipeline.resources.mlflow_client import Connection, logger
from pipeline.resources.mlflow_records import entity_name

BATCH = 500
MAX_WAITING = 500_000


class Point(NamedTuple):
    """One value of one metric; `timestamp` in milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


def points_of(event: Mapping[str, Any]) -> list[Point]:
    """The points of a `metrics` event (training/events.py); none for other kinds."""
    if event.get("kind") != "metrics":
        return []
    timestamp = int(float(event["t"]) * 1000)
    return [Point(entity_name(key), float(value), timestamp, int(event["step"]))
            for key, value in event["values"].items()]


class MetricsFollower:
    """Delivers points every `interval` seconds or `BATCH` points.

    MLflow itself drops a point it already holds (same run, key, step, timestamp and value), so a batch is simply sent
    again when its delivery failed, and all events may be added again after a restart.

    Args:
        connection: The tracking store.
        run_id: None makes every call do nothing: tracking was down when the run began.
        interval: Seconds between deliveries.
    """

    def __init__(self, connection: Connection, run_id: str | None, interval: float = 2.0) -> None:
        self._connection = connection
        self._run_id = run_id
        self._interval = interval
        self._waiting: deque[Point] = deque()
        self._sending: list[Point] = []
        self._dropped = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._deliver, name="gatehouse-metrics", daemon=True)
        if run_id is not None:
            self._thread.start()

    def __enter__(self) -> Self:
        """The follower itself; leaving the block closes it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Queue the metric events among `events`. Returns at once, whatever the tracker does."""
        if self._run_id is None:
            return
        points = [point for event in events for point in points_of(event)]
        with self._wake:
            self._waiting.extend(points)
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            if len(self._waiting) >= BATCH:
                self._wake.notify()

    def close(self, timeout: float = 15.0) -> bool:
        """Deliver what is waiting, for at most `timeout` seconds; True when everything was delivered."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        with self._wake:
            lost = len(self._waiting) + len(self._sending) + self._dropped
        if lost:
            logger.warning("%d metric values did not reach MLflow run %s; they are in the job's events.jsonl", lost,
                           self._run_id)
        return lost == 0

    def _deliver(self) -> None:
        while True:
            with self._wake:
                if not self._closing and len(self._waiting) < BATCH:
                    self._wake.wait(self._interval)
                self._sending = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                closing = self._closing
            if not self._sending:
                if closing:
                    return
                continue
            delivered = self._send(self._sending)
            with self._wake:
                if not delivered and self._connection.is_down:
                    self._waiting.extendleft(reversed(self._sending))
                elif not delivered:
                    self._dropped += len(self._sending)
                self._sending = []
                if not delivered:
                    if self._closing:
                        return
                    self._wake.wait(self._interval)

    def _send(self, batch: list[Point]) -> bool:
        def call(client: Any) -> bool:
            from mlflow.entities import Metric
            client.log_batch(self._run_id, metrics=[Metric(*point) for point in batch])
            return True
        return self._connection.attempt(f"record {len(batch)} metric values", call, False)
