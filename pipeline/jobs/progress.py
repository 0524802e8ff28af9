"""Who is told what a running job says. The `gatehouse` command registers its display here."""

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
    """Tell `display` the asset and the events of every job that runs in this process."""
    registered = _Registered(display)
    _displays.append(registered)
    try:
        yield
    finally:
        _displays.remove(registered)


def tell(asset: str, events: list[dict[str, Any]]) -> None:
    """Pass events of an asset's job on.

    A display that cannot show them fails no step, as on a closed terminal, on a full disk, or for a character that
    cannot be encoded. Its first failure is logged.
    """
    for one in _displays:
        try:
            one.display(asset, events)
        except (OSError, ValueError) as error:  # UnicodeError and a closed file are ValueErrors
            if not one.failed:
                one.failed = True
                logging.getLogger("gatehouse").warning("progress cannot be shown: %s", error)


def is_displayed() -> bool:
    """True when a display shows progress, so that raw output need not."""
    return bool(_displays)
