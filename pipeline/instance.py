"""The Dagster instance of this user."""

from __future__ import annotations

import dagster as dg

from pipeline.environment import home
from pipeline.locks import in_turn


def open_instance() -> dg.DagsterInstance:
    """The instance, made if it is not there yet.

    One process makes it at a time: two that made SQLite's tables at once would leave a version table with two rows,
    which no command could open again.
    """
    with in_turn(home() / "instance.lock"):
        return dg.DagsterInstance.get()
