"""Displays of what a running job says. The `gatehouse` command registers its own here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Display = Callable[[str, list[dict[str, Any]]], None]


@dataclass
class _Registered:
    display: Display
    failed: bool = False


_displays: list[_Registered] = []


@contextmanager
def displayed(display: Display) -> Iterator[None]:
    """Meanwhile `display` gets the asset and the events of every job that runs in this process."""
    registered = _Registered(display)
    _displays.append(registered)
    try:
        yield
    finally:
        _displays.remove(registered)


def show(asset: str, events: list[dict[str, Any]]) -> None:
    """Pass events of an asset's job to every display.

    A display that cannot show them (a closed terminal, a full disk, a character that cannot be encoded) fails no step.
    Its first failure is logged.
    """
    for registered in _displays:
        try:
            registered.display(asset, events)
        except (OSError, ValueError) as error:  # UnicodeError and a closed file are ValueErrors
            if not registered.failed:
                registered.failed = True
                logging.getLogger("gatehouse").warning("progress cannot be shown: %s", error)


def is_displayed() -> bool:
    """True when a display shows progress, so that raw output need not."""
    return bool(_displays)
