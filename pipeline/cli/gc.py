"""`gatehouse gc`: delete what nothing needs any more."""

from __future__ import annotations

from rich.table import Table

from pipeline.cli.console import make_console
from pipeline.humanize import size
from pipeline.paths import home, store_root, work
from pipeline.recipes.loader import load_recipe
from pipeline.upkeep.gc import Deletion, Garbage, delete_garbage, find_garbage
from training.store.store import Store


def collect(recipe: str, dry_run: bool, hours: float) -> None:
    """Delete what no recent promotion, hold, waiver or running job keeps; or only say what.

    Args:
        hours: What is younger than this is kept.

    Raises:
        StoreError: Something cannot be read that says what is needed, or something cannot be removed.
    """
    loaded = load_recipe(recipe)
    store = Store(store_root(), loaded.recipe.name, cache=home() / "cache")
    console = make_console()
    garbage = find_garbage(loaded, store, work(), hours * 3600)
    for note in garbage.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if not garbage.deletions:
        console.print(f"There is nothing to delete that is older than {hours:g} hours.", highlight=False)
        return
    if dry_run:
        console.print(_table(garbage))
        console.print(
            f"{size(sum(one.bytes for one in garbage.deletions))} would be freed; nothing was deleted.", highlight=False
        )
        return
    gone: list[Deletion] = []

    def say(deletion: Deletion, kept: str) -> None:
        if not kept:
            gone.append(deletion)
        console.print(
            f"kept {deletion.name}: {kept}"
            if kept
            else f"deleted {deletion.kind} {deletion.name} ({size(deletion.bytes)})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    delete_garbage(garbage, store, work(), say)
    console.print(f"{size(sum(one.bytes for one in gone))} freed.", highlight=False)


def _table(garbage: Garbage) -> Table:
    table = Table(title="would be deleted", title_justify="left")
    for name in ("kind", "what", "size", "lost with it"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for deletion in garbage.deletions:
        table.add_row(deletion.kind, deletion.name, size(deletion.bytes), deletion.loss)
    return table
