"""What this package raises on purpose."""

from __future__ import annotations


class LmkernelsError(Exception):
    """A choice that this machine or this model cannot honour; the message says what to do."""
