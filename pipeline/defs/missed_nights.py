"""Nights of a schedule on which nothing was started, because no scheduler ran or it failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import takewhile
from zoneinfo import ZoneInfo

import dagster as dg
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    InstigatorType,
    ScheduleInstigatorData,
    TickStatus,
)
from dagster._utils.schedules import schedule_execution_time_iterator

_LOOK_BACK = 1000


def missed_nights(context: dg.ScheduleEvaluationContext, cron: str, timezone: str) -> list[datetime]:
    """The times since the last tick at which the schedule was due and started nothing, oldest first.

    After a time without a scheduler Dagster launches only the latest tick of a schedule that has no partitions, and
    names the others in the daemon's log alone. A time at which the schedule was switched off is not missed. A tick that
    a person tries out in the UI misses nothing: the instance has no record of it.

    Args:
        context: Of the tick that is evaluated.
        cron: When the schedule is due.
        timezone: IANA name of the zone of `cron`.

    Returns:
        Times in `timezone`.
    """
    now = context.scheduled_execution_time.timestamp()

    for state in context.instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE):
        if state.instigator_name != context._schedule_name:  # Dagster has no public way to a tick's own schedule
            continue

        ticks = context.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_LOOK_BACK)
        if any(tick.timestamp == now and tick.status == TickStatus.STARTED for tick in ticks):
            return _missed(state, [tick for tick in ticks if tick.timestamp < now], now, cron, timezone)

    return []


def _missed(
    state: InstigatorState,
    before: Sequence[InstigatorTick],
    now: float,
    cron: str,
    timezone: str,
) -> list[datetime]:
    """The ticks that failed, and the times that the scheduler left out since it last looked.

    Args:
        before: The ticks before this one, newest first.
        now: When the present tick was due, in seconds since 1970.
    """
    data = state.instigator_data
    assert isinstance(data, ScheduleInstigatorData)
    switched_on = data.start_timestamp or now
    failed = {tick.timestamp for tick in takewhile(_started_nothing, before) if tick.timestamp >= switched_on}

    last_look = max(switched_on, data.last_iteration_timestamp or 0, *(tick.timestamp + 1 for tick in before[:1]))
    due = takewhile(lambda time: time.timestamp() < now, schedule_execution_time_iterator(last_look, cron, timezone))
    return [*(datetime.fromtimestamp(time, ZoneInfo(timezone)) for time in sorted(failed)), *due]


def _started_nothing(tick: InstigatorTick) -> bool:
    return tick.status in (TickStatus.FAILURE, TickStatus.STARTED) and not tick.run_ids
