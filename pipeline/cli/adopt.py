"""`gatehouse adopt`: take versions over under changed code, each after a proof, instead of making them anew."""

from __future__ import annotations

import time

from pipeline.building.adoption import adopt as adopt_one
from pipeline.building.adoption import describe_adoption
from pipeline.cli.console import RunDisplay
from pipeline.cli.promote import Desk
from pipeline.graph import GRAPH, require_asset
from pipeline.humanize import age
from pipeline.jobs.progress import displayed
from pipeline.upkeep.asset_status import survey
from training.errors import EXIT_FAULT, EXIT_OK, GatehouseError, RecipeError


def adopt(recipe: str, assets: list[str], is_all: bool, reason: str, author: str, seconds: float) -> int:
    """Prove and adopt; return the exit code: 0 when all of it was adopted or needed no adoption, else 1.

    Raises:
        RecipeError: There is no such asset, no reason is given, or neither assets nor --all.
    """
    if bool(assets) == is_all:
        raise RecipeError("name the assets to adopt, or give --all for every one that only its code sets apart")
    if not reason.strip():
        raise RecipeError("--reason: say why today's code makes the same; people will read it")
    for asset in assets:
        require_asset(asset)

    desk = Desk(recipe, author)
    desk.repair()
    chosen = _changed(desk) if is_all else [asset for asset in GRAPH if asset in assets]
    began, failed = time.monotonic(), []
    with RunDisplay(desk.console) as display, displayed(display):
        for asset in chosen:
            if not _adopted(desk, asset, reason, seconds):
                failed.append(asset)

    _conclude(desk, recipe, len(chosen) - len(failed), failed, time.monotonic() - began)
    return EXIT_FAULT if failed else EXIT_OK


def _changed(desk: Desk) -> list[str]:
    """The assets of which only the code has changed; the others that are not fresh are named."""
    statuses = survey(desk.loaded, desk.builder.store)
    for status in statuses:
        if not status.fresh and not status.code_changed:
            _print(desk, f"{status.asset} is left alone: {status.why}")
    return [status.asset for status in statuses if status.code_changed]


def _adopted(desk: Desk, asset: str, reason: str, seconds: float) -> bool:
    """Whether an asset is what today's code asks for now; what was proven, or why not, is printed."""
    try:
        adoption = adopt_one(desk.builder, asset, reason, desk.author, lambda _events: None, seconds)
    except GatehouseError as error:
        _print(desk, f"{asset} is not adopted: {error}", "red")
        return False
    if adoption is None:
        _print(desk, f"{asset} needs no adoption: today's code asks for a version that is there")
    else:
        _print(desk, describe_adoption(adoption), "green")
    return True


def _conclude(desk: Desk, recipe: str, adopted: int, failed: list[str], seconds: float) -> None:
    _print(desk, f"{adopted} adopted in {age(seconds)}" + (f", not adopted: {', '.join(failed)}." if failed else "."))
    if adopted:
        _print(desk, f"`gatehouse run -r {recipe}` reuses them; what is measured by other code is measured again.")


def _print(desk: Desk, line: str, style: str = "") -> None:
    desk.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
