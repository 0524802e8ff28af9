"""Whatever is killed, and however: no process of a job stays alive.

Most jobs here are held in mid-work and stubborn: they ignore SIGTERM, have a child that does so too, and a grandchild
that left their session. What is started in the browser is in test_servers.py.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.defs.dead_runs import end_orphans
from tests.chaos.stand import GRACE, Stand, alive, until
from tests.conftest import BIN, ROOT, environment
from tests.integration.training_jobs import make_job, publish_data, wait_for_step
from tests.integration.workspaces import Workspace, workspace
from tests.promises import Promise
from training.specs.execution import Execution
from training.specs.job import Job
from training.store.store import Store

# As a run worker does it: the asset's lock, and the launcher.
_OWNER = """
import signal, sys
from pathlib import Path
from pipeline.jobs.locks import building
from pipeline.jobs.launcher import JobFailed, open_launcher, run_job
from training.specs.execution import Launcher
from training.specs.job import Job
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be inherited as ignored
job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
with building(Path(job.attempt).parents[2], job.recipe, job.asset, "run c0ffee00"):
    try:
        run_job(open_launcher(Launcher(grace_seconds=float(sys.argv[2]))), job, lambda events: None)
    except JobFailed:
        print("failed", flush=True)
        sys.stdin.read()
"""
_LABELS = {"dagster_run_id": "c0ffee00-1234"}


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return stubborn_stand(tmp_path / "stand")


def stubborn_stand(folder: Path) -> Stand:
    made = Stand(folder)
    made.hold("base_model")
    made.stubborn()
    return made


def job_file(home: Path) -> Path:
    """A job that is never done: it is held before it looks at its inputs."""
    attempt = home / "work" / "mine" / "base_model" / "0123456789abcdef"
    attempt.mkdir(parents=True, exist_ok=True)
    job = Job(
        stage="base_model",
        asset="base_model",
        recipe="mine",
        identity="0" * 64,
        fingerprint="",
        seed=0,
        section={},
        store=str(home / "store"),
        attempt=str(attempt),
        labels=_LABELS,
    )
    (attempt / "job.json").write_text(job.model_dump_json())
    return attempt / "job.json"


def own(stand: Stand, home: Path, job: Path, grace: float = GRACE) -> subprocess.Popen[str]:
    """A step worker whose job has started."""
    before = stand.starts("base_model")
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(job), str(grace)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(home, **stand.environment),
    )
    stand.await_start("base_model", before, owner)
    if stand.is_stubborn:
        until(lambda: len(stand.processes()) >= 4, 10, "a supervisor, a job, its child and its grandchild")
    return owner


def kill_the_owner(_stand: Stand, owner: subprocess.Popen[str]) -> None:
    owner.kill()


def terminate_the_owner(_stand: Stand, owner: subprocess.Popen[str]) -> None:
    owner.terminate()


def interrupt_the_owner(_stand: Stand, owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGINT)


def kill_the_job(stand: Stand, _owner: subprocess.Popen[str]) -> None:
    stand.job().kill()


def terminate_the_supervisor(stand: Stand, _owner: subprocess.Popen[str]) -> None:
    stand.supervisor().terminate()


def kill_the_supervisor(stand: Stand, _owner: subprocess.Popen[str]) -> None:
    stand.supervisor().kill()


def kill_both(stand: Stand, owner: subprocess.Popen[str]) -> None:
    """At once: neither sees the other go, and nobody ends what they leave."""
    supervisor = stand.supervisor()
    owner.send_signal(signal.SIGSTOP)
    supervisor.suspend()
    owner.kill()
    supervisor.kill()
    owner.wait()
    supervisor.wait()


@pytest.mark.promise("No process of a job is alive grace + 5 s after: {kind}")
@pytest.mark.parametrize(("kind", "strike"), [
    ("SIGKILL of the step worker that owns it", kill_the_owner),
    ("SIGTERM of the step worker", terminate_the_owner),
    ("SIGINT of the step worker", interrupt_the_owner),
    ("SIGKILL of the job's first process", kill_the_job),
    ("SIGTERM of its supervisor", terminate_the_supervisor),
    ("SIGKILL of its supervisor", kill_the_supervisor),
])  # fmt: skip
def test_nothing_stays(
    promise: Promise, stand: Stand, tmp_path: Path, kind: str, strike: Callable[[Stand, subprocess.Popen[str]], None]
) -> None:
    for trial in promise.trials(quick=1, full=8):
        with trial, own(stand, tmp_path / "home", job_file(tmp_path / "home")) as owner:
            try:
                time.sleep(trial.random.uniform(0, 0.3))
                strike(stand, owner)
                stand.assert_all_end(GRACE + 5)
                if strike in (kill_the_job, terminate_the_supervisor, kill_the_supervisor):
                    assert owner.stdout is not None and owner.stdout.readline() == "failed\n"
            finally:
                owner.kill()
                stand.clear()


@pytest.mark.promise("What a SIGKILL of step worker and supervisor left is ended at the next start, which says so")
def test_the_next_start_ends_what_was_left(promise: Promise, stand: Stand, tmp_path: Path) -> None:
    home, other_home = tmp_path / "home", tmp_path / "other"
    other = stubborn_stand(tmp_path / "other stand")
    with own(other, other_home, job_file(other_home)) as living:
        try:
            unharmed = alive(other.processes())
            for trial in promise.trials(quick=1, full=8):
                with trial, own(stand, home, job_file(home)) as owner:
                    time.sleep(trial.random.uniform(0, 0.3))
                    kill_both(stand, owner)
                    time.sleep(0.5)
                    assert len(stand.processes()) == 2, "a child and a grandchild live on"
                    [said] = end_orphans(home)
                    assert said == "Ended 2 processes left running by base_model of run c0ffee00."
                    assert stand.processes() == []
                    assert end_orphans(home) == [] and end_orphans(other_home) == []
                    assert alive(other.processes()) == unharmed, "whose owner is alive"
        finally:
            living.kill()
            other.assert_all_end(GRACE + 5)
            stand.clear()


@pytest.mark.promise("A job starts only when nothing is left of the asset's job before, however its owner was killed")
def test_a_job_never_meets_the_one_before(promise: Promise, stand: Stand, tmp_path: Path) -> None:
    job = job_file(tmp_path / "home")
    for trial in promise.trials(quick=2, full=8):
        with trial, own(stand, tmp_path / "home", job) as owner:
            before = stand.processes()
            (kill_both if trial.number % 2 else kill_the_owner)(stand, owner)
            with own(stand, tmp_path / "home", job) as second:
                try:
                    assert alive(before) == []
                finally:
                    second.kill()
                    stand.assert_all_end(GRACE + 5)


@pytest.mark.promise("The same of a real training on two ranks: SIGKILL of its owner, supervisor, torchrun, a rank")
def test_nothing_stays_of_a_training(promise: Promise, tmp_path: Path) -> None:
    stand, home = Stand(tmp_path / "stand"), tmp_path / "home"
    store = Store(str(home / "store"), "test")
    publish_data(store, tmp_path / "data")
    for trial in promise.trials(quick=1, full=12):
        attempt = home / "work" / "mine" / "base_model" / f"{trial.number:016}"
        job = make_job(
            store,
            "base_model",
            attempt,
            {"steps": 2000},
            Execution(device="cpu", threads=1, processes=2 if promise.full else 1, micro_batch_tokens=256),
        )
        with trial, own(stand, home, job, grace=5) as owner:
            try:
                wait_for_step(job, 2, owner)
                time.sleep(trial.random.uniform(0, 0.5))
                torchrun = stand.job()
                ranks = torchrun.children() or [torchrun]
                (owner, ranks[-1], stand.supervisor(), torchrun)[trial.number % 4].kill()
                stand.assert_all_end(5 + 5)
            finally:
                owner.kill()
                stand.clear()


@pytest.mark.promise("`gatehouse run`: the same after Ctrl-C, SIGKILL and SIGTERM, and the next one goes on")
def test_the_command(promise: Promise, tmp_path: Path) -> None:
    space, stand = workspace(tmp_path / "user"), Stand(tmp_path / "stand")
    for trial in promise.trials(quick=2, full=12):
        number = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)[trial.number % 3]
        stand.hold("raw_corpus")
        stand.stubborn(trial.number >= 9)  # then the launcher waits for 20 s before it kills
        before = stand.starts("raw_corpus")
        with trial, start(space, stand) as run:
            try:
                stand.await_start("raw_corpus", before, run)
                time.sleep(trial.random.uniform(0, 0.5))
                os.killpg(run.pid, number)  # as a terminal does
                stand.assert_all_end(20 + 5)
                said, _ = run.communicate()
                if number != signal.SIGKILL:
                    assert run.returncode == 130 and "Interrupted. Nothing that was published is lost" in said, said
            finally:
                run.kill()
                stand.clear()
    stand.release("raw_corpus")
    stand.stubborn(False)
    done = space.run("--select", "raw_corpus", **stand.environment)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ended unexpectedly; it is marked as failed") == (0 if promise.full else 1)


@pytest.mark.promise(
    "Two commands build an asset at once: one builds it, the other waits for nothing and says why, or "
    "takes what is there; one version, one whole MLflow run"
)
def test_two_commands(promise: Promise, tmp_path: Path) -> None:
    user = workspace(tmp_path / "user")
    for trial in promise.trials(quick=1, full=20):
        with trial:
            space, stand = user.moved(tmp_path / str(trial.number)), Stand(tmp_path / f"stand-{trial.number}")
            first, delay = start(space, stand), trial.random.uniform(0, 6)
            time.sleep(delay)
            second = start(space, stand)
            said = [run.communicate()[0] for run in (first, second)]
            codes = [first.returncode, second.returncode]
            assert sorted(codes) in ([0, 0], [0, 2]), f"{delay}: {said}"
            if 2 in codes:
                assert "is being built by run" in said[codes.index(2)].replace("\n", " "), f"{delay}: {said}"
            assert stand.starts("raw_corpus") == 1
            assert len(Store(str(space.home / "store"), "mine").versions("raw_corpus")) == 1
            assert_tracked_once(space)


@pytest.mark.promise("The very first commands of a user, at once: Dagster's databases are made once, and open")
def test_the_first_commands(promise: Promise, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.paths import prepare; prepare(); "
        "from pipeline.defs.instance import open_instance\n"
        "while not Path(sys.argv[1]).exists(): time.sleep(0.001)\n"
        "open_instance().get_runs()"
    )
    for trial in promise.trials(quick=1, full=20):
        with trial:
            home, go = tmp_path / str(trial.number), tmp_path / f"go-{trial.number}"
            several = [
                subprocess.Popen(
                    [sys.executable, "-c", code, str(go)],
                    cwd=ROOT,
                    env=environment(home),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for _ in range(4)
            ]
            time.sleep(3 if promise.full else 1.5)
            go.touch()
            said = [process.communicate()[0] for process in several]
            assert [process.returncode for process in several] == [0] * 4, said


def start(space: Workspace, stand: Stand) -> subprocess.Popen[str]:
    """`gatehouse run` of the first asset."""
    return subprocess.Popen(
        [str(BIN / "gatehouse"), "run", "-r", str(space.recipe), "--select", "raw_corpus"],
        cwd=ROOT,
        text=True,
        env=environment(space.home, **stand.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def assert_tracked_once(space: Workspace) -> None:
    """Once MLflow has been told everything, it has one finished run, and no metric twice."""
    synced = space.command("gatehouse", "sync")
    assert synced.returncode == 0, synced.stdout
    with closing(sqlite3.connect(space.home / "mlflow" / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        twice = database.execute("SELECT key FROM metrics GROUP BY run_uuid, key, step, timestamp HAVING COUNT(*) > 1")
        assert twice.fetchall() == []
