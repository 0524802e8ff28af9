"""A training that was interrupted ends in the same bytes as one that never was."""

from __future__ import annotations

import pytest

from pipeline.jobs.launcher import open_launcher, run_job
from tests.chaos.trainings import (
    LAYOUTS,
    Layout,
    Preemption,
    Trainings,
    kill_once,
    moment,
    published,
    read_job,
    with_processes,
)
from tests.integration import training_jobs as jobs
from tests.promises import Promise
from training.specs.execution import Launcher

ONE_PROCESS: Layout = (1, 0, "fp32")
GRACE = 20.0


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    work = tmp_path_factory.mktemp("trainings")
    return Trainings(jobs.build_all(work), work)


@pytest.mark.promise(
    "{asset}, killed at any moment and started again, ends in the same weights, optimizer state, "
    "random numbers and losses, bit by bit (1 and 2 processes, ZeRO 0 to 3, fp32 and bf16)"
)
@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_resume(promise: Promise, trainings: Trainings, asset: str) -> None:
    for trial in promise.trials(quick=1, full=50):
        with trial:
            layout = trial.random.choice(LAYOUTS)
            whole = trainings.whole(asset, layout)
            killed = ""
            for _ in range(5):
                job = trainings.job(asset, layout)
                kind, ready, delay = moment(trial.random)
                if kill_once(job, layout[0], ready, delay):
                    killed = kind
                    break
            assert killed, "five jobs in turn ended before they could be killed"
            done = jobs.run(job, layout[0])
            assert done.code == 0, done.output
            if killed == "export":
                told = [event["message"] for event in done.events("log")]
                assert any("resumed from the checkpoint" in message for message in told), told
            assert trainings.result(job, asset) == whole, f"killed in {killed} under {layout}"


@pytest.mark.promise(
    "{asset} told to stop (SIGTERM) at any step writes a checkpoint, exits with 75 within the grace "
    "period and loses at most one step; the launcher goes on by itself and ends in the same bytes"
)
@pytest.mark.parametrize("asset", ["base_model", "lora_model"])
def test_preemption(promise: Promise, trainings: Trainings, asset: str) -> None:
    section = {"steps": 200, "checkpoints": {"every_steps": 90, "keep": 1}}
    undisturbed = trainings.job(asset, ONE_PROCESS, section)
    assert jobs.run(undisturbed).code == 0
    digest, rows = jobs.published(trainings.store, undisturbed.parent).digest, trainings.rows(undisturbed, asset)
    for trial in promise.trials(quick=1, full=10):
        with trial:
            job = trainings.job(asset, ONE_PROCESS, section)
            preemption = Preemption(trial.random.randint(1, 120), trial.random.random() * 0.05)
            launcher = open_launcher(Launcher(grace_seconds=GRACE))
            run_job(launcher, read_job(job), preemption.listen, forward_output=False)
            assert preemption.at is not None and preemption.seconds is not None, preemption.messages
            assert preemption.seconds < GRACE
            (resumed,) = (int(message.split()[-1]) for message in preemption.messages if "resumed from" in message)
            assert resumed >= preemption.at, f"told to stop after step {preemption.at}, it went on from {resumed}"
            assert jobs.published(trainings.store, job.parent).digest == digest
            assert trainings.rows(job, asset) == rows


@pytest.mark.promise(
    "2, 1, 2 and 4 processes in turn over one fp32 run see the same tokens, and no loss differs by "
    "more than 1e-5 of itself from a run on one process (ZeRO 0, 2 and 3)"
)
def test_elastic(promise: Promise, trainings: Trainings) -> None:
    section = {"checkpoints": {"every_steps": 2}, "steps": 9}
    alone = trainings.job("base_model", ONE_PROCESS, section)
    assert jobs.run(alone).code == 0
    expected = trainings.rows(alone, "base_model")
    for trial in promise.trials(quick=1, full=15):
        with trial:
            stage = (3, 2, 0)[trial.number % 3]
            job = trainings.job("base_model", (2, stage, "fp32"), section)
            for checkpoint, processes in ((2, 2), (4, 1), (6, 2)):
                with_processes(job, processes)
                assert kill_once(job, processes, published(checkpoint), trial.random.random() * 0.01)
            with_processes(job, 4)
            done = jobs.run(job, 4)
            assert done.code == 0, done.output
            told = [event["message"] for event in done.events("log")]
            assert sum("continued by" in message for message in told) == 3, told
            rows = trainings.rows(job, "base_model")
            assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
            for row, one in zip(rows, expected, strict=True):
                assert row["loss"] == pytest.approx(one["loss"], rel=1e-5), f"ZeRO {stage}, step {row['step']}"
