"""`gatehouse promote`: which certified version downstream reads."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Author, Recipe, new_app

app = new_app()


@app.command()
def promote(
    asset: Annotated[str, typer.Argument(help="An asset, such as base_model.")],
    version: Annotated[str, typer.Argument(help="One of its versions; `gatehouse status` shows the newest.")],
    author: Author = "",
    recipe: Recipe = "tiny",
) -> None:
    """Make one version of an asset the one that downstream reads.

    Only a version that its gates let pass can be promoted: it is judged on today's gates, suite and evaluator, from the
    evidence that is there, and its bytes are read. A version that was held back is held back no longer. If it is older
    than the promoted one, that one is held back, or the next run would promote it again.

    Example: `gatehouse promote base_model 20261121T012233-1a2b3c4d`.
    """
    from pipeline.building import decisions
    from pipeline.cli.decision import Decision, show_events

    decision = Decision(recipe, asset, author)
    decision.show_promoted(decisions.promote(decision.builder, asset, version, decision.author, show_events))
