"""A month of nights, with faults thrown in."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.schedules import MISSED
from pipeline.recipes.loader import load_recipe
from tests.chaos.nights import SCHEDULED, Nights, nights
from tests.chaos.stand import Stand
from tests.integration.workspaces import Workspace, workspace
from tests.promises import Promise
from tests.webhooks import receiver
from training.store.store import Store

# Models that are as good as random, and gates that let them pass: the nights are about when things are built.
_SMALL = """\
base_model: {steps: 12, checkpoints: {every_steps: 6}}
sft_model: {steps: 4, checkpoints: {every_steps: 2}}
dpo_model: {steps: 2, checkpoints: {every_steps: 2}}
lora_model: {steps: 2, checkpoints: {every_steps: 2}}
"""
_LENIENT = """\
  base_model:
    - {metric: loss_drop, must_be: ">=", threshold: -100, min_items: 1}
  sft_model:
    - {metric: loss_drop, must_be: ">=", threshold: -100, min_items: 1}
  dpo_model:
    - {metric: preference_margin, must_be: ">=", threshold: -100, min_items: 1}
  lora_model:
    - {metric: domain_gain, must_be: ">=", threshold: -100, min_items: 1}
"""
_FAULTS = ("killed", "refused", "unreadable", "MLflow down", "disk full", "scheduler away")

_ASSETS = tuple(load_recipe("smoke").graph)


@pytest.fixture
def space(promise: Promise, tmp_path: Path) -> Workspace:
    made = workspace(tmp_path / "user")
    text = made.recipe.read_text().replace(
        'metric: bytes, must_be: ">", threshold: 0', 'metric: bytes, must_be: ">", threshold: 100000'
    )
    made.recipe.write_text((_SMALL + text.rstrip() + "\n" + _LENIENT) if promise.full else text)
    return made


def plan(count: int) -> list[str]:
    """What happens in each night: with few nights the first of each, with a month all of them several times."""
    if count < 10:
        return ["changed", "nothing", "killed", "scheduler away", "refused"][:count]
    chosen = [*_FAULTS * 3, *["changed"] * 2, *["nothing"] * (count - 21)]
    random.Random(count).shuffle(chosen)
    return ["changed", *chosen[: count - 1]]


@pytest.mark.promise(
    "Nights of the schedule with faults: a run each night or a message that names it, failures say "
    "why, no duplicate promotion, and what is not built adds nothing"
)
def test_a_month(promise: Promise, space: Workspace, tmp_path: Path) -> None:
    stand = Stand(tmp_path / "stand")
    planned = plan(30 if promise.full else 5)
    with (
        receiver() as (url, posted),
        nights(space, stand, None if promise.full else ["raw_corpus", "corpus"], url) as schedule,
    ):
        month = Month(schedule, posted)
        for trial in promise.trials(quick=5, full=30):
            with trial:
                month.live(planned[trial.number], trial.number)
        stand.assert_all_end(1)
        month.every_night_ran(planned)


class Month:
    """What is known after each night.

    Attributes:
        posted: What the webhook was told.
        pending: The sources have changed since they were last built.
        away: Nights since the last run on which no scheduler ran.
    """

    def __init__(self, schedule: Nights, posted: list[dict[str, Any]]) -> None:
        self.schedule = schedule
        self.posted = posted
        self.space = schedule.space
        self.store = Store(str(self.space.home / "store"), "mine")
        self.pending = False
        self.away = 0
        self.idle_rows: set[int] = set()

    def live(self, fault: str, night: int) -> None:
        """Live through a night with a fault, and see that only what had to happen has happened."""
        if fault in ("changed", "killed", "MLflow down", "disk full"):
            (self.space.notes / f"night-{night}.txt").write_text(f"What night {night} brought.\n" * 50)
            self.pending = True
        if fault == "scheduler away":
            self.schedule.pass_by()
            self.away += 1
            return
        before = self.promoted()
        versions, files = self.versions(), self.files()
        runs = self.runs_of(fault)
        assert len(runs) == 1
        self.missed_nights_are_told(runs[0])
        builds = self.pending and fault not in ("killed", "refused", "unreadable", "disk full")
        said, status = self.schedule.said(runs[0]), runs[0].status
        expected = {
            "killed": "ended unexpectedly",
            "refused": "bytes",
            "unreadable": "notes",
            "disk full": r"\A.*[Mm]ake room",
        }.get(fault)
        assert (status == dg.DagsterRunStatus.SUCCESS) == (expected is None), f"{fault}: {status}: {said}"
        assert expected is None or re.search(expected, said), said
        after = self.promoted()
        if builds:
            self.pending = False
            assert len(after["raw_corpus"]) == len(before["raw_corpus"]) + 1
        else:
            assert after == before, "nothing is promoted"
            assert self.versions() - versions == (1 if fault == "refused" else 0)
        for promotions in after.values():
            assert all(one != other for one, other in pairwise(promotions)), "promoted twice"
        if not builds and expected is None:
            assert self.files() == files, "the store is as it was"
            self.idle_rows.add(self.schedule.rows(runs[0]))
            assert max(self.idle_rows) - min(self.idle_rows) <= 2, self.idle_rows

    def missed_nights_are_told(self, run: dg.DagsterRun) -> None:
        """The run names the nights without a scheduler before it, and so does one notice; else neither does."""
        at = datetime.fromisoformat(run.tags[SCHEDULED])
        missed = [f"{at - timedelta(days=days):%Y-%m-%d %H:%M}" for days in range(self.away, 0, -1)]
        named = run.tags.get(MISSED, "")
        assert bool(named) == bool(missed) and all(night in named for night in missed[:1] + missed[-1:]), named
        notices = [notice["nights"] for notice in self.posted if notice["event"] == "nights_missed"]
        assert notices == ([missed] if missed else [])
        self.posted.clear()
        self.away = 0

    def runs_of(self, fault: str) -> list[dg.DagsterRun]:
        """The runs of one night, newest first."""
        stand = self.schedule.stand
        if fault == "killed":
            stand.hold("raw_corpus")
            try:
                return self.schedule.live(self.kill)
            finally:
                stand.release("raw_corpus")
        if fault == "MLflow down":
            return self.schedule.live(MLFLOW_TRACKING_URI="http://127.0.0.1:1")
        if fault == "refused":
            with moved(self.space.notes, keep=1):
                return self.schedule.live()
        if fault == "unreadable":
            with moved(self.space.notes, keep=None):
                return self.schedule.live()
        if fault == "disk full":
            with full_disk(self.space.home / "work"):
                return self.schedule.live()
        return self.schedule.live()

    def kill(self, worker: subprocess.Popen[str]) -> None:
        """In the middle of a job."""
        stand = self.schedule.stand
        stand.await_start("raw_corpus", stand.starts("raw_corpus"), worker)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        stand.assert_all_end(25)

    def promoted(self) -> dict[str, list[str]]:
        """Every promotion of every asset, oldest first."""
        return {
            asset: [path.stem.partition("-")[2] for path in sorted(self.space.asset(asset).glob("promotions/*"))]
            for asset in _ASSETS
        }

    def versions(self) -> int:
        """How many versions of assets there are."""
        return sum(len(self.store.versions(asset)) for asset in _ASSETS)

    def files(self) -> dict[str, int]:
        """Every file of the store, with its size."""
        root = self.space.home / "store"
        return {
            str(path.relative_to(root)): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file() and "links" not in path.parts
        }

    def every_night_ran(self, planned: list[str]) -> None:
        """Each night with a scheduler had one run."""
        at = [run.tags[SCHEDULED] for run in self.schedule.instance.get_runs()]
        assert len(at) == len(set(at)) == len(planned) - planned.count("scheduler away")


@contextmanager
def moved(notes: Path, keep: int | None) -> Iterator[None]:
    """The notes are gone but for some; they come back as they were."""
    notes.rename(notes.with_name("kept"))
    if keep is not None:
        notes.mkdir()
        for path in sorted(notes.with_name("kept").iterdir())[:keep]:
            (notes / path.name).write_bytes(path.read_bytes())
    try:
        yield
    finally:
        for path in notes.iterdir() if notes.exists() else ():
            path.unlink()
        if notes.exists():
            notes.rmdir()
        notes.with_name("kept").rename(notes)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A real file system without room in place of a folder."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this account may not mount a disk")
    try:
        (folder / "filler").write_bytes(bytes(48 * 1024))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
