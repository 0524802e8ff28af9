"""The error that this package raises on purpose."""

from __future__ import annotations


class LmkernelsError(Exception):
    """The choice cannot run on this machine or with this model; the message says what to do."""
