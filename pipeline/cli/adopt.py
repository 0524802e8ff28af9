"""`gatehouse adopt`: take versions over under changed code, each after a proof, instead of making them anew."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Author, Recipe, new_app
from pipeline.graph import require_asset
from pipeline.humanize import age
from training.errors import EXIT_FAULT, GatehouseError, RecipeError
from training.specs.proofs import LONGEST_PROOF

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.building.builder import Builder

_ADOPTED, _NOT_NEEDED, _UNPROVEN = "adopted", "not needed", "unproven"

app = new_app()


@app.command("adopt")
def command(
    assets: Annotated[list[str] | None, typer.Argument(help="Assets, such as corpus base_model.")] = None,
    reason: Annotated[str, typer.Option(help="Required: why today's code makes the same. People will read it.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every asset that only its code sets apart from what a run would make.")
    ] = False,
    author: Author = "",
    seconds: Annotated[float, typer.Option(min=1, help="How long the proof of one asset may take.")] = LONGEST_PROOF,
    recipe: Recipe = "tiny",
) -> None:
    """Take versions over under changed code, after a proof, instead of making them anew.

    After an upgrade `gatehouse status` says "code changed" of what was made by other code from the same recipe, inputs
    and seed. The proof of data makes the files again and compares bytes; the proof of a model repeats the first steps
    of its training and compares the losses digit by digit. Nothing is adopted whose proof fails.

    Exit codes: 0 all adopted, 1 a proof failed or there is more than code that differs, 2 a mistake.

    Examples: `gatehouse adopt --all --reason "moved into rooms"`, `gatehouse adopt base_model --reason "renamed"`.
    """
    if not adopt(recipe, assets or [], everything, reason, author, seconds):
        raise typer.Exit(EXIT_FAULT)


def adopt(recipe: str, assets: list[str], is_all: bool, reason: str, author: str, seconds: float) -> bool:
    """Prove and adopt; return whether all of it was adopted or needed no adoption.

    Raises:
        RecipeError: There is no such asset, no reason is given, or neither assets nor --all.
    """
    if bool(assets) == is_all:
        raise RecipeError("name the assets to adopt, or give --all for every one that only its code sets apart")
    if not reason.strip():
        raise RecipeError("--reason: say why today's code makes the same; people will read it")

    from pipeline.cli.console import RunDisplay, make_console
    from pipeline.cli.decision import login, tidy
    from pipeline.jobs.progress import displayed
    from pipeline.workspace import Workspace

    console, workspace = make_console(), Workspace(recipe)
    graph = workspace.loaded.graph
    for asset in assets:
        require_asset(asset, graph)
    author = author or login()
    builder = workspace.builder(author)
    tidy(workspace, console)

    chosen = _changed(builder, console) if is_all else [asset for asset in graph if asset in assets]
    began, outcomes = time.monotonic(), dict.fromkeys(chosen, _UNPROVEN)
    with RunDisplay(console) as display, displayed(display):
        for asset in chosen:
            outcomes[asset] = _adopted(builder, asset, reason, author, seconds, console)

    adopted = sum(what == _ADOPTED for what in outcomes.values())
    failed = [asset for asset, what in outcomes.items() if what == _UNPROVEN]
    spent = age(time.monotonic() - began)
    _print(console, f"{adopted} adopted in {spent}" + (f", not adopted: {', '.join(failed)}." if failed else "."))
    if adopted:
        command = f"`gatehouse run -r {workspace.store.named}`"
        _print(console, f"{command} reuses them; what is measured by other code is measured again.")
    return not failed


def _changed(builder: Builder, console: Console) -> list[str]:
    """The assets of which only the code has changed; the others that are not fresh are named."""
    from pipeline.upkeep.asset_status import survey

    statuses = survey(builder.loaded, builder.store)
    for status in statuses:
        if not status.fresh and not status.code_changed:
            _print(console, f"{status.asset} is left alone: {status.why}")
    return [status.asset for status in statuses if status.code_changed]


def _adopted(builder: Builder, asset: str, reason: str, author: str, seconds: float, console: Console) -> str:
    """What became of an asset; what was proven, or why not, is printed."""
    from pipeline.building.adoption import adopt as prove_and_adopt
    from pipeline.building.adoption import describe_adoption

    try:
        adoption = prove_and_adopt(builder, asset, reason, author, lambda _events: None, seconds)
    except GatehouseError as error:
        _print(console, f"{asset} is not adopted: {error}", "red")
        return _UNPROVEN
    if adoption is None:
        _print(console, f"{asset} needs no adoption: today's code asks for a version that exists")
        return _NOT_NEEDED
    _print(console, describe_adoption(adoption), "green")
    return _ADOPTED


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
