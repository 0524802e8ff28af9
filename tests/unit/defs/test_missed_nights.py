"""What the nightly schedule says of nights on which nothing was started, over a real instance's record of ticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo

from pipeline.defs.missed_nights import missed_nights

_CRON, _ZONE = "30 2 * * *", "Europe/Berlin"
Ask = Callable[..., list[str]]


def night(day: int, month: int = 11) -> datetime:
    return datetime(2026, month, day, 2, 30, tzinfo=ZoneInfo(_ZONE))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as made:
        yield made


@pytest.fixture
def ask(instance: dg.DagsterInstance) -> Ask:
    """Asks in the night of a day, after ticks of other days have ended in some way."""

    def asked(
        today: datetime,
        ticks: dict[int, TickStatus],
        on_since: datetime,
        looked: datetime | None = None,
        begun: bool = True,
    ) -> list[str]:
        origin = RemoteInstigatorOrigin(
            RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("mine"), "__repository__"), "mine_nightly"
        )
        state = InstigatorState(
            origin,
            InstigatorType.SCHEDULE,
            InstigatorStatus.RUNNING,
            ScheduleInstigatorData(_CRON, on_since.timestamp(), looked.timestamp() if looked else None),
        )
        instance.add_instigator_state(state)
        times = {night(day, today.month): status for day, status in ticks.items()}
        for time, status in {**times, **({today: TickStatus.STARTED} if begun else {})}.items():
            instance.create_tick(
                TickData(
                    instigator_origin_id=state.instigator_origin_id,
                    instigator_name="mine_nightly",
                    instigator_type=InstigatorType.SCHEDULE,
                    status=status,
                    timestamp=time.timestamp(),
                    selector_id=state.selector_id,
                    run_ids=["a"] if status == TickStatus.SUCCESS else [],
                    error=SerializableErrorInfo("busy", [], None) if status == TickStatus.FAILURE else None,
                )
            )
        with dg.ScheduleEvaluationContext(instance.get_ref(), today, None, "__repository__", "mine_nightly") as context:
            return [f"{time:%m-%d %H:%M}" for time in missed_nights(context, _CRON, _ZONE)]

    return asked


def test_every_night_had_its_tick(ask: Ask) -> None:
    assert ask(night(12), {10: TickStatus.SUCCESS, 11: TickStatus.SUCCESS}, night(9)) == []


def test_nights_without_a_scheduler(ask: Ask) -> None:
    assert ask(night(14), {10: TickStatus.SUCCESS, 11: TickStatus.SUCCESS}, night(9)) == ["11-12 02:30", "11-13 02:30"]


def test_a_tick_that_failed_or_was_cut_off(ask: Ask) -> None:
    ticks = {9: TickStatus.FAILURE, 10: TickStatus.SUCCESS, 11: TickStatus.FAILURE, 12: TickStatus.STARTED}
    assert ask(night(13), ticks, night(8)) == ["11-11 02:30", "11-12 02:30"], "those before a good night were told then"


def test_a_schedule_that_was_off(ask: Ask) -> None:
    on_since = night(13) + timedelta(hours=5)
    assert ask(night(14), {9: TickStatus.SUCCESS, 10: TickStatus.FAILURE}, on_since) == []


def test_another_hour_than_before(ask: Ask) -> None:
    """The schedule was due at another hour when the scheduler last looked."""
    assert ask(night(14), {12: TickStatus.SUCCESS}, night(9), looked=night(13) + timedelta(hours=3)) == []


def test_the_clock_was_put_back(ask: Ask) -> None:
    """25 October 2026 has 25 hours in Berlin, and half past two comes twice."""
    missed = ask(night(27, 10), {23: TickStatus.SUCCESS}, night(20, 10))
    assert missed == ["10-24 02:30", "10-25 02:30", "10-26 02:30"]


def test_a_tick_that_is_tried_out_in_the_ui(ask: Ask) -> None:
    assert ask(night(14), {10: TickStatus.SUCCESS, 11: TickStatus.STARTED}, night(9), begun=False) == []
