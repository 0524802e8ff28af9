"""`gatehouse up`: runs that are started in the browser, cancelled, killed, and left behind by its servers.

In CI the job is raw_corpus, held in mid-work; with full counts a base model is trained. A job notes each of its starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG

from pipeline.defs.dead_runs import noted_code_servers
from pipeline.jobs.local import free_port
from tests.chaos.stand import Stand, until
from tests.conftest import BIN, ROOT, environment
from tests.integration.served import Served
from tests.integration.workspaces import DATA, Workspace, workspace
from tests.promises import Promise
from training.job.events import EventReader
from training.store.store import Store

GRACE = 20  # of the launcher `local`
TWO_POLLS = 2 * 30  # `run_monitoring.poll_interval_seconds`
_SERVERS = {
    "webserver": "dagster_webserver",
    "daemon": "dagster._daemon",
    "code server": "grpc",
    "MLflow": "mlflow.server.fastapi_app:app",
}
NO_MLFLOW = "MLflow's server does not start"
REVIVED = "The code server of mine has ended"
RETRY = "dagster/auto_retry_run_id"
CHECKPOINT_STEPS = 20
_MODEL = f"base_model: {{steps: 400, checkpoints: {{every_steps: {CHECKPOINT_STEPS}}}}}\n"


class Up:
    """One `gatehouse up` over a user's recipe."""

    def __init__(self, space: Workspace, stand: Stand, log: Path) -> None:
        self.space = space
        self.stand = stand
        self.log = log
        ports = [free_port(), free_port()]
        self.mlflow_port = ports[1]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(BIN / "gatehouse"), "up", "-r", "mine", "--port", str(ports[0]), "--mlflow-port", str(ports[1])],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                text=True,
                env=environment(space.home, GATEHOUSE_RECIPES=str(space.folder), COLUMNS="200", **stand.environment),
            )
        self.served = Served(space, f"http://127.0.0.1:{ports[0]}", log)
        until(lambda: "Ctrl-C ends both" in self.said() or self.process.poll() is not None, 180, "it does not start")
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    def server(self, name: str) -> psutil.Process:
        """One of its servers; of the code servers the one of the user's recipe.

        One whose parent was killed lives on for half a minute, and nothing starts it again.
        """
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command, parent = process.cmdline(), process.parent()
                if _SERVERS[name] in command and (
                    name != "code server"
                    or (
                        parent is not None
                        and "code-server" in parent.cmdline()
                        and "mine" in command[command.index("--location-name") :]
                    )
                ):
                    return process
        raise AssertionError(f"no {name}")

    def has_said(self, words: str, times: int) -> bool:
        """Whether it has printed something that often."""
        return self.said().count(words) >= times

    def has_mlflow(self) -> bool:
        """Whether its MLflow answers."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.mlflow_port}/health", timeout=2).close()
            return True
        except OSError:
            return False

    def can_launch(self, asset: str) -> bool:
        """Whether its code server can prepare a run."""
        try:
            self.served.ask(
                "query($s: PipelineSelector!) { pipelineOrError(params: $s) { __typename } }",
                s={
                    "repositoryLocationName": "mine",
                    "repositoryName": "__repository__",
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [{"path": ["mine", asset]}],
                },
            )
        except AssertionError:
            return False
        return True

    def launch(self, asset: str) -> str:
        """Materialize an asset, as in the browser; return the run's id once its job has started."""
        before = self.stand.starts(asset)
        done = self.served.ask(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess "
            "{ run { runId } } ... on PythonError { message } } }",
            p={
                "mode": "default",
                "runConfigData": {},
                "selector": {
                    "repositoryLocationName": "mine",
                    "repositoryName": "__repository__",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": ["mine", asset]}],
                    "assetCheckSelection": [],
                },
            },
        )
        self.stand.await_start(asset, before)
        return str(done["run"]["runId"])

    def cancel(self, run_id: str) -> None:
        """Terminate a run, as in the browser."""
        try:
            self.served.ask("mutation($r: String!) { terminateRun(runId: $r) { __typename } }", r=run_id)
        except urllib.error.HTTPError as error:  # the run's own code server is gone
            if error.code != 500:
                raise

    def end(self) -> None:
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def asset(request: pytest.FixtureRequest) -> str:
    """What the runs make."""
    return "base_model" if request.config.getoption("--full") else "raw_corpus"


@pytest.fixture(scope="module")
def space(asset: str, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A user's recipe, and what the asset is made from."""
    made = workspace(tmp_path_factory.mktemp("user"))
    if asset == "base_model":
        made.recipe.write_text(made.recipe.read_text() + _MODEL)
        done = made.run("--select", DATA)
        assert done.returncode == 0, done.stdout
    return made


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("chaos") / "stand")


@pytest.fixture(scope="module")
def serve(space: Workspace, stand: Stand) -> Iterator[Callable[[], Up]]:
    """Gives the `gatehouse up` that is there, or starts another one if it has ended."""
    started: list[Up] = []

    def get() -> Up:
        if not started or started[-1].process.poll() is not None:
            started.append(Up(space, stand, space.folder / f"up-{len(started)}.log"))
        return started[-1]

    yield get
    for up in started:
        up.end()
    stand.clear()


def state(space: Workspace, run_id: str) -> dg.DagsterRun:
    """What Dagster says of a run."""
    os.environ["GATEHOUSE_DAGSTER"] = str(space.home / "dagster")
    with dg.DagsterInstance.from_config(str(ROOT)) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def await_state(space: Workspace, run_id: str, wanted: dg.DagsterRunStatus, seconds: float = TWO_POLLS) -> None:
    until(lambda: state(space, run_id).status == wanted, seconds, f"{wanted} is not what {state(space, run_id)} is")


def versions(space: Workspace, asset: str) -> list[str]:
    return Store(str(space.home / "store"), "mine").versions(asset)


@pytest.mark.promise(
    "Cancelled in the browser, or its run worker killed: no process of the job is alive grace + 5 s "
    "later, and Dagster says so within two polls"
)
def test_cancelled_and_killed(promise: Promise, serve: Callable[[], Up], stand: Stand, asset: str) -> None:
    for trial in promise.trials(quick=1, full=20):
        with trial:
            up = serve()
            run_id = begin(up, asset, stubborn=trial.number >= 16)
            if trial.number % 4 == 2:
                train_for(up, asset, trial.random.uniform(5, 20))
            if trial.number % 2 == 0:
                up.cancel(run_id)
                stand.assert_all_end(GRACE + 5)
                await_state(up.space, run_id, dg.DagsterRunStatus.CANCELED)
            else:
                worker = stand.supervisor().parent()
                assert worker is not None
                worker.kill()
                stand.assert_all_end(GRACE + 5)
                await_state(up.space, run_id, dg.DagsterRunStatus.FAILURE)
                again_and_done(up, asset, run_id)


@pytest.mark.promise("A code server is killed while a training runs: it goes on, can be cancelled, and new runs start")
def test_the_code_server_is_killed(promise: Promise, serve: Callable[[], Up], stand: Stand, asset: str) -> None:
    for trial in promise.trials(quick=1, full=10):
        with trial:
            up = serve()
            run_id = begin(up, asset)
            server, revived = up.server("code server"), up.said().count(REVIVED)
            if trial.number % 3 == 2:  # the process between it and `dagster dev`, which starts that one again
                parent = server.parent()
                assert parent is not None
                parent.kill()
            else:
                server.kill()
                until(partial(up.has_said, REVIVED, revived + 1), 90, "it is not started again")
            if trial.number % 2:
                stand.release(asset)
                await_state(up.space, run_id, dg.DagsterRunStatus.SUCCESS, 400)
                assert stand.starts(asset) == 1 and len(versions(up.space, asset)) == 1
            else:
                up.cancel(run_id)
                stand.assert_all_end(GRACE + 5)
                await_state(up.space, run_id, dg.DagsterRunStatus.CANCELED)
            until(partial(up.can_launch, asset), 120, "no new run can be started")


@pytest.mark.promise(
    "Webserver, daemon and code server killed, singly and together, while a training runs: all ends "
    "cleanly and says so, and the next `gatehouse up` goes on; nothing is trained twice"
)
def test_the_servers_are_killed(promise: Promise, serve: Callable[[], Up], stand: Stand, asset: str) -> None:
    for trial in promise.trials(quick=1, full=12):
        killed = (["webserver", "daemon", "code server"], ["webserver"], ["daemon"], [])[trial.number % 4]
        with trial:
            up = serve()
            run_id = begin(up, asset)
            if trial.number % 2:
                train_for(up, asset, trial.random.uniform(5, 20))
            socket_tag = json.loads(state(up.space, run_id).tags[GRPC_INFO_TAG])["socket"]
            assert socket_tag in noted_code_servers(up.space.home), "its run is known as this home's"
            for server in [up.server(name) for name in killed]:
                server.kill()
            if killed:
                up.process.wait(120)
                assert up.process.returncode == 1 and "dagster ended by itself" in up.said(), up.said()
                assert started_with(stand) == []
                assert state(up.space, run_id).status == dg.DagsterRunStatus.FAILURE
            else:
                kill_up(up)
                assert stand.processes(), "the run goes on without anybody"
            done, after = steps(up.space, asset), serve()
            assert bool(killed) != ("left running by gatehouse up." in after.said()), after.said()
            again_and_done(after, asset, run_id)
            again = steps(up.space, asset)[len(done) :]
            assert not again or min(again) > max(done, default=0) - CHECKPOINT_STEPS, "it goes on where it was"


@pytest.mark.promise(
    "MLflow's server is killed while a training runs, and another program takes its port: all goes "
    "on, and MLflow too once the port is free"
)
def test_mlflows_server_is_killed(promise: Promise, serve: Callable[[], Up], stand: Stand, asset: str) -> None:
    for trial in promise.trials(quick=1, full=6):
        with trial:
            up = serve()
            run_id, failed = begin(up, asset), up.said().count(NO_MLFLOW)
            server = up.server("MLflow")
            server.kill()
            server.wait(10)
            with socket.create_server(("127.0.0.1", up.mlflow_port)):
                until(partial(up.has_said, NO_MLFLOW, failed + 1), 120, "it is not started again")
                assert up.process.poll() is None, up.said()
            until(up.has_mlflow, 120, "it is not tried again")
            stand.release(asset)
            await_state(up.space, run_id, dg.DagsterRunStatus.SUCCESS, 400)
            assert stand.starts(asset) == 1 and len(versions(up.space, asset)) == 1


@pytest.mark.promise("A command and a run from the browser build an asset at once: the second is refused and says why")
def test_a_command_beside_a_run(promise: Promise, serve: Callable[[], Up], stand: Stand, asset: str) -> None:
    for trial in promise.trials(quick=1, full=6):
        with trial:
            up = serve()
            run_id = begin(up, asset)
            time.sleep(trial.random.uniform(0, 1))
            done = up.space.run("--select", asset, **stand.environment)
            assert done.returncode == 2 and f"{asset} is being built by run {run_id[:8]}" in done.stdout, done.stdout
            stand.release(asset)
            await_state(up.space, run_id, dg.DagsterRunStatus.SUCCESS, 400)
            assert stand.starts(asset) == 1 and len(versions(up.space, asset)) == 1


def kill_up(up: Up) -> None:
    """With its supervisors, at once."""
    victims = [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children()]
    for victim in victims:
        victim.suspend()
    for victim in victims:
        victim.kill()
    up.process.wait()


def begin(up: Up, asset: str, stubborn: bool = False) -> str:
    """Launch the run of an asset that has never been made; its job waits."""
    for folder in (up.space.asset(asset), up.space.asset(f"{asset}.evaluation"), up.space.home / "work/mine" / asset):
        shutil.rmtree(folder, ignore_errors=True)
    up.stand.forget_starts()
    up.stand.hold(asset)
    up.stand.stubborn(stubborn)
    return up.launch(asset)


def train_for(up: Up, asset: str, seconds: float) -> None:
    """Let the job work for a while, if it trains; the others would be done at once."""
    if asset == "base_model":
        up.stand.release(asset)
        until(lambda: bool(steps(up.space, asset)), 120, "it does not train")
        time.sleep(seconds)


def again_and_done(up: Up, asset: str, run_id: str) -> None:
    """Dagster starts a run again whose worker was lost; it makes one version, by one more job."""
    up.stand.stubborn(False)
    up.stand.release(asset)
    until(lambda: RETRY in state(up.space, run_id).tags, 120, "it is not started again")
    await_state(up.space, state(up.space, run_id).tags[RETRY], dg.DagsterRunStatus.SUCCESS, 400)
    assert up.stand.starts(asset) == 2
    assert len(versions(up.space, asset)) == 1


def started_with(stand: Stand) -> list[psutil.Process]:
    """Everything that was started with the stand's environment: servers too."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CHAOS") == str(stand.folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps(space: Workspace, asset: str) -> list[int]:
    """Steps that the attempts of an asset have logged, in their order."""
    return [
        event["step"]
        for path in (space.home / "work" / "mine" / asset).glob("*/events.jsonl")
        for event in EventReader(path).poll()
        if event["kind"] == "metrics"
    ]
