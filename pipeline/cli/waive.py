"""`gatehouse waive`: let one version pass a gate that refused it, until a day."""

from __future__ import annotations

from datetime import date

from pipeline.building import decisions
from pipeline.building.builder import Judgement
from pipeline.cli.promote import Desk, say
from pipeline.gates.wording import gate_state
from pipeline.graph import require_asset
from training.errors import RecipeError


def waive(recipe: str, asset: str, gate: str, reason: str, until: str, author: str, version: str) -> None:
    """Write a waiver, judge again and say what came of it.

    Raises:
        UserError: The waiver is not one; see `pipeline.building.decisions.waive`.
    """
    wrong = [] if reason.strip() else ["--reason: say why it may pass all the same; people will read it"]
    try:
        day = date.fromisoformat(until)
    except ValueError:
        wrong.append(f"{f'--until {until}'.strip()}: write the day as 2026-12-31")
    if wrong:
        raise RecipeError("; ".join(wrong))
    require_asset(asset)
    desk = Desk(recipe, author)
    desk.repair()
    judged = decisions.waive(desk.builder, asset, gate, reason, day, desk.author, say, version)
    _show(desk, judged, f"{gate} of {asset} {judged.manifest.version} is waived until {day} by {desk.author}.")


def withdraw(recipe: str, asset: str, gate: str, version: str) -> None:
    """Take a waiver back, judge again and say what came of it.

    Raises:
        UserError: There is no such waiver.
    """
    require_asset(asset)
    desk = Desk(recipe, "")
    desk.repair()
    judged = decisions.withdraw_waiver(desk.builder, asset, gate, say, version)
    _show(desk, judged, f"{gate} of {asset} {judged.manifest.version} is waived no longer.")


def _show(desk: Desk, judged: Judgement, done: str) -> None:
    desk.tell()
    desk.console.print(done, highlight=False)
    certificate = judged.certificate
    for verdict in certificate.verdicts:
        if gate_state(certificate, verdict) == "failed":
            desk.console.print(f"It is still refused: {verdict.reason}", highlight=False, markup=False)
    if judged.promoted:
        desk.console.print(
            f"{certificate.asset} {certificate.version} is promoted. Every page of what is made from it "
            "names the waiver.",
            highlight=False,
        )
    elif certificate.passed:
        desk.console.print(
            f"Another version of {certificate.asset} stays promoted: `gatehouse promote "
            f"-r {desk.builder.store.recipe} {certificate.asset} {certificate.version}` takes this one.",
            highlight=False,
        )
