"""Trainings to interrupt, and the uninterrupted ones that they must equal."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.integration import training_jobs as jobs
from tests.patience import Patience
from training.specs.execution import Execution
from training.specs.job import Job
from training.store.store import Store

Layout = tuple[int, int, str]  # processes, ZeRO stage, precision
LAYOUTS: list[Layout] = list(itertools.product((1, 2), (0, 1, 2, 3), ("fp32", "bf16")))
LAST_CHECKPOINT = {"base_model": 6, "sft_model": 4, "dpo_model": 4, "lora_model": 4}
_TIMES = ("tokens_per_second", "memory_bytes")
_UNLIKE = {"trainer_state.json"}  # holds the speed of every logged step
_numbers = itertools.count()


@dataclass(frozen=True)
class Result:
    """What a training ended in.

    Attributes:
        digest: Content digest of the artifact: its weights.
        states: SHA-256 of every file of its last checkpoint: optimizer, random numbers, losses.
        rows: The logged rows, without times.
    """

    digest: str
    states: dict[str, str]
    rows: list[dict[str, Any]]


@dataclass
class Trainings:
    """Jobs over one store, and what each ends in when nothing disturbs it."""

    store: Store
    work: Path
    _whole: dict[tuple[str, Layout], Result] = field(default_factory=dict)

    def job(self, asset: str, layout: Layout, section: dict[str, Any] | None = None, micro: int = 128) -> Path:
        """A new job; its last checkpoint is kept, so that it can be compared."""
        processes, stage, precision = layout
        wanted = {
            "precision": precision,
            "log_every": 1,
            "checkpoints": {"every_steps": 2, "keep_every": LAST_CHECKPOINT[asset]},
        } | (section or {})
        execution = Execution(device="cpu", threads=1, processes=processes, zero_stage=stage, micro_batch_tokens=micro)
        return jobs.make_job(self.store, asset, self.work / f"{asset}-{next(_numbers)}", wanted, execution)

    def rows(self, job: Path, asset: str) -> list[dict[str, Any]]:
        """The logged rows of a finished job, without times."""
        made = jobs.published(self.store, job.parent)
        report = self.store.folder(asset, made.version) / "report" / "training.jsonl"
        return [
            {name: value for name, value in json.loads(line).items() if name not in _TIMES}
            for line in report.read_text().splitlines()
        ]

    def result(self, job: Path, asset: str) -> Result:
        """What a finished job ended in."""
        digest = jobs.published(self.store, job.parent).digest
        (manifest,) = (job.parent / "checkpoints").glob(f"step-{LAST_CHECKPOINT[asset]:08d}/manifest.json")
        files = json.loads(manifest.read_text())["files"]
        states = {name: entry["sha256"] for name, entry in files.items() if name not in _UNLIKE}
        return Result(digest, states, self.rows(job, asset))

    def whole(self, asset: str, layout: Layout) -> Result:
        """The result under a layout when nothing disturbs the job."""
        if (asset, layout) not in self._whole:
            job = self.job(asset, layout)
            done = jobs.run(job, layout[0])
            assert done.code == 0, done.output
            self._whole[asset, layout] = self.result(job, asset)
        return self._whole[asset, layout]


def kill_once(job: Path, processes: int, ready: Callable[[Path], bool], delay: float) -> bool:
    """Run a job and kill every rank some time after it is ready; False when it ended before."""
    ranks = jobs.start(job, processes)
    patience = Patience(300)
    while not ready(job.parent):
        if any(rank.exitcode is not None for rank in ranks):
            assert jobs.wait(job, ranks).code == 0, (job.parent / "output-0.txt").read_text()
            return False
        assert not patience.is_over(), "the job never came so far"
        time.sleep(0.0005)
    time.sleep(delay)
    alive = [rank for rank in ranks if rank.exitcode is None]
    for rank in alive:
        assert rank.pid is not None
        os.kill(rank.pid, signal.SIGKILL)
    jobs.wait(job, ranks)
    return bool(alive)


def moment(chooser: random.Random) -> tuple[str, Callable[[Path], bool], float]:
    """A moment to kill a job at: its name, the condition to wait for, and seconds to wait after that."""
    kind = chooser.choice(("loading", "step", "checkpoint", "publishing a checkpoint", "export"))
    step = chooser.choice((2, 4))
    conditions: dict[str, Callable[[Path], bool]] = {
        "loading": lambda attempt: (attempt / "events.jsonl").exists(),
        "step": lambda attempt: _told(attempt, '"kind": "metrics"'),
        "checkpoint": lambda attempt: (attempt / "checkpoints" / f".step-{step:08d}.partial").exists(),
        "publishing a checkpoint": lambda attempt: any(
            (attempt / "checkpoints").glob(f"*step-{step:08d}*/manifest.json")
        ),
        "export": lambda attempt: (attempt / "out" / "model").exists(),
    }
    longest = {"loading": 1.5, "step": 0.5, "checkpoint": 0.03, "publishing a checkpoint": 0.005, "export": 0.02}[kind]
    return kind, conditions[kind], chooser.random() * longest


def _told(attempt: Path, text: str) -> bool:
    events = attempt / "events.jsonl"
    return events.exists() and text in events.read_text()


def published(step: int) -> Callable[[Path], bool]:
    """The condition that the checkpoint of a step is there."""
    return lambda attempt: (attempt / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()


def read_job(path: Path) -> Job:
    """The job of a file."""
    return Job.model_validate_json(path.read_bytes())


def with_processes(path: Path, processes: int) -> None:
    """Have a job go on under another number of processes."""
    job = read_job(path)
    execution = job.execution.model_copy(update={"processes": processes})
    path.write_text(job.model_copy(update={"execution": execution}).model_dump_json())


@dataclass
class Preemption:
    """Tells a job to stop, once, some time after a step.

    Attributes:
        at: The step that was finished when it was told.
        seconds: From then until it said that it stopped.
        messages: All that it logged.
    """

    step: int
    delay: float
    at: int | None = None
    seconds: float | None = None
    messages: list[str] = field(default_factory=list)
    _told_at: float = 0.0

    def listen(self, events: list[dict[str, Any]]) -> None:
        """Follow the job's events."""
        for event in events:
            if event["kind"] == "log":
                self.messages.append(event["message"])
                if self.at is not None and self.seconds is None and "told to stop" in event["message"]:
                    self.seconds = time.monotonic() - self._told_at
        steps = [event["step"] for event in events if event["kind"] == "metrics"]
        if self.at is None and steps and steps[-1] >= self.step:
            time.sleep(self.delay)
            (process,) = [
                one
                for one in psutil.Process().children(recursive=True)
                if "training.run" in one.cmdline() and "training.job.supervisor" not in one.cmdline()
            ]
            self.at, self._told_at = steps[-1], time.monotonic()
            process.send_signal(signal.SIGTERM)
