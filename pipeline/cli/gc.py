"""`gatehouse gc`: delete what nothing needs any more."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.console import make_console
from pipeline.cli.options import Recipe, new_app
from pipeline.humanize import size
from pipeline.upkeep.gc import Deletion, Garbage, delete_garbage, find_garbage
from pipeline.workspace import Workspace

app = new_app()


@app.command()
def gc(
    recipe: Recipe = "tiny",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would go, and what would be lost with it.")
    ] = False,
    older_than: Annotated[float, typer.Option(metavar="HOURS", min=0, help="Keep what is younger.")] = 24,
) -> None:
    """Delete what no recent promotion, hold, waiver or running job keeps.

    Kept are of each asset the promoted version, the last three promotions, the newest version, those held back or
    waived, what all of these were made from or are compared with, and their evidence. What a run is working at is left
    alone.

    Example: `gatehouse gc --dry-run`.
    """
    collect(recipe, dry_run, older_than)


def collect(recipe: str, dry_run: bool, hours: float) -> None:
    """Delete what nothing needs; or only say what that is, and what would be lost with it.

    Args:
        hours: What is younger than this is kept.

    Raises:
        StoreError: A record that says what is needed cannot be read, or something cannot be removed.
    """
    workspace = Workspace(recipe)
    console = make_console()
    garbage = find_garbage(workspace.loaded, workspace.store, workspace.work, hours * 3600)
    # What is left alone and why, such as an asset that a run is working at.
    for note in garbage.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)

    if not garbage.deletions:
        console.print(f"There is nothing to delete that is older than {hours:g} hours.", highlight=False)
        return

    if dry_run:
        console.print(_table(garbage))
        console.print(
            f"{size(sum(deletion.bytes for deletion in garbage.deletions))} would be freed; nothing was deleted.",
            highlight=False,
        )
        return

    deleted: list[Deletion] = []

    def on_deletion(deletion: Deletion, kept: str) -> None:
        if kept:
            line = f"kept {deletion.name}: {kept}"
        else:
            deleted.append(deletion)
            line = f"deleted {deletion.kind} {deletion.name} ({size(deletion.bytes)})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    delete_garbage(garbage, workspace.store, workspace.work, on_deletion)
    console.print(f"{size(sum(deletion.bytes for deletion in deleted))} freed.", highlight=False)


def _table(garbage: Garbage) -> Table:
    table = Table(title="would be deleted", title_justify="left")
    for name in ("kind", "what", "size", "lost with it"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for deletion in garbage.deletions:
        table.add_row(deletion.kind, deletion.name, size(deletion.bytes), deletion.loss)
    return table
