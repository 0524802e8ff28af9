"""`gatehouse waive`: let one version pass a gate that refused it, until a day."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Author, Recipe, new_app
from training.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.building.builder import Judgement
    from pipeline.cli.decision import Decision

app = new_app()


@app.command("waive")
def command(
    asset: Annotated[str, typer.Argument(help="The refused asset, such as sft_model.")],
    gate: Annotated[str, typer.Option(help="The gate that refused it, as `gatehouse gates` names it.")],
    reason: Annotated[
        str, typer.Option(help="Required without --withdraw: why it may pass all the same. People will read it.")
    ] = "",
    until: Annotated[
        str,
        typer.Option(
            metavar="DAY",
            help="Required without --withdraw: the last day on which the "
            "waiver holds (UTC), such as 2026-12-31; within a year.",
        ),
    ] = "",
    version: Annotated[
        str, typer.Option(help="The version it is for; the newest by default. It is for this one alone.")
    ] = "",
    author: Author = "",
    take_back: Annotated[bool, typer.Option("--withdraw", help="Take the waiver back.")] = False,
    recipe: Recipe = "tiny",
) -> None:
    """Let one version pass a gate that refused it, for a reason and until a day.

    The version is judged again at once and promoted if nothing else refuses it; nothing is trained. Whatever is made
    from it names the waiver on its pages, its card and in MLflow. After the day it is refused again, and so is what was
    made from it.

    Examples: `gatehouse waive sft_model --gate refusal_rate --reason "demo only" --until 2026-12-31`,
    `gatehouse waive sft_model --gate refusal_rate --withdraw`.
    """
    if take_back:
        withdraw(recipe, asset, gate, version)
    else:
        waive(recipe, asset, gate, reason, until, author, version)


def waive(recipe: str, asset: str, gate: str, reason: str, until: str, author: str, version: str) -> None:
    """Write a waiver, judge again and say what came of it.

    Raises:
        UserError: The waiver is not one; see `pipeline.building.decisions.waive`.
    """
    problems = [] if reason.strip() else ["--reason: say why it may pass all the same; people will read it"]
    try:
        day = date.fromisoformat(until)
    except ValueError:
        problems.append(f"{f'--until {until}'.strip()}: write the day as 2026-12-31")
    if problems:
        raise RecipeError("; ".join(problems))

    from pipeline.building import decisions
    from pipeline.cli.decision import Decision, show_events

    decision = Decision(recipe, asset, author)
    judgement = decisions.waive(decision.builder, asset, gate, reason, day, decision.author, show_events, version)
    waived = f"{gate} of {asset} {judgement.manifest.version}"
    _show(decision, judgement, f"{waived} is waived until {day} by {decision.author}.")


def withdraw(recipe: str, asset: str, gate: str, version: str) -> None:
    """Take a waiver back, judge again and say what came of it.

    Raises:
        UserError: There is no such waiver.
    """
    from pipeline.building import decisions
    from pipeline.cli.decision import Decision, show_events

    decision = Decision(recipe, asset, "")
    judgement = decisions.withdraw_waiver(decision.builder, asset, gate, show_events, version)
    _show(decision, judgement, f"{gate} of {asset} {judgement.manifest.version} is waived no longer.")


def _show(decision: Decision, judgement: Judgement, done: str) -> None:
    from pipeline.gates.wording import gate_state

    decision.publish()
    decision.console.print(done, highlight=False)

    certificate = judgement.certificate
    for verdict in certificate.verdicts:
        if gate_state(certificate, verdict) == "failed":
            decision.console.print(f"It is still refused: {verdict.reason}", highlight=False, markup=False)

    if judgement.promoted:
        decision.console.print(
            f"{certificate.asset} {certificate.version} is promoted. Every page of what is made from it "
            "names the waiver.",
            highlight=False,
        )
    elif certificate.passed:
        decision.console.print(
            f"Another version of {certificate.asset} stays promoted: `gatehouse promote "
            f"-r {decision.builder.store.named} {certificate.asset} {certificate.version}` takes this one.",
            highlight=False,
        )
