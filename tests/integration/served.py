"""One user's webserver and daemon, with what may start a training by itself: a schedule, a sensor, a condition."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from tests.conftest import BIN, ROOT, environment
from tests.integration.bypasses import PARENT, store
from tests.integration.workspaces import Workspace
from tests.patience import Patience

DEFINITIONS = """
import os
import dagster as dg
from pipeline.definitions import build_definitions

CHILD = dg.AssetKey(["mine", "sft_model"])


@dg.sensor(target=dg.AssetSelection.assets(CHILD), default_status=dg.DefaultSensorStatus.RUNNING,
           minimum_interval_seconds=5)
def pushes(context):
    return dg.RunRequest(run_key="once", asset_selection=[CHILD])


watching = dg.AutomationConditionSensorDefinition(
    "watching", target=dg.AssetSelection.assets(CHILD), default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=5)
defs = dg.Definitions.merge(
    build_definitions(os.environ["GATEHOUSE_RECIPE"]).map_resolved_asset_specs(
        selection=dg.AssetSelection.assets(CHILD),
        func=lambda spec: spec.replace_attributes(automation_condition=dg.AutomationCondition.eager())),
    dg.Definitions(sensors=[pushes, watching]))
"""


@contextmanager
def serve(space: Workspace, folder: Path) -> Iterator[Served]:
    """Serve a user's recipe, its nightly schedule due in a minute, until the end of the block."""
    soon = datetime.now(UTC) + timedelta(seconds=75)
    space.recipe.write_text(f"{space.recipe.read_text()}nightly: {{hour: {soon.hour}, minute: {soon.minute}}}\n")
    (folder / "location.py").write_text(DEFINITIONS)
    (folder / "workspace.yaml").write_text(
        yaml.safe_dump({"load_from": [{"python_file": {"relative_path": "location.py", "location_name": "mine"}}]})
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = folder / "dagster.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "dagster"), "dev", "--workspace", str(folder / "workspace.yaml"), "--port", str(port)],
            cwd=ROOT,
            env=environment(space.home, GATEHOUSE_RECIPE=str(space.recipe), DAGSTER_MODULE_NAME=""),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        server = Served(space, f"http://127.0.0.1:{port}", path)
        server.begin()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Served:
    """One user's webserver and daemon."""

    def __init__(self, space: Workspace, url: str, log: Path) -> None:
        self.space = space
        self.url = url
        self.log = log

    def begin(self) -> None:
        """Wait for the webserver and switch the schedule on."""
        patience = Patience(90)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/server_info", timeout=2).close()
                break
            except OSError:
                assert not patience.is_over(), self.log.read_text()[-3000:]
                time.sleep(0.5)
        selector = {"repositoryLocationName": "mine", "repositoryName": "__repository__"}
        self.ask(
            "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename ... on PythonError"
            " { message } } }",
            s=selector | {"scheduleName": "mine_nightly"},
        )

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = json.load(answer)
        assert "errors" not in data, data
        (found,) = data["data"].values()
        assert "Error" not in found["__typename"], found
        return dict(found)

    def instance(self) -> dg.DagsterInstance:
        os.environ["GATEHOUSE_DAGSTER"] = str(self.space.home / "dagster")
        return dg.DagsterInstance.from_config(str(ROOT))

    def new_parent(self, instance: dg.DagsterInstance) -> None:
        """Dagster sees the parent being materialized, as after a run that built it."""
        made = store(self.space).latest(PARENT)
        assert made is not None
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                ["mine", PARENT], metadata={"version": made.version}, tags={"dagster/data_version": str(time.time_ns())}
            )
        )

    def failure(self, tag: str, value: str | None = None) -> str:
        """What ended the first run with a tag; waits for it."""
        patience = Patience(150)
        with self.instance() as instance:
            while True:
                for run in instance.get_runs():
                    if tag in run.tags and value in (None, run.tags[tag]) and run.is_finished:
                        assert run.status == dg.DagsterRunStatus.FAILURE
                        return self._said(instance, run.run_id)
                assert not patience.is_over(), f"no run with {tag}: {self.log.read_text()[-3000:]}"
                time.sleep(0.5)

    @staticmethod
    def _said(instance: dg.DagsterInstance, run_id: str) -> str:
        said = []
        for entry in instance.all_logs(run_id):
            event = entry.dagster_event
            if event is None:
                continue
            if event.is_step_failure and event.step_failure_data.user_failure_data:
                said.append(f"{event.step_key}: {event.step_failure_data.user_failure_data.description}")
            if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                verdict = event.asset_check_evaluation_data
                if not verdict.passed:
                    said.append(f"{verdict.asset_key.path[-1]} check {verdict.check_name}: {verdict.description}")
        return "\n".join(said)
