"""What is the same for every launcher: events, restarts and how an end is read, shown with one that starts nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs.attempt import JOB_FILE, OUTPUT_FILE
from pipeline.jobs.launcher import JobFailed, JobRefused, RunningJob, open_launcher, run_job
from pipeline.jobs.local import LocalLauncher
from training.errors import EXIT_FAULT, EXIT_OK, EXIT_PREEMPTED, EXIT_USER
from training.job import outcome
from training.job.events import EVENTS_FILE, EventWriter
from training.job.outcome import JobOutcome
from training.specs.execution import Launcher as LauncherEntry
from training.specs.job import Job

Start = Callable[[Job], int]
"""What one start of a job does in its attempt's folder; it returns the exit code."""


@dataclass
class Scripted:
    """A launcher whose jobs do at once what they are scripted to do."""

    starts: list[Start]
    entry: LauncherEntry = field(default_factory=LauncherEntry)
    running: RunningJob | None = None
    submitted: list[Job] = field(default_factory=list)
    jobs: list[ScriptedJob] = field(default_factory=list)

    def submit(self, job: Job) -> ScriptedJob:
        assert (Path(job.attempt) / JOB_FILE).is_file()
        self.submitted.append(job)
        self.jobs.append(ScriptedJob(self.starts.pop(0)(job)))
        return self.jobs[-1]

    def adopt(self, job: Job) -> RunningJob | None:
        return self.running


@dataclass
class ScriptedJob:
    code: int | None
    ended: bool = False

    def poll(self) -> int | None:
        return self.code

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        stage="pretrain",
        asset="base_model",
        recipe="tiny",
        identity="1" * 64,
        fingerprint="2" * 64,
        seed=1,
        section={},
        inputs={},
        store=str(tmp_path / "store"),
        attempt=str(tmp_path / "attempt"),
    )


def ends_with(code: int, ending: JobOutcome | None = None, step: int | None = None, output: str = "") -> Start:
    def start(job: Job) -> int:
        attempt = Path(job.attempt)
        if step is not None:
            events = EventWriter(attempt / EVENTS_FILE)
            events.metrics(step, {"loss": 1.0})
            events.close()
        if ending is not None:
            outcome.write(attempt, ending)
        with (attempt / OUTPUT_FILE).open("a") as file:
            file.write(output)
        return code

    return start


def run(launcher: Scripted, job: Job) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    run_job(launcher, job, events.extend, forward_output=False)
    return events


def test_the_kind_of_an_entry_chooses_the_launcher() -> None:
    entry = LauncherEntry(grace_seconds=3)
    launcher = open_launcher(entry)
    assert isinstance(launcher, LocalLauncher) and launcher.entry is entry


def test_a_job_that_ran_out_of_memory_is_started_again_with_less(job: Job) -> None:
    ending = JobOutcome(kind="out_of_memory", message="no room", micro_batch_tokens=128)
    launcher = Scripted([ends_with(EXIT_PREEMPTED, ending, step=1), ends_with(EXIT_OK, step=2)])

    assert [event["step"] for event in run(launcher, job)] == [1, 2]
    assert [start.execution.micro_batch_tokens for start in launcher.submitted] == [8192, 128]
    written = Job.model_validate_json((Path(job.attempt) / JOB_FILE).read_bytes())
    assert written.execution.micro_batch_tokens == 128
    assert all(start.ended for start in launcher.jobs)


def test_preemptions_before_the_first_step_are_counted_and_later_ones_are_not(job: Job) -> None:
    preempted = JobOutcome(kind="preempted", message="told to stop")
    idle, working = ends_with(EXIT_PREEMPTED, preempted), ends_with(EXIT_PREEMPTED, preempted, step=1)
    run(Scripted([idle, idle, working, idle, idle, ends_with(EXIT_OK)]), job)

    with pytest.raises(JobFailed, match="told to stop 3 times in a row before it had done a step"):
        run(Scripted([working, idle, idle, idle]), job)


def test_an_earlier_starts_reason_is_not_taken_for_this_ones(job: Job) -> None:
    preempted = JobOutcome(kind="preempted", message="told to stop")
    launcher = Scripted([ends_with(EXIT_PREEMPTED, preempted, step=1), ends_with(EXIT_FAULT, output="Traceback ...")])
    with pytest.raises(JobFailed, match=r"(?s)exit code 1.*Traceback"):
        run(launcher, job)


@pytest.mark.parametrize("place", ["ending", "output"])
def test_a_mistake_of_a_person_is_one_message(job: Job, place: str) -> None:
    ending = JobOutcome(kind="refused", message="notes.txt: row 3 is empty")
    refusal = (
        ends_with(EXIT_USER, ending)
        if place == "ending"
        else ends_with(EXIT_USER, output="one line\nnotes.txt: row 3 is empty\n")
    )
    with pytest.raises(JobRefused) as error:
        run(Scripted([refusal]), job)
    assert str(error.value) == "notes.txt: row 3 is empty"


def test_a_job_that_is_still_running_is_followed_and_not_started_again(job: Job) -> None:
    adopted = ScriptedJob(EXIT_OK)
    launcher = Scripted([], running=adopted)
    run(launcher, job)
    assert launcher.submitted == [] and adopted.ended

    preempted = ends_with(EXIT_PREEMPTED, JobOutcome(kind="preempted", message="told to stop"), step=1)
    Path(job.attempt).mkdir(exist_ok=True)
    launcher = Scripted([ends_with(EXIT_OK)], running=ScriptedJob(preempted(job)))
    run(launcher, job)
    assert len(launcher.submitted) == 1, "an adopted job that was preempted is started again here"


def test_a_cancelled_run_ends_its_job(job: Job) -> None:
    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    def hanging(_job: Job) -> Any:
        return None

    launcher = Scripted([hanging])
    with pytest.raises(Cancelled):
        run_job(launcher, job, lambda _events: None, raise_if_cancelled=cancel)
    assert launcher.jobs[0].ended
