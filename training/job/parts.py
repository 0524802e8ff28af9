"""A stage's work on parts of its data, in a pool of processes.

A part is one unit of work, such as a file. What a part makes is a folder with a record, and the folder gets its name
when all of it is on disk. So a job that was killed goes on with the parts that are missing, and nothing of a part that
was not finished is ever read. Results come in the order of the parts, whatever process was the first: the same bytes
for any number of processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from training import errors
from training.errors import GatehouseError, RecipeError
from training.job.bounded_memory import bounded_memory
from training.job.events import EventWriter
from training.job.ray_workers import RayWorkers
from training.job.supervisor import die_with_parent
from training.specs.execution import Execution
from training.store.storage import fsync

T = TypeVar("T")
Work = Callable[[T, Path], dict[str, Any]]
PARTS = "parts"  # folder of an attempt
_RECORD = "record.json"
_UNFINISHED = ".unfinished"
_WORTH_A_POOL = 32 * 2**20  # bytes; a process needs a second to start, in which another reads that much
_TRIES = 3


@dataclass(frozen=True)
class Part(Generic[T]):
    """One unit of work.

    Attributes:
        name: Its folder's name; no two parts of a step share one.
        argument: What the step's function gets; it is sent to another process.
        size: Bytes of data that it works on, for the progress.
        shown: What messages call it, such as a file's path.
        state: Digest of what may differ when the job starts again, such as files that nobody verified. What was made
            of another state is made again.
    """

    name: str
    argument: T
    size: int
    shown: str = ""
    state: str = ""


@dataclass(frozen=True)
class Finished:
    """A part that is done.

    Attributes:
        folder: What it wrote.
        result: What its function returned.
    """

    folder: Path
    result: dict[str, Any]


class Pool:
    """Runs the steps of one stage.

    Args:
        work: The attempt's folder, which outlives a killed job: the steps keep theirs in it.
        execution: Its `threads` say how many processes there are, its `memory_megabytes` what each may allocate.
        events: Gets the progress.
        least_memory: Bytes that a process may allocate in any case.
    """

    def __init__(self, work: Path, execution: Execution, events: EventWriter, least_memory: int = 0) -> None:
        self._folder, self._events = work / PARTS, events
        self._processes = execution.threads or available_cores()
        memory = max(execution.memory_megabytes * 10**6, least_memory)
        self._workers: _Workers | RayWorkers
        if execution.ray is None:
            self._workers = _Workers(self._processes, memory)
        else:
            self._workers = RayWorkers(execution.ray, memory)
        # A process takes a second to start, so they serve all steps and end with the pool.
        weakref.finalize(self, self._workers.end)

    @property
    def shared(self) -> Path:
        """A folder for what all parts of a step read."""
        folder = self._folder / "shared"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(
        self, step: str, work: Work[T], parts: Sequence[Part[T]], take: Callable[[Finished], None] = lambda _: None
    ) -> list[Finished]:
        """Work on all parts of a step that are not done yet.

        Args:
            step: Name of the step, shown as the phase.
            work: A function of a module. It gets a part's argument and an empty folder to write to, and returns what
                JSON can hold.
            parts: Their names differ; of none, nothing is done.
            take: Is called for each part, in their order, as soon as it and those before it are done.

        Returns:
            One for each part, in their order.

        Raises:
            RecipeError: A process died three times at the same part.
        """
        if not parts:
            return []
        self._events.phase(step)
        folder = self._folder / step.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f"*{_UNFINISHED}"):  # of an earlier start
            shutil.rmtree(unfinished, ignore_errors=True)
        progress = _Progress(self._events, parts)
        results = _InOrder(folder, parts, take)
        missing = [part for part in parts if not results.has(part)]
        for part in parts:
            if results.has(part):
                progress.reuse(part)
        results.take()

        size = sum(part.size for part in missing)
        is_alone = self._processes == 1 and isinstance(self._workers, _Workers)
        if is_alone or len(missing) < 2 or size < _WORTH_A_POOL:
            for part in missing:
                _reporter.begin(partial(progress.within, part))
                _work_on(work, part, folder)
                results.take()
                progress.add(part)
            _reporter.begin(None)
        else:
            if isinstance(self._workers, RayWorkers):
                done = self._workers.run(partial(_outcome, work, folder), missing, error_of)
            else:
                done = self._workers.run(work, missing, folder, progress)
            for part in done:
                results.take()
                progress.add(part)
        return results.taken


class _InOrder:
    """The parts that are done, in their order."""

    def __init__(self, folder: Path, parts: Sequence[Part[Any]], take: Callable[[Finished], None]) -> None:
        self._folder, self._parts, self._take = folder, parts, take
        self.taken: list[Finished] = []

    def has(self, part: Part[Any]) -> bool:
        """Whether a part is done."""
        record = self._folder / part.name / _RECORD
        return record.is_file() and bool(json.loads(record.read_bytes())["state"] == part.state)

    def take(self) -> None:
        """Take all that are done, up to the first that is not."""
        while len(self.taken) < len(self._parts) and self.has(part := self._parts[len(self.taken)]):
            folder = self._folder / part.name
            self.taken.append(Finished(folder, json.loads((folder / _RECORD).read_bytes())["result"]))
            self._take(self.taken[-1])


def report_bytes(done: int) -> None:
    """Say how many bytes of its part this process has worked on, for the progress; it may be said often."""
    _reporter.report(done)


class _Reporter:
    """Passes on what a part says of its progress, once a second."""

    def __init__(self) -> None:
        self._send: Callable[[int], None] | None = None
        self._last = 0.0

    def begin(self, send: Callable[[int], None] | None) -> None:
        """A part begins; what it says goes there."""
        self._send, self._last = send, time.monotonic()

    def report(self, done: int) -> None:
        """Pass it on to whoever shows the progress, if there is anybody."""
        if self._send is not None and time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            self._send(done)


_reporter = _Reporter()


class _Progress:
    """Bytes done, the rate, and what that leaves of time."""

    def __init__(self, events: EventWriter, parts: Sequence[Part[Any]]) -> None:
        self._events = events
        self._total = sum(part.size for part in parts)
        self._done = self._reused = 0
        self._within: dict[str, int] = {}
        self._started = time.monotonic()

    def reuse(self, part: Part[Any]) -> None:
        """Count a part that an earlier start of the job finished."""
        self._done, self._reused = self._done + part.size, self._reused + part.size

    def add(self, part: Part[Any]) -> None:
        """Count a part that is done."""
        self._within.pop(part.name, None)
        self._done += part.size
        self._show()

    def within(self, part: Part[Any], done: int) -> None:
        """Count what is done of a part, which may be more than its size: that of a compressed file."""
        self._within[part.name] = min(done, part.size) if part.size else done
        self._show()

    def _show(self) -> None:
        done = self._done + sum(self._within.values())
        rate = (done - self._reused) / max(time.monotonic() - self._started, 1e-3)
        note = f"{rate / 1e6:.1f} MB/s"
        if self._reused:
            note += f", {self._reused / 1e6:.0f} MB were done before"
        total = round(self._total / 1e6, 1) if self._total else None
        self._events.progress(round(done / 1e6, 1), total, "MB", note)


class _Workers:
    """Processes that work on parts. They are spawned: a fork would copy locks whose threads do not exist in it."""

    def __init__(self, count: int, memory: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._count, self._memory = count, memory
        self._workers: dict[Connection, BaseProcess] = {}

    def run(self, work: Work[T], parts: Sequence[Part[T]], folder: Path, progress: _Progress) -> Iterator[Part[T]]:
        """Give the parts to whichever process is free, the first ones first; each part as it is done."""
        while len(self._workers) < min(self._count, len(parts)):
            self._start()
        try:
            yield from self._run(work, parts, folder, progress)
        except BaseException:
            self.end()  # they are at work on parts that nobody waits for
            raise

    def _run(self, work: Work[T], parts: Sequence[Part[T]], folder: Path, progress: _Progress) -> Iterator[Part[T]]:
        waiting = [(part, 1) for part in reversed(parts)]
        working: dict[Connection, tuple[Part[T], int]] = {}
        while waiting or working:
            for worker in self._workers:
                if worker not in working and waiting:
                    working[worker] = waiting.pop()
                    worker.send((work, working[worker][0], folder))

            for worker in [worker for worker in working if worker in wait(list(working))]:
                part, tries = working[worker]
                try:
                    message = worker.recv()
                except (EOFError, ConnectionError):
                    self._replace(worker, part, tries)
                    waiting.append((part, tries + 1))
                    del working[worker]
                    continue
                if isinstance(message, str):
                    raise error_of(message)
                if isinstance(message, int):
                    progress.within(part, message)
                    continue
                del working[worker]
                yield part

    def _start(self) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._memory), daemon=True)
        process.start()
        there.close()
        self._workers[here] = process

    def _replace(self, worker: Connection, part: Part[Any], tries: int) -> None:
        """Start another process for one that died.

        Raises:
            RecipeError: It was not the first that died at this part.
        """
        process = self._workers.pop(worker)
        process.join()
        worker.close()
        if tries >= _TRIES:
            code = process.exitcode or 0
            how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
            what = part.shown or f"part {part.name}"
            raise RecipeError(
                f"{what}: {_TRIES} processes died while they worked on it, the last one {how}; "
                "raise memory_megabytes in launchers.yaml, or leave this file out. The other parts stay finished"
            )
        self._start()

    def end(self) -> None:
        """End all processes; others are started where they are needed again."""
        for worker, process in self._workers.items():
            process.kill()
            process.join()
            worker.close()
        self._workers.clear()


def _serve(connection: Connection, memory: int) -> None:
    """Work on what comes in, until nothing can come any more."""
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job's own process ends this one
    with bounded_memory(memory):
        while True:
            try:
                work, part, folder = connection.recv()
            except EOFError:
                return
            _reporter.begin(connection.send)
            connection.send(_outcome(work, folder, part))


def _outcome(work: Work[Any], folder: Path, part: Part[Any]) -> str | None:
    """The error of a part for `error_of`; None if it is done.

    It is sent as JSON. The job's own process makes it an error again, and unpickles no class that another one names.
    """
    kind, fields = "", list[Any]()
    try:
        _work_on(work, part, folder)
        return None
    except GatehouseError as error:
        kind, fields = type(error).__name__, [str(error)]
    except OSError as error:
        kind, fields = "OSError", [error.errno, error.strerror, str(error.filename or "")]
    except MemoryError as error:
        kind, fields = "MemoryError", [str(error)]
    except Exception:
        kind, fields = "RuntimeError", [f"{part.shown or part.name}:\n{traceback.format_exc()}"]
    return json.dumps([kind, fields])


def error_of(message: str) -> Exception:
    """The error that `_outcome` tells of, as the job is to raise it."""
    kind, fields = json.loads(message)
    if kind == "OSError":
        return OSError(*fields)
    if kind == "MemoryError":
        return MemoryError(*fields)
    known = getattr(errors, kind, RuntimeError)
    assert issubclass(known, Exception)
    return known(*fields)


def _work_on(work: Work[T], part: Part[T], folder: Path) -> None:
    """Let a part write its folder, and give the folder its name when all of it is on disk."""
    # A name of its own: on a cluster a process of a job that was killed may still be at work on the same part.
    unfinished = folder / f"{part.name}.{uuid.uuid4().hex[:12]}{_UNFINISHED}"
    unfinished.mkdir()
    result = work(part.argument, unfinished)
    (unfinished / _RECORD).write_text(json.dumps({"state": part.state, "result": result}), encoding="utf-8")
    for path in unfinished.rglob("*"):
        fsync(path)
    shutil.rmtree(folder / part.name, ignore_errors=True)  # of another state
    unfinished.rename(folder / part.name)
    fsync(folder)


def available_cores() -> int:
    """CPU cores that this process may use; a container is often given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
