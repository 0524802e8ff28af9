"""Running a job to its end, wherever it runs.

A launcher knows one kind of place: the processes of this machine today (`local.py`). It starts a job once, says whether
it has ended, and ends it. Everything else is the same for all of them and stands here: passing on events and output,
reading why the job ended, and starting it again. Another kind of place is one more file with these two classes, one
more value of `kind` in training/specs/execution.py, and one more line in `open_launcher`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pipeline.humanize import nearest
from pipeline.jobs.attempt import JOB_FILE, OUTPUT_FILE, OutputTail, size_of
from pipeline.jobs.local import LocalLauncher
from pipeline.recipes.loader import LoadedRecipe, load_launchers
from training.errors import EXIT_OK, EXIT_PREEMPTED, EXIT_USER, GatehouseError, RecipeError, UserError
from training.job import outcome
from training.job.events import EVENTS_FILE, EventReader
from training.job.outcome import JobOutcome
from training.specs.execution import Launcher as LauncherEntry
from training.specs.job import Job

Listener = Callable[[list[dict[str, Any]]], None]
"""Gets new events of a job, several at a time, in order."""

_POLL_SECONDS = 0.2
_MAX_STARTS = 100
_MAX_IDLE_STARTS = 3
_STOPPED = JobOutcome(kind="preempted", message="told to stop, and the disk had no room for this message")
_ROOM_FOR_A_MESSAGE = 65_536  # bytes; with less the job cannot have written why it ended


class JobFailed(GatehouseError):
    """The job ended with a fault of the system."""


class JobRefused(UserError):
    """The job ended with a person's mistake; the message is the job's own."""


class RunningJob(Protocol):
    """The processes of one start of a job."""

    def poll(self) -> int | None:
        """Its exit code (training/errors.py); None while it runs."""

    def end(self) -> None:
        """End every process of the job and wait until none is left; does nothing once the job has ended."""


class Launcher(Protocol):
    """Where jobs run. A job's folder is the same path for the launcher and for the job."""

    @property
    def entry(self) -> LauncherEntry:
        """The launcher's entry of launchers.yaml, with the layout of every asset's job."""

    def submit(self, job: Job) -> RunningJob:
        """Start a job from the `job.json` in its attempt's folder; its output is appended to `output.log` there."""

    def adopt(self, job: Job) -> RunningJob | None:
        """The job's processes, if an earlier owner was killed and left them running; else None.

        A launcher whose jobs never outlive their owner always answers None.
        """


def open_launcher(entry: LauncherEntry) -> Launcher:
    """The launcher of an entry of launchers.yaml, chosen by its `kind`."""
    kinds: dict[str, Callable[[LauncherEntry], Launcher]] = {"local": LocalLauncher}
    return kinds[entry.kind](entry)


def launcher_entry(loaded: LoadedRecipe, name: str = "") -> LauncherEntry:
    """The entry of launchers.yaml that has a name; empty takes the launcher that the recipe names.

    Raises:
        RecipeError: launchers.yaml has no such entry.
    """
    entries = load_launchers()
    chosen = name or loaded.recipe.launcher
    if chosen in entries:
        return entries[chosen]

    message = f"launchers.yaml has no launcher {chosen!r}{nearest(chosen, entries)}; it has {', '.join(entries)}"
    raise RecipeError(message if name else loaded.at(("launcher",), message))


def run_job(
    launcher: Launcher,
    job: Job,
    on_events: Listener,
    *,
    forward_output: bool = True,
    raise_if_cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Run a job to its end; the job has published its artifact when this returns.

    A job that was preempted, that diverged and was rolled back, or that ran out of memory is started again, in the last
    case with a smaller micro-batch. Whatever ends this call early (a cancelled run, Ctrl-C, an error) also ends every
    process of the job.

    Args:
        launcher: Where the job runs.
        job: Written to `job.json` in its attempt's folder.
        on_events: Gets the job's new events.
        forward_output: Copy the job's output to standard error.
        raise_if_cancelled: Called while the job runs; raises when the job is to end.

    Raises:
        JobRefused: The job ended with one clear message.
        JobFailed: The job failed in any other way; the message holds the end of its output.
    """
    attempt = Path(job.attempt)
    attempt.mkdir(parents=True, exist_ok=True)
    events = EventReader(attempt / EVENTS_FILE, size_of(attempt / EVENTS_FILE))
    adopted = launcher.adopt(job)

    idle_starts = 0
    for _ in range(_MAX_STARTS):
        start = _Start(events, OutputTail(attempt / OUTPUT_FILE, forward_output), on_events)
        code = start.follow(adopted or _submit(launcher, job, attempt), raise_if_cancelled)
        adopted = None
        if code == EXIT_OK:
            return

        ending = outcome.read(attempt) or (_STOPPED if code == EXIT_PREEMPTED else None)
        if ending is None or ending.kind in ("refused", "failed"):
            raise _failure(job, code, ending, start)

        # A job that is told to stop before its first step makes no progress: nothing would ever end the restarts.
        idle_starts = idle_starts + 1 if ending.kind == "preempted" and not start.stepped else 0
        if idle_starts == _MAX_IDLE_STARTS:
            raise JobFailed(
                f"the job of {job.asset} was told to stop {idle_starts} times in a row before it had done a "
                f"step; all of its output is in {start.output.path}, which ends so:\n{start.output.end()}"
            )
        job = _with_micro_batch(job, ending.micro_batch_tokens)

    raise JobFailed(
        f"the job of {job.asset} was interrupted {_MAX_STARTS} times; the reason of each is in {attempt / EVENTS_FILE}"
    )


class _Start:
    """What is seen of one start of a job.

    Attributes:
        errors: Messages of its errors.
        stepped: It has recorded metrics of a step.
    """

    def __init__(self, events: EventReader, output: OutputTail, on_events: Listener) -> None:
        self.output = output
        self.errors: list[str] = []
        self.stepped = False
        self._events = events
        self._on_events = on_events

    def follow(self, running: RunningJob, raise_if_cancelled: Callable[[], None]) -> int:
        """Pass on events and output until the job has ended; return its exit code."""
        try:
            while (code := running.poll()) is None:
                self._pass_on()
                raise_if_cancelled()
                time.sleep(_POLL_SECONDS)
        finally:
            running.end()

        self._pass_on()  # what was written between the last look and the end
        return code

    def _pass_on(self) -> None:
        fresh = self._events.poll()
        self.errors += [event["message"] for event in fresh if event["kind"] == "log" and event["level"] == "error"]
        self.stepped = self.stepped or any(event["kind"] == "metrics" for event in fresh)
        if fresh:
            self._on_events(fresh)

        self.output.forward()


def _submit(launcher: Launcher, job: Job, attempt: Path) -> RunningJob:
    (attempt / JOB_FILE).write_text(job.model_dump_json(indent=1))
    outcome.clear(attempt)  # an earlier start's reason must not be taken for this one's
    return launcher.submit(job)


def _failure(job: Job, code: int, ending: JobOutcome | None, start: _Start) -> GatehouseError:
    """The error of a job that is not to be started again."""
    if ending is None and shutil.disk_usage(job.attempt).free < _ROOM_FOR_A_MESSAGE:
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


def _with_micro_batch(job: Job, tokens: int | None) -> Job:
    """The same job with another number of tokens per rank and forward pass; unchanged for None."""
    if tokens is None:
        return job
    return job.model_copy(update={"execution": job.execution.model_copy(update={"micro_batch_tokens": tokens})})
