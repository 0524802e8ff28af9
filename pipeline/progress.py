"""Who is told what a running job says. The `gatehouse` command registers its display here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Display = Callable[[str, list[dict[str, Any]]], None]
_displays: list[Display] = []


@contextmanager
def displayed(display: Display) -> Iterator[None]:
    """Tell `display` the asset and the events of every job that runs in this process."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


def tell(asset: str, events: list[dict[str, Any]]) -> None:
    """Pass events of an asset's job on."""
    for display in _displays:
        display(asset, events)


def is_displayed() -> bool:
    """True when a display shows progress, so that raw output need not."""
    return bool(_displays)
