"""`gatehouse rollback`: back to the version that was promoted before."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Author, Recipe, new_app

app = new_app()


@app.command()
def rollback(
    asset: Annotated[str, typer.Argument(help="An asset, such as base_model.")],
    reason: Annotated[str, typer.Option(help="Why the promoted version is left.")] = "rolled back",
    author: Author = "",
    recipe: Recipe = "tiny",
) -> None:
    """Go back to the version that was promoted before, if its gates still let it pass.

    The version that is left is held back: no run promotes it again until `gatehouse promote` does. What was made from
    it stays as it is until its own assets are run again.

    Example: `gatehouse rollback base_model --reason "answers in French"`.
    """
    from pipeline.building import decisions
    from pipeline.cli.decision import Decision, show_events

    decision = Decision(recipe, asset, author)
    decision.show_promoted(decisions.rollback(decision.builder, asset, reason, decision.author, show_events))
