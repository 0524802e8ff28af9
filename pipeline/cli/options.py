"""What the commands share: how each is made, and the options that several of them take."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", envvar="GATEHOUSE_RECIPE", help="Name of a recipe in assets_config/, or a path to one."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, such as `base_model.steps=200`. Repeatable."),
]
Author = Annotated[str, typer.Option(help="Who decides; your login name by default.")]


def new_app(description: str | None = None) -> typer.Typer:
    """The command, or the group of commands, that one module holds.

    Args:
        description: What a group is for.
    """
    return typer.Typer(
        help=description,
        no_args_is_help=description is not None,
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
