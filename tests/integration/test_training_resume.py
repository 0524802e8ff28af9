"""A killed job that is started again ends in the same bytes as one that was never killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import training_jobs as jobs
from training.errors import EXIT_PREEMPTED
from training.specs.execution import Execution
from training.store import Store


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return jobs.build_all(tmp_path_factory.mktemp("built"))


@pytest.mark.parametrize("asset", list(jobs.INPUTS))
def test_killed_and_restarted_job_gives_the_same_bytes(built: Store, tmp_path: Path, asset: str) -> None:
    """SIGKILL after the first checkpoint, at a moment that is not a step's end."""
    job = jobs.make_job(built, asset, tmp_path / "attempt")
    killed = jobs.kill_at(job, "checkpoints/step-*/manifest.json")
    assert killed.code == -signal.SIGKILL
    resumed = jobs.run(job)
    assert resumed.code == 0, resumed.output
    assert any("resumed from the checkpoint" in event["message"] for event in resumed.events("log"))
    again = jobs.published(built, tmp_path / "attempt")
    whole = built.promotion(asset)
    assert whole is not None
    assert again.digest == whole.digest
    assert again.metrics["train_loss"] == built.manifest(asset, whole.version).metrics["train_loss"]


def test_damaged_checkpoint_is_skipped_for_the_one_before(built: Store, tmp_path: Path) -> None:
    """A byte changed in the newest checkpoint: it is skipped with a reason, and the result is still the same."""
    job = jobs.make_job(built, "base_model", tmp_path / "attempt")
    jobs.kill_at(job, "checkpoints/step-00000004/manifest.json")
    newest = max((tmp_path / "attempt" / "checkpoints").glob("step-*"))
    states = next(newest.rglob("*model_states.pt"))
    states.write_bytes(states.read_bytes()[:-100])
    done = jobs.run(job)
    assert done.code == 0, done.output
    messages = [event["message"] for event in done.events("log")]
    assert any(f"checkpoint {newest.name} is skipped" in message and states.name in message for message in messages)
    promoted = built.promotion("base_model")
    assert promoted is not None
    assert jobs.published(built, tmp_path / "attempt").digest == promoted.digest


def test_sigterm_ends_with_a_checkpoint_and_exit_code_75(built: Store, tmp_path: Path) -> None:
    """By the command that launchers use."""
    job = jobs.make_job(built, "base_model", tmp_path / "attempt",
                        {"steps": 4000, "checkpoints": {"every_steps": 3000, "keep": 1}})
    with subprocess.Popen([sys.executable, "-m", "training.run", str(job)], cwd=jobs.ROOT, env=jobs.environment(),
                          stderr=subprocess.PIPE, text=True) as process:
        jobs.wait_for_step(job, 5, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, errors
    assert len(list((tmp_path / "attempt" / "checkpoints").glob("step-*"))) == 1
    assert not (tmp_path / "attempt" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("asset", ["base_model", "lora_model"])
def test_resume_is_bitwise_under_every_layout(built: Store, tmp_path: Path, processes: int, stage: int, precision: str,
                                              asset: str) -> None:
    """ZeRO 0 to 3, one and two ranks, fp32 and bf16."""
    execution = Execution(device="cpu", threads=1, processes=processes, zero_stage=stage, micro_batch_tokens=128)
    whole = jobs.make_job(built, asset, tmp_path / "whole", {"precision": precision}, execution)
    done = jobs.run(whole, processes)
    assert done.code == 0, done.output
    job = jobs.make_job(built, asset, tmp_path / "attempt", {"precision": precision}, execution)
    jobs.kill_at(job, "checkpoints/step-00000004/manifest.json", processes)
    resumed = jobs.run(job, processes)
    assert resumed.code == 0, resumed.output
    assert any("resumed" in event["message"] for event in resumed.events("log"))
    assert jobs.published(built, tmp_path / "attempt").digest == jobs.published(built, tmp_path / "whole").digest
