"""A run whose process is killed does not stay `started` for ever; one that is alive is left alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import GRPC_INFO_TAG

from pipeline.defs import assets
from pipeline.defs.dead_runs import clean_up, end_orphans, fail_dead_runs, note_code_servers
from pipeline.jobs import orphans
from pipeline.jobs.locks import held
from tests.patience import finish

_RUN = """
import sys, time
from pathlib import Path
import dagster as dg
from pipeline.jobs.locks import mark_alive

@dg.op
def wait(context) -> None:
    mark_alive(Path(sys.argv[1]), context.run_id)
    print("started", flush=True)
    time.sleep(60)

@dg.job
def waiting():
    wait()

waiting.execute_in_process(instance=dg.DagsterInstance.get())
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return dg.DagsterInstance.get()


def test_only_dead_runs_are_failed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(runs)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        [run] = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert fail_dead_runs(instance, runs) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert fail_dead_runs(instance, runs) == [run.run_id]
        after = instance.get_run_by_id(run.run_id)
        assert after is not None and after.status == dg.DagsterRunStatus.FAILURE
        assert fail_dead_runs(instance, runs) == []
    finally:
        process.kill()


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]
)
def test_a_run_that_was_killed_before_it_began_is_ended(
    instance: dg.DagsterInstance, tmp_path: Path, status: dg.DagsterRunStatus
) -> None:
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("mine"), "__repository__")
    run = instance.create_run_for_job(_job(), status=status, remote_job_origin=RemoteJobOrigin(repository, "idle"))
    _killed_owner(tmp_path / "runs", run.run_id)
    [line] = clean_up(instance, tmp_path, tmp_path / "runs")
    assert run.run_id[:8] in line
    after = instance.get_run_by_id(run.run_id)
    assert after is not None and after.status == dg.DagsterRunStatus.FAILURE
    [failure] = [
        entry.dagster_event.message or ""
        for entry in instance.all_logs(run.run_id)
        if entry.dagster_event and entry.dagster_event.is_failure
    ]
    assert "before the run began" in failure
    assert clean_up(instance, tmp_path, tmp_path / "runs") == [] and not list((tmp_path / "runs").iterdir())


def test_a_run_whose_end_dagster_never_heard_of_is_ended_though_its_process_ended_in_order(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """As when the disk was full: the process could say nothing, and ended."""
    run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
    code = (
        "from pathlib import Path; from pipeline.jobs.locks import mark_alive; "
        f"mark_alive(Path({str(tmp_path)!r}), '%s')"
    )
    subprocess.run([sys.executable, "-c", code % run.run_id], check=True)
    assert fail_dead_runs(instance, tmp_path) == [run.run_id]


def test_a_run_that_ends_well_while_it_is_looked_at_stays_as_it_ended(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
    seen = instance.get_runs()
    monkeypatch.setattr(instance, "get_runs", lambda _filter: seen)
    instance.report_run_canceled(run)
    _killed_owner(tmp_path, run.run_id)
    assert fail_dead_runs(instance, tmp_path) == []
    after = instance.get_run_by_id(run.run_id)
    assert after is not None and after.status == dg.DagsterRunStatus.CANCELED
    assert not (tmp_path / f"{run.run_id}.lock").exists(), "the lock of a run that is over is of no use"


def test_the_lock_of_a_run_that_dagster_does_not_know_yet_is_left(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    _killed_owner(tmp_path, "unknown")
    assert fail_dead_runs(instance, tmp_path) == [] and (tmp_path / "unknown.lock").exists()


def test_a_run_that_never_marked_itself_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
    assert fail_dead_runs(instance, tmp_path / "runs") == []
    after = instance.get_run_by_id(run.run_id)
    assert after is not None and after.status == dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_without_servers_a_run_of_theirs_that_never_marked_itself_is_dead(
    instance: dg.DagsterInstance, tmp_path: Path, status: dg.DagsterRunStatus
) -> None:
    run = instance.create_run_for_job(_job(), status=status, tags=_started_by("/tmp/ours"))
    instance.create_run_for_job(_job(), status=status)
    note_code_servers(tmp_path, ["/tmp/ours"])
    note_code_servers(tmp_path, ["/tmp/ours", "/tmp/a later one of ours"])
    assert clean_up(instance, tmp_path, tmp_path / "runs") == []
    [line] = clean_up(instance, tmp_path, tmp_path / "runs", servers_ended=True)
    assert run.run_id[:8] in line


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
)
def test_another_homes_run_in_the_same_database_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path, status: dg.DagsterRunStatus
) -> None:
    """Its lock lies in that home, and its code server may be alive."""
    other = instance.create_run_for_job(_job(), status=status, tags=_started_by("/tmp/theirs"))
    note_code_servers(tmp_path, ["/tmp/ours"])
    assert clean_up(instance, tmp_path, tmp_path / "runs", servers_ended=True) == []
    after = instance.get_run_by_id(other.run_id)
    assert after is not None and after.status == status


def test_a_code_server_is_forgotten_once_its_runs_were_seen_to(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    note_code_servers(tmp_path, ["/tmp/ours"])
    clean_up(instance, tmp_path, tmp_path / "runs", servers_ended=True)
    instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED, tags=_started_by("/tmp/ours"))
    assert clean_up(instance, tmp_path, tmp_path / "runs", servers_ended=True) == []


@pytest.fixture
def left(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process of its own session that ignores SIGTERM, and the lock that it names as its owner's."""
    lock = tmp_path / "home" / "work" / "mine" / "corpus" / "lock"
    lock.parent.mkdir(parents=True)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | orphans.ownership_env(lock, "c0ffee00-1", 0.5),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        yield lock, process
        process.kill()


def test_a_process_of_nobody_is_ended(left: tuple[Path, subprocess.Popen[str]], tmp_path: Path) -> None:
    _, process = left
    assert end_orphans(tmp_path / "home") == ["Ended 1 process left running by corpus of run c0ffee00."]
    assert finish(process, 5) == -signal.SIGKILL
    assert end_orphans(tmp_path / "home") == []


def test_a_process_of_somebody_is_left_alone(left: tuple[Path, subprocess.Popen[str]], tmp_path: Path) -> None:
    lock, process = left
    assert end_orphans(tmp_path / "another home") == []
    with held(lock, "its owner", "%s"):
        assert end_orphans(tmp_path / "home") == []
    assert process.poll() is None


@pytest.mark.parametrize(("status", "goes_on"), [
    (dg.DagsterRunStatus.STARTED, True), (dg.DagsterRunStatus.CANCELING, False), (dg.DagsterRunStatus.CANCELED, False),
    (dg.DagsterRunStatus.FAILURE, False)])  # fmt: skip
def test_a_job_ends_with_its_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, status: dg.DagsterRunStatus, goes_on: bool
) -> None:
    monkeypatch.setattr(assets, "_ASKING_SECONDS", 0)
    check = assets.end_with_run(instance, instance.create_run_for_job(_job(), status=status).run_id)
    if goes_on:
        check()
        monkeypatch.setattr(instance, "get_run_by_id", lambda _run_id: 1 / 0)
        check()  # a database that is away ends no training
    else:
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            check()


def _killed_owner(runs: Path, run_id: str) -> None:
    """Leaves the lock of a run whose process is gone."""
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.jobs.locks import mark_alive; "
        "mark_alive(Path(sys.argv[1]), sys.argv[2]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(runs), run_id], check=False)


def _started_by(socket: str) -> dict[str, str]:
    """The tag of a run that a code server has started."""
    return {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": socket})}


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        """Has no work."""

    @dg.job
    def idle() -> None:
        nothing()

    return idle
