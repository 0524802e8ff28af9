"""The `gatehouse` command. It only parses; `pipeline/commands` works."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.environment import prepare
from training.errors import GatehouseError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False,
    help="Gatehouse trains language models as a graph of assets, with a promotion gate after every stage.")
recipe_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")
app.add_typer(recipe_app, name="recipe")

Recipe = Annotated[str, typer.Option("--recipe", "-r", envvar="GATEHOUSE_RECIPE",
                                     help="Name of a recipe in assets_config/, or a path to one.")]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Override one value, such as `base_model.steps=200`. Repeatable.")]


@app.command()
def run(
    recipe: Recipe = "tiny",
    select: Annotated[str, typer.Option(help="Assets, separated by commas; `+name` takes what is upstream too; "
                                        "`*` is everything.")] = "*",
    overrides: Overrides = None,
    launcher: Annotated[str, typer.Option(help="Entry of launchers.yaml; the recipe's by default.")] = "",
    force: Annotated[bool, typer.Option(help="Run the jobs even when nothing has changed.")] = False,
) -> None:
    """Materialize the graph: build what has changed, reuse the rest, stop where a gate refuses.

    Exit codes: 0 all promoted, 1 a fault or a refusal, 2 a mistake in recipe or data, 130 interrupted.

    Examples: `gatehouse run`, `gatehouse run --select +sft_model`, `gatehouse run --set base_model.steps=400`.
    """
    from pipeline.commands.run import run as execute

    raise typer.Exit(execute(recipe, select, overrides or [], launcher, force))


@app.command()
def up(
    recipe: Annotated[list[str] | None, typer.Option(
        "--recipe", "-r", envvar="GATEHOUSE_RECIPE", help="Show this recipe beside tiny. Repeatable.")] = None,
    port: Annotated[int, typer.Option(help="Dagster's port on 127.0.0.1.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="MLflow's port on 127.0.0.1.")] = 5000,
) -> None:
    """Serve the Dagster UI with its daemon, and MLflow, until Ctrl-C."""
    from pipeline.commands.up import serve

    serve(recipe or [], port, mlflow_port)


@app.command()
def status(
    recipe: Recipe = "tiny",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object an asset.")] = False,
) -> None:
    """Show every asset: promoted and latest version, fresh or stale and why, gates, headline metric, age, size."""
    from pipeline.commands.status import show_status

    show_status(recipe, [], as_json)


@app.command()
def plan(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Say what `gatehouse run` would build and what it would reuse, and why. Nothing runs."""
    from pipeline.commands.status import show_plan

    show_plan(recipe, overrides or [])


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="One question; without it, a conversation on the terminal.")] = "",
    recipe: Recipe = "tiny",
    asset: Annotated[str, typer.Option(help="Which promoted model answers.")] = "lora_model",
) -> None:
    """Talk to a promoted model."""
    from pipeline.commands.chat import talk

    raise typer.Exit(talk(recipe, asset, question))


@recipe_app.command("show")
def recipe_show(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Print the recipe with every default and override filled in."""
    from pipeline.recipe import load_recipe, render

    typer.echo(render(load_recipe(recipe, overrides or []).recipe), nl=False)


@recipe_app.command("check")
def recipe_check(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Check a recipe: every key, every value, every file that it names, every job that it would make."""
    from pipeline.commands.recipe import check

    check(recipe, overrides or [])


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for an editor's completion."""
    import json

    from pipeline.recipe import recipe_schema as schema

    typer.echo(json.dumps(schema(), indent=1))


def main() -> None:
    """Entry point: a GatehouseError is one message and its exit code."""
    try:
        prepare()
        app()
    except GatehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
