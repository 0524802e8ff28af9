"""`gatehouse status` and `gatehouse plan`."""

from __future__ import annotations

import json
import time

from rich.table import Table

from pipeline.display import make_console
from pipeline.environment import home, store_root
from pipeline.recipe import load_recipe
from pipeline.status import AssetStatus, survey
from training.store import Store


def show_status(recipe: str, overrides: list[str], as_json: bool) -> None:
    """Print the state of every asset as a table, or as a JSON list."""
    found = _survey(recipe, overrides)
    if as_json:
        print(json.dumps([status.as_json() for status in found], indent=1))
        return
    table = Table(title=f"recipe {recipe}", title_justify="left")
    for name in ("asset", "promoted", "latest", "state", "gates", "headline", "age", "size"):
        table.add_column(name, overflow="fold")
    for status in found:
        table.add_row(*_row(status))
    make_console().print(table)


def show_plan(recipe: str, overrides: list[str]) -> None:
    """Print what materializing everything would reuse and build, and why."""
    table = Table(title=f"recipe {recipe}", title_justify="left")
    for name in ("asset", "would", "why"):
        table.add_column(name, overflow="fold")
    for status in _survey(recipe, overrides):
        table.add_row(status.asset, "[green]reuse[/]" if status.fresh else "[yellow]build[/]",
                      status.shown.version if status.fresh and status.shown else status.why)
    make_console().print(table)


def _survey(recipe: str, overrides: list[str]) -> list[AssetStatus]:
    loaded = load_recipe(recipe, overrides)
    return survey(loaded, Store(store_root(), loaded.recipe.name, cache=home() / "cache"))


def _row(status: AssetStatus) -> tuple[str, ...]:
    shown = status.shown
    if shown is None:
        return status.asset, "-", "-", f"[yellow]{status.why}[/]", "-", "-", "-", "-"
    verdicts = status.certificate.verdicts if status.certificate else ()
    passed = sum(verdict.passed for verdict in verdicts)
    colour = "green" if verdicts and passed == len(verdicts) else "red"
    return (status.asset, shown.version if status.promoted else "-", status.latest.version if status.latest else "-",
            "[green]fresh[/]" if status.fresh else f"[yellow]{status.why}[/]",
            f"[{colour}]{passed}/{len(verdicts)}[/]", status.headline(),
            age(time.time() - shown.started_at - shown.seconds), size(shown.bytes))


def age(seconds: float) -> str:
    """A duration for people: 42s, 17m, 5h, 3d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
