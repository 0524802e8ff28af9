"""`gatehouse verify`: read everything that is promoted, and check every record about it."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.cli.console import make_console
from pipeline.cli.options import Recipe, new_app
from pipeline.graph import require_asset
from pipeline.humanize import size
from pipeline.upkeep.verification import Finding, Verification
from pipeline.workspace import Workspace
from training.errors import EXIT_FAULT, EXIT_OK

app = new_app()


@app.command()
def verify(
    asset: Annotated[str, typer.Argument(help="An asset, such as sft_model; every promoted one by default.")] = "",
    recipe: Recipe = "tiny",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a version.")] = False,
) -> None:
    """Read every byte of what is promoted and of what it was made from, and check every record about it.

    Exit codes: 0 all of it holds, 1 something does not; each defect says what to do.

    Examples: `gatehouse verify`, `gatehouse verify sft_model`.
    """
    raise typer.Exit(show_verification(recipe, asset, as_json))


def show_verification(recipe: str, asset: str, as_json: bool) -> int:
    """Print what was looked at and what is wrong with it; return the exit code.

    Raises:
        RecipeError: There is no such asset.
        InputRefused: Nothing of the asset is promoted.
    """
    workspace = Workspace(recipe)
    store = workspace.store
    if asset:
        require_asset(asset, workspace.loaded.graph)

    findings = _read(Verification(store, asset), as_json)
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        _show(findings)
    return EXIT_FAULT if any(finding.defects for finding in findings) else EXIT_OK


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


def _show(findings: list[Finding]) -> None:
    console = make_console()
    table = Table(title="every byte was read", title_justify="left")
    for name in ("asset", "version", "why", "files", "size", "holds"):
        table.add_column(name, overflow="fold", justify="right" if name in ("files", "size") else "left")

    for finding in findings:
        table.add_row(
            finding.asset,
            finding.version or "-",
            finding.role,
            str(finding.files),
            size(finding.bytes),
            f"[red]{len(finding.defects)} defects[/]" if finding.defects else "[green]yes[/]",
        )
    console.print(table)

    for finding in findings:
        for line in finding.adopted:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for defect in finding.defects:
            line = f"{finding.asset} {finding.version}: {defect}"
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)

    defective = sum(bool(finding.defects) for finding in findings)
    outcome = "everything holds." if findings else "nothing is promoted."
    if defective:
        outcome = f"{defective} do not hold."
    read = size(sum(finding.bytes for finding in findings))
    console.print(f"{len(findings)} versions, {read}: {outcome}", highlight=False)
