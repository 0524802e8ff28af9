"""Daft without telemetry and progress bars; everything that uses Daft imports it from here."""

from __future__ import annotations

import os

# Daft reads these while it is imported.
os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DAFT_PROGRESS_BAR"] = "0"

import daft
from daft import functions as F

__all__ = ["F", "daft"]
