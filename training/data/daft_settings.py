"""Daft without telemetry and progress bars. Import this before Daft."""

from __future__ import annotations

import os

os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DAFT_PROGRESS_BAR"] = "0"
