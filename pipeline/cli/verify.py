"""`gatehouse verify`: read everything that is promoted, and check every record about it."""

from __future__ import annotations

import json

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.cli.console import make_console
from pipeline.graph import require_asset
from pipeline.humanize import size
from pipeline.paths import home, store_root
from pipeline.recipes.loader import load_recipe
from pipeline.upkeep.verification import Finding, Verification
from training.errors import EXIT_FAULT, EXIT_OK
from training.store.store import Store


def verify(recipe: str, asset: str, as_json: bool) -> int:
    """Print what was looked at and what is wrong with it; return the exit code.

    Raises:
        RecipeError: There is no such asset.
        InputRefused: Nothing of the asset is promoted.
    """
    loaded = load_recipe(recipe)
    if asset:
        require_asset(asset)
    found = _read(Verification(Store(store_root(), loaded.recipe.name, cache=home() / "cache"), asset), as_json)
    if as_json:
        print(json.dumps([finding.as_json() for finding in found], indent=1))
    else:
        _show(found)
    return EXIT_FAULT if any(finding.defects for finding in found) else EXIT_OK


def _read(verification: Verification, quiet: bool) -> list[Finding]:
    console = make_console()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=verification.bytes)
        return verification.run(lambda asset, count: progress.update(task, advance=count, description=asset))


def _show(found: list[Finding]) -> None:
    console = make_console()
    table = Table(title="every byte was read", title_justify="left")
    for name in ("asset", "version", "why", "files", "size", "holds"):
        table.add_column(name, overflow="fold", justify="right" if name in ("files", "size") else "left")
    for finding in found:
        table.add_row(
            finding.asset,
            finding.version or "-",
            finding.role,
            str(finding.files),
            size(finding.bytes),
            f"[red]{len(finding.defects)} defects[/]" if finding.defects else "[green]yes[/]",
        )
    console.print(table)
    for finding in found:
        for line in finding.adopted:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for defect in finding.defects:
            console.print(
                f"{finding.asset} {finding.version}: {defect}",
                style="red",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    wrong = sum(bool(finding.defects) for finding in found)
    console.print(
        f"{len(found)} versions, {size(sum(finding.bytes for finding in found))}: "
        + (f"{wrong} do not hold." if wrong else "everything holds." if found else "nothing is promoted."),
        highlight=False,
    )
