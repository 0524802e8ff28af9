"""The nights on which clocks are put forward or back: Dagster's own scheduler, with a clock that is moved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from pipeline.defs.schedules import MISSED
from tests.conftest import ROOT

SCHEDULED = ".dagster/scheduled_execution_time"
BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
_LOCATION = """
import dagster as dg
from pipeline.defs.schedules import nightly_schedule
from pipeline.recipes.loader import load_recipe

@dg.asset
def nothing() -> None:
    pass

def nightly(place, zone, hour, minute):
    loaded = load_recipe("tiny", [f"nightly={{hour: {hour}, minute: {minute}, timezone: {zone}}}"])
    return nightly_schedule(loaded, dg.define_asset_job(f"{place}_{hour}_{minute}_everything", selection=[nothing]))

defs = dg.Definitions(assets=[nothing], schedules=[
    nightly(place, zone, hour, minute) for place, zone in (("berlin", "Europe/Berlin"), ("rome", "Europe/Rome"),
                                                                ("york", "America/New_York"))
    for hour, minute in ((2, 0), (2, 30), (1, 30))])
"""


class Nights:
    """One schedule, and a clock."""

    def __init__(self, context: Any, instance: dg.DagsterInstance) -> None:
        self._context, self._instance = context, instance
        [entry] = context.create_request_context().get_code_location_entries().values()
        assert entry.code_location is not None, entry.load_error
        self._repository = entry.code_location.get_repository("__repository__")

    def switch_on(self, name: str, now: datetime) -> None:
        for schedule in self._repository.get_schedules():
            self._instance.stop_schedule(schedule.get_remote_origin_id(), schedule.selector_id, schedule)
        with freeze_time(now.astimezone(UTC)):
            self._instance.start_schedule(self._repository.get_schedule(name))

    def look(self, now: datetime) -> list[dg.DagsterRun]:
        """The runs that the scheduler starts when it looks at the clock."""
        before = {run.run_id for run in self._instance.get_runs()}
        with freeze_time(now.astimezone(UTC)):
            failed = list(launch_scheduled_runs(self._context, logging.getLogger("nights"), now.astimezone(UTC), {}))
        assert not any(failed), failed
        return [run for run in self._instance.get_runs() if run.run_id not in before]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "location.py").write_text(_LOCATION)
    mocked = {
        "telemetry": {"enabled": False},
        "run_launcher": {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"},
        "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
    }
    target = PythonFileTarget(
        str(folder / "location.py"), attribute=None, working_directory=str(ROOT), location_name="nights"
    )
    with (
        dg.DagsterInstance.local_temp(str(folder), overrides=mocked) as instance,
        create_test_daemon_workspace_context(target, instance) as context,
    ):
        yield Nights(context, instance)


def times(runs: list[dg.DagsterRun], zone: ZoneInfo) -> list[str]:
    return [f"{datetime.fromisoformat(run.tags[SCHEDULED]).astimezone(zone):%m-%d %H:%M %Z}" for run in runs]


@pytest.mark.parametrize(
    ("place", "zone", "day", "at"),
    [
        ("berlin", BERLIN, datetime(2027, 3, 28), "03-28 03:00 CEST"),
        ("york", NEW_YORK, datetime(2027, 3, 14), "03-14 03:00 EDT"),
    ],
)
@pytest.mark.parametrize("minute", [0, 30])
def test_a_night_without_the_hour_has_one_run_at_the_next(
    nights: Nights, place: str, zone: ZoneInfo, day: datetime, minute: int, at: str
) -> None:
    nights.switch_on(f"{place}_2_{minute}_nightly", (day - timedelta(days=2, hours=-12)).replace(tzinfo=zone))
    assert len(nights.look((day - timedelta(days=1, hours=-3)).replace(tzinfo=zone))) == 1
    runs = nights.look(day.replace(hour=3, minute=1, tzinfo=zone))
    assert times(runs, zone) == [at] and MISSED not in runs[0].tags
    assert nights.look(day.replace(hour=3, minute=31, tzinfo=zone)) == []
    assert nights.look(day.replace(hour=23, tzinfo=zone)) == []
    [next_run] = nights.look((day + timedelta(days=1, hours=3)).replace(tzinfo=zone))
    assert times([next_run], zone)[0].split()[1] == f"02:{minute:02}" and MISSED not in next_run.tags


def test_a_night_without_the_hour_counts_as_missed_when_nobody_looked(nights: Nights) -> None:
    nights.switch_on("rome_2_0_nightly", datetime(2027, 3, 26, 12, tzinfo=BERLIN))
    assert nights.look(datetime(2027, 3, 26, 13, tzinfo=BERLIN)) == []
    [run] = nights.look(datetime(2027, 3, 30, 2, 1, tzinfo=BERLIN))
    assert times([run], BERLIN) == ["03-30 02:00 CEST"]
    assert run.tags[MISSED] == "3 nights, 2027-03-27 02:00 to 2027-03-29 02:00"


@pytest.mark.parametrize(
    ("name", "zone", "early", "late", "at"),
    [
        ("berlin_2_0", BERLIN, datetime(2027, 10, 31, 0, 45), datetime(2027, 10, 31, 1, 1), "10-31 02:00 CET"),
        ("berlin_2_30", BERLIN, datetime(2027, 10, 31, 0, 45), datetime(2027, 10, 31, 1, 31), "10-31 02:30 CET"),
        ("york_1_30", NEW_YORK, datetime(2027, 11, 7, 5, 45), datetime(2027, 11, 7, 6, 31), "11-07 01:30 EST"),
    ],
)
def test_a_night_with_the_hour_twice_has_one_run_in_the_second(
    nights: Nights, name: str, zone: ZoneInfo, early: datetime, late: datetime, at: str
) -> None:
    """`early` (UTC) is after the hour came first, `late` after it came again."""
    nights.switch_on(f"{name}_nightly", (early - timedelta(hours=6)).replace(tzinfo=UTC))
    assert nights.look(early.replace(tzinfo=UTC)) == []
    assert times(nights.look(late.replace(tzinfo=UTC)), zone) == [at]
    assert nights.look((late + timedelta(hours=12)).replace(tzinfo=UTC)) == []
