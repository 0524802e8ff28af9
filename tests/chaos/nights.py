"""Nights of a user's schedule: Dagster's own scheduler, with a clock that is moved, starts real runs."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import dagster as dg
import yaml
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._grpc.types import ExecuteRunArgs
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster._serdes import ConfigurableClass

from pipeline.defs.dead_runs import clean_up
from tests.chaos.stand import Stand
from tests.conftest import ROOT, environment
from tests.integration.workspaces import Workspace

SCHEDULED = ".dagster/scheduled_execution_time"
_SOME = """
import os
import dagster as dg
from pipeline.defs.schedules import nightly_schedule
from pipeline.definitions import build_definitions
from pipeline.recipes.loader import load_recipe

loaded = load_recipe(os.environ["GATEHOUSE_RECIPE"])
job = dg.define_asset_job("some_everything", selection=dg.AssetSelection.assets(*[["mine", name] for name in {assets}]))
defs = dg.Definitions.merge(build_definitions(os.environ["GATEHOUSE_RECIPE"]),
                            dg.Definitions(jobs=[job], schedules=[nightly_schedule(loaded, job)]))
"""
_ALL = """
import os
from pipeline.definitions import build_definitions
defs = build_definitions(os.environ["GATEHOUSE_RECIPE"])
"""


class Worker(RunLauncher, ConfigurableClass):  # type: ignore[misc]
    """Runs each run in a process of its own, by Dagster's own command, until it has ended.

    Attributes:
        hook: Called with each process while it runs.
        variables: Its environment.
    """

    hook: ClassVar[Callable[[subprocess.Popen[str]], None]]
    variables: ClassVar[dict[str, str]]

    def __init__(self, inst_data: Any = None) -> None:
        self._inst_data = inst_data
        super().__init__()

    @property
    def inst_data(self) -> Any:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Worker:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        origin = context.job_code_origin
        assert origin is not None
        command = ExecuteRunArgs(
            job_origin=origin, run_id=context.dagster_run.run_id, instance_ref=self._instance.get_ref()
        ).get_command_args()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.variables,
            text=True,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        type(self).hook(process)
        process.wait(1200)

    def terminate(self, run_id: str) -> bool:
        raise NotImplementedError

    def join(self, timeout: int = 30) -> None:
        """Every run has ended when it was launched."""


class Nights:
    """The schedule of a user's recipe, night after night from tomorrow on."""

    def __init__(self, space: Workspace, stand: Stand, instance: dg.DagsterInstance, context: Any, name: str) -> None:
        self.space = space
        self.stand = stand
        self.instance = instance
        self._context = context
        self._name = name
        self._days = 0
        self._begin = datetime.now(UTC)
        instance.start_schedule(self._schedule())

    def _schedule(self) -> Any:
        [location] = self._context.create_request_context().get_code_location_entries().values()
        assert location.code_location is not None, location.load_error
        return location.code_location.get_repository("__repository__").get_schedule(self._name)

    def pass_by(self) -> None:
        """A night on which nobody looks at the clock."""
        self._days += 1

    def live(
        self,
        during: Callable[[subprocess.Popen[str]], None] = lambda _process: None,
        **extra: str,
    ) -> list[dg.DagsterRun]:
        """The next night; returns the runs that it made, as the sensor for dead runs leaves them."""
        self._days += 1
        before = {run.run_id for run in self.instance.get_runs()}
        Worker.hook = staticmethod(during)
        Worker.variables = environment(
            self.space.home,
            GATEHOUSE_RECIPE=str(self.space.recipe),
            DAGSTER_MODULE_NAME="",
            **self.stand.environment,
            **extra,
        )
        for failed in launch_scheduled_runs(
            self._context, logging.getLogger("nights"), self._begin + timedelta(days=self._days), {}
        ):
            assert failed is None, failed
        clean_up(self.instance, self.space.home, self.space.home / "runs")
        return [run for run in self.instance.get_runs() if run.run_id not in before]

    def said(self, run: dg.DagsterRun) -> str:
        """Everything that a run's page shows of why it failed."""
        said = []
        for entry in self.instance.all_logs(run.run_id):
            event = entry.dagster_event
            if event is None:
                continue
            if event.is_step_failure:
                failure = event.step_failure_data
                said.append(failure.user_failure_data.description if failure.user_failure_data else str(failure.error))
            elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                verdict = event.asset_check_evaluation_data
                said.extend([] if verdict.passed else [str(verdict.description)])
            elif event.is_failure:
                said.append(entry.user_message or event.message or "")
        return "\n".join(said)

    def rows(self, run: dg.DagsterRun) -> int:
        """Rows of the event log that a run has added."""
        return len(self.instance.all_logs(run.run_id))


@contextmanager
def nights(space: Workspace, stand: Stand, assets: list[str] | None, webhook: str) -> Iterator[Nights]:
    """The nightly schedule of a user, over all assets or over some.

    Args:
        assets: None for all, by the recipe's own schedule.
        webhook: Where the code server posts its notices.
    """
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    settings["run_launcher"] = {"module": __name__, "class": "Worker"}
    settings["run_coordinator"] = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    settings.pop("concurrency")
    home = space.folder / "instance"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    (space.home / "dagster").mkdir(parents=True)
    (space.folder / "location.py").write_text(_ALL if assets is None else _SOME.format(assets=assets))
    os.environ.update(
        GATEHOUSE_HOME=str(space.home),
        GATEHOUSE_DAGSTER=str(space.home / "dagster"),
        GATEHOUSE_RECIPE=str(space.recipe),
        GATEHOUSE_WEBHOOK_URL=webhook,
    )
    target = PythonFileTarget(
        str(space.folder / "location.py"), attribute=None, working_directory=str(ROOT), location_name="mine"
    )
    try:
        with (
            dg.DagsterInstance.from_config(str(home)) as instance,
            create_test_daemon_workspace_context(target, instance) as context,
        ):
            yield Nights(space, stand, instance, context, "mine_nightly" if assets is None else "some_nightly")
    finally:
        del os.environ["GATEHOUSE_RECIPE"], os.environ["GATEHOUSE_WEBHOOK_URL"]
