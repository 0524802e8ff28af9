"""What a job does with a damaged checkpoint, and when it is told to stop; tests/chaos kills it at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import training_jobs as jobs
from training.errors import EXIT_PREEMPTED
from training.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    work = tmp_path_factory.mktemp("store")
    made = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(made, work)
    return made


def test_damaged_checkpoint_is_skipped_for_the_one_before(store: Store, tmp_path: Path) -> None:
    """A byte changed in the newest checkpoint: it is skipped with a reason, and the result is still the same."""
    undisturbed = jobs.make_job(store, "base_model", tmp_path / "undisturbed")
    assert jobs.run(undisturbed).code == 0
    job = jobs.make_job(store, "base_model", tmp_path / "attempt")
    jobs.kill_at(job, "checkpoints/step-00000004/manifest.json")
    newest = max((tmp_path / "attempt" / "checkpoints").glob("step-*"))
    states = next(newest.rglob("*model_states.pt"))
    states.write_bytes(states.read_bytes()[:-100])
    done = jobs.run(job)
    assert done.code == 0, done.output
    messages = [event["message"] for event in done.events("log")]
    assert any(f"checkpoint {newest.name} is skipped" in message and states.name in message for message in messages)
    digests = {jobs.published(store, one.parent).digest for one in (job, undisturbed)}
    assert len(digests) == 1


def test_sigterm_ends_with_a_checkpoint_and_exit_code_75(store: Store, tmp_path: Path) -> None:
    """By the command that launchers use."""
    job = jobs.make_job(
        store, "base_model", tmp_path / "attempt", {"steps": 4000, "checkpoints": {"every_steps": 3000, "keep": 1}}
    )
    with subprocess.Popen(
        [sys.executable, "-m", "training.run", str(job)],
        cwd=jobs.ROOT,
        env=jobs.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        jobs.wait_for_step(job, 5, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == EXIT_PREEMPTED, errors
    assert len(list((tmp_path / "attempt" / "checkpoints").glob("step-*"))) == 1
    assert not (tmp_path / "attempt" / "result.json").exists()
