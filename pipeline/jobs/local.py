"""Launchers: how a job's processes are started, followed and ended."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.humanize import nearest
from pipeline.jobs import orphans
from pipeline.jobs.locks import LOCK_FILE
from pipeline.paths import DATABASES, ROOT, variables
from pipeline.recipes.loader import LoadedRecipe, load_launchers
from training.errors import EXIT_OK, EXIT_PREEMPTED, EXIT_USER, GatehouseError, RecipeError, UserError
from training.job import outcome
from training.job.events import EVENTS_FILE, EventReader
from training.job.outcome import JobOutcome
from training.specs.execution import Launcher
from training.specs.job import Job

JOB_FILE = "job.json"
OUTPUT_FILE = "output.log"
_POLL_SECONDS = 0.2
_MAX_STARTS = 100
_MAX_IDLE_STARTS = 3
_STOPPED = JobOutcome(kind="preempted", message="told to stop, with no room to say so")
_ROOM_TO_SPEAK = 65_536  # bytes; with less the job could not say why it ended
# Addresses and passwords of the control plane: what a job does not hold it cannot write down.
_NOT_FOR_JOBS = {
    *DATABASES,
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
}
Listener = Callable[[list[dict[str, Any]]], None]


class JobFailed(GatehouseError):
    """The job ended with a fault of the system."""


class JobRefused(UserError):
    """The job ended with a person's mistake; the message is the job's own."""


class LocalLauncher:
    """Runs jobs as processes of this machine, one supervised process group a job.

    Args:
        still_wanted: Called while a job runs; raises when it is to end.
    """

    def __init__(
        self, spec: Launcher, forward_output: bool = True, still_wanted: Callable[[], None] = lambda: None
    ) -> None:
        self._spec = spec
        self._forward = forward_output
        self._still_wanted = still_wanted

    def launch(self, job: Job, listener: Listener) -> None:
        """Run a job to its end; the job has published its artifact when this returns.

        A job that was preempted, diverged and rolled back, or ran out of memory is started again, in the last case with
        a smaller micro-batch. Whatever ends this call early (a cancelled run, Ctrl-C, a kill) also ends every process
        of the job.

        Args:
            job: Written to `job.json` in its attempt folder.
            listener: Gets the job's new events, several at a time, in order.

        Raises:
            JobRefused: The job ended with one clear message.
            JobFailed: The job failed in any other way; the message holds the end of its output.
        """
        attempt = Path(job.attempt)
        attempt.mkdir(parents=True, exist_ok=True)
        events = EventReader(attempt / EVENTS_FILE, _size(attempt / EVENTS_FILE))
        idle = 0
        for _ in range(_MAX_STARTS):
            (attempt / JOB_FILE).write_text(job.model_dump_json(indent=1))
            outcome.clear(attempt)
            start = _Start(events, _Tail(attempt / OUTPUT_FILE, self._forward), listener)
            code = self._run_once(job, attempt, start.follow)
            if code == EXIT_OK:
                return
            ending = outcome.read(attempt) or (_STOPPED if code == EXIT_PREEMPTED else None)
            if ending is None or ending.kind in ("refused", "failed"):
                raise _failure(job, code, ending, start)
            idle = idle + 1 if ending.kind == "preempted" and not start.stepped else 0
            if idle == _MAX_IDLE_STARTS:
                raise JobFailed(
                    f"the job of {job.asset} was told to stop {idle} times in a row before it had done a "
                    f"step; all of its output is in {start.output.path}, which ends so:\n"
                    f"{start.output.end()}"
                )
            job = _with_micro_batch(job, ending.micro_batch_tokens)
        raise JobFailed(
            f"the job of {job.asset} was interrupted {_MAX_STARTS} times; what it said each time is in "
            f"{attempt / EVENTS_FILE}"
        )

    def _run_once(self, job: Job, attempt: Path, follow: Callable[[], None]) -> int:
        grace, lock = self._spec.grace_seconds, attempt.parent / LOCK_FILE
        command = [sys.executable, "-m", "training.job.supervisor", str(grace), *_command(job, attempt, grace)]
        marks = orphans.marks(lock, job.labels.get("dagster_run_id", ""), grace)
        with (
            (attempt / OUTPUT_FILE).open("ab") as output,
            _supervised(command, output.fileno(), marks, lock, grace) as process,
        ):
            while process.poll() is None:
                follow()
                self._still_wanted()
                time.sleep(_POLL_SECONDS)
            follow()
            return process.returncode


class _Start:
    """What is seen of one start of a job.

    Attributes:
        errors: Messages of its errors.
        stepped: It has told of a step.
    """

    def __init__(self, events: EventReader, output: _Tail, listener: Listener) -> None:
        self.output = output
        self.errors: list[str] = []
        self.stepped = False
        self._events = events
        self._listener = listener

    def follow(self) -> None:
        """Pass on what is new."""
        fresh = self._events.poll()
        self.errors += [event["message"] for event in fresh if event["kind"] == "log" and event["level"] == "error"]
        self.stepped = self.stepped or any(event["kind"] == "metrics" for event in fresh)
        if fresh:
            self._listener(fresh)
        self.output.forward()


def _failure(job: Job, code: int, ending: JobOutcome | None, start: _Start) -> GatehouseError:
    """The error of a job that is not to be started again."""
    if ending is None and shutil.disk_usage(job.attempt).free < _ROOM_TO_SPEAK:
        return JobRefused(
            f"the job of {job.asset} ended with exit code {code} on a full disk, the one that holds "
            f"{job.attempt}: make room and start it again, it goes on from its newest checkpoint"
        )
    if ending is not None and ending.kind == "refused":
        return JobRefused(ending.message)
    if code == EXIT_USER:
        return JobRefused(start.errors[-1] if start.errors else start.output.last_line())
    end = ending.message if ending else start.output.end()
    return JobFailed(
        f"the job of {job.asset} ended with exit code {code}; all of its output is in "
        f"{start.output.path}, which ends so:\n{end}"
    )


@contextmanager
def _supervised(
    command: list[str], output: int, marks: dict[str, str], lock: Path, grace: float
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=job_environment() | marks,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(grace + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode < 0:  # killed, so it could not end what it supervised
            orphans.end(lock)


def _command(job: Job, attempt: Path, grace: float) -> list[str]:
    tail = ["-m", "training.run", str(attempt / JOB_FILE)]
    if job.execution.processes == 1:
        return [sys.executable, *tail]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        f"--nproc-per-node={job.execution.processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        f"--shutdown-timeout={math.ceil(grace)}",
        *tail,
    ]


def job_environment() -> dict[str, str]:
    """What a process that loads torch is given: no address and no password of the control plane."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    known = {name: value for name, value in (os.environ | variables()).items() if name not in _NOT_FOR_JOBS}
    return {
        **known,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "GATEHOUSE_SUPERVISED": "1",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "1000",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _with_micro_batch(job: Job, tokens: int | None) -> Job:
    """The same job with so many tokens per rank and forward pass; unchanged for None."""
    if tokens is None:
        return job
    return job.model_copy(update={"execution": job.execution.model_copy(update={"micro_batch_tokens": tokens})})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Tail:
    """The part of an output file that was written since this object was made."""

    def __init__(self, path: Path, forward: bool) -> None:
        self.path = path
        self._start = self._offset = _size(path)
        self._forward = forward

    def forward(self) -> None:
        if self._forward and _size(self.path) > self._offset:
            data = self._read(self._offset)
            self._offset += len(data)
            try:
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()
            except (OSError, ValueError):  # a terminal that was closed, or a full disk, ends no training
                self._forward = False

    def end(self, lines: int = 30) -> str:
        return "\n".join(self._read(self._start).decode(errors="replace").splitlines()[-lines:])

    def last_line(self) -> str:
        return self.end(1) or f"no message; see {self.path}"

    def _read(self, offset: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()


def chosen_launcher(loaded: LoadedRecipe, name: str = "") -> Launcher:
    """The launcher of a name, or the one that the recipe names.

    Raises:
        RecipeError: launchers.yaml has no such entry.
    """
    launchers = load_launchers()
    wanted = name or loaded.recipe.launcher
    if wanted in launchers:
        return launchers[wanted]
    message = f"launchers.yaml has no launcher {wanted!r}{nearest(wanted, launchers)}; it has {', '.join(launchers)}"
    raise RecipeError(message if name else loaded.at(("launcher",), message))
