"""What a launcher makes of a job of two ranks of which one ends before training has begun."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.jobs.launcher import JobFailed, open_launcher, run_job
from tests.integration import training_jobs as jobs
from training.specs.execution import Execution, Launcher
from training.specs.job import Job
from training.store.store import Store

# The second rank is hit when it comes to load torch: its job has begun, and no step was done. It notes that itself: the
# first rank may be starved, and ended with the second one before it has written an event. It waits until the first rank
# has come as far, which would otherwise be ended before it can say why.
_SITE = """
import os, signal, sys, time
rank = os.environ.get("RANK")
if rank in ("0", "1") and sys.orig_argv[-3:-1] == ["-m", "training.run"]:
    first_is_there = {starts!r} + "-" + str(os.getppid())
    def strike(event, arguments):
        if event == "import" and arguments[0] == "torch":
            if rank == "0":
                open(first_is_there, "w").close()
                return
            while not os.path.exists(first_is_there):
                time.sleep(0.01)
            with open({starts!r}, "a") as file:
                file.write(str(os.getpid()) + "\\n")
            {strike}
    sys.addaudithook(strike)
"""


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strike: str) -> tuple[str, int]:
    """The launcher's message, and how often the job was started."""
    store = Store(str(tmp_path / "store"), jobs.RECIPE)
    jobs.publish_data(store, tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SITE.format(strike=strike, starts=str(tmp_path / "starts")))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    path = jobs.make_job(store, "base_model", tmp_path / "attempt", {}, Execution(device="cpu", threads=1, processes=2))
    job = Job.model_validate_json(path.read_bytes())
    with pytest.raises(JobFailed) as error:
        run_job(open_launcher(Launcher(grace_seconds=5)), job, lambda events: None, forward_output=False)
    return str(error.value), len(set((tmp_path / "starts").read_text().split()))


def test_a_fault_of_one_rank_is_told_and_is_no_preemption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message, starts = started(tmp_path, monkeypatch, 'raise RuntimeError("struck")')
    assert "RuntimeError: struck" in message
    assert starts == 1


def test_a_rank_that_is_killed_every_time_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, starts = started(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "told to stop 3 times in a row before it had done a step" in message
    assert starts == 3
