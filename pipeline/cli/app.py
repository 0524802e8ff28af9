"""The `gatehouse` command. It only parses; the module of each command works."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli.terminal import make_legible
from pipeline.full_disk import explain_full_disk
from pipeline.paths import prepare
from training.errors import EXIT_USER, GatehouseError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gatehouse trains language models as a graph of assets, with a promotion gate after every stage.",
)
recipe_app = typer.Typer(no_args_is_help=True, help="Look at recipes.")
app.add_typer(recipe_app, name="recipe", rich_help_panel="Build")

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


@app.command(rich_help_panel="Build")
def run(
    recipe: Recipe = "tiny",
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ASSETS",
            help="Assets, separated by commas; `+name` takes what is upstream too. Repeatable; all if left out.",
        ),
    ] = None,
    overrides: Overrides = None,
    launcher: Annotated[str, typer.Option(help="Entry of launchers.yaml; the recipe's by default.")] = "",
    force: Annotated[bool, typer.Option(help="Run the jobs even when nothing has changed.")] = False,
) -> None:
    """Materialize the graph: build what has changed, reuse the rest, stop where a gate refuses.

    Exit codes: 0 all promoted, 1 a fault or a refusal, 2 a mistake in recipe or data, 130 interrupted.

    Examples: `gatehouse run`, `gatehouse run --select +sft_model`, `gatehouse run --set base_model.steps=400`.
    """
    from pipeline.cli.run import run as execute

    raise typer.Exit(execute(recipe, select or [], overrides or [], launcher, force))


@app.command(rich_help_panel="Look")
def up(
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", "-r", envvar="GATEHOUSE_RECIPE", help="Show this recipe beside tiny. Repeatable."),
    ] = None,
    port: Annotated[int, typer.Option(help="Dagster's port on 127.0.0.1.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="MLflow's port on 127.0.0.1.")] = 5000,
) -> None:
    """Serve the Dagster UI with its daemon, and MLflow, until Ctrl-C.

    Examples: `gatehouse up`, `gatehouse up -r mine.yaml --port 3001`.
    """
    typer.echo("Starting Dagster and MLflow; this takes about half a minute ...")
    from pipeline.cli.up import serve

    serve(recipe or [], port, mlflow_port)


@app.command(rich_help_panel="Look")
def status(
    asset: Annotated[
        str, typer.Argument(help="One asset, with its files, its links and its lineage; all if left out.")
    ] = "",
    recipe: Recipe = "tiny",
    wide: Annotated[
        bool, typer.Option("--wide", help="Whole version names, sizes, and the reasons in the table.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object an asset.")] = False,
) -> None:
    """Show every asset: version, fresh or stale and why, gates, headline metric, age.

    Examples: `gatehouse status`, `gatehouse status --wide`, `gatehouse status sft_model`.
    """
    from pipeline.cli.status import show_asset, show_status

    if asset:
        show_asset(recipe, asset)
    else:
        show_status(recipe, [], as_json, wide)


@app.command(rich_help_panel="Build")
def plan(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Say what `gatehouse run` would build and what it would reuse, and why. Nothing runs."""
    from pipeline.cli.status import show_plan

    show_plan(recipe, overrides or [])


@app.command(rich_help_panel="Look")
def gates(
    recipe: Recipe = "tiny",
    overrides: Overrides = None,
    why: Annotated[
        str,
        typer.Option(
            metavar="ASSET", help="Explain in words why this asset's newest version was refused, with the worst items."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a gate.")] = False,
) -> None:
    """Show every gate of every asset: value, interval, threshold, the champion's value, verdict, age.

    A gate passes when its confidence bound passes, not merely its value. Nothing is judged again here.

    Examples: `gatehouse gates`, `gatehouse gates --why sft_model`.
    """
    from pipeline.cli.gates import explain, show_gates

    if why:
        explain(recipe, why)
    else:
        show_gates(recipe, overrides or [], as_json)


@app.command(rich_help_panel="Decide")
def waive(
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
    author: Annotated[str, typer.Option(help="Who decides; your login name by default.")] = "",
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the waiver back.")] = False,
    recipe: Recipe = "tiny",
) -> None:
    """Let one version pass a gate that refused it, for a reason and until a day.

    The version is judged again at once and promoted if nothing else refuses it; nothing is trained. Whatever is made
    from it names the waiver on its pages, its card and in MLflow. After the day it is refused again, and so is what was
    made from it.

    Examples: `gatehouse waive sft_model --gate refusal_rate --reason "demo only" --until 2026-12-31`,
    `gatehouse waive sft_model --gate refusal_rate --withdraw`.
    """
    from pipeline.cli import waive as command

    if withdraw:
        command.withdraw(recipe, asset, gate, version)
    else:
        command.waive(recipe, asset, gate, reason, until, author, version)


@app.command(rich_help_panel="Decide")
def promote(
    asset: Annotated[str, typer.Argument(help="An asset, such as base_model.")],
    version: Annotated[str, typer.Argument(help="One of its versions; `gatehouse status` shows the newest.")],
    author: Annotated[str, typer.Option(help="Who decides; your login name by default.")] = "",
    recipe: Recipe = "tiny",
) -> None:
    """Make one version of an asset the one that downstream reads.

    Only a version that its gates let pass can be promoted: it is judged on today's gates, suite and evaluator, from the
    evidence that is there, and its bytes are read. A version that was held back is held back no longer. If it is older
    than the promoted one, that one is held back, or the next run would promote it again.

    Example: `gatehouse promote base_model 20261121T012233-1a2b3c4d`.
    """
    from pipeline.cli.promote import promote as execute

    execute(recipe, asset, version, author)


@app.command(rich_help_panel="Decide")
def rollback(
    asset: Annotated[str, typer.Argument(help="An asset, such as base_model.")],
    reason: Annotated[str, typer.Option(help="Why the promoted version is left.")] = "rolled back",
    author: Annotated[str, typer.Option(help="Who decides; your login name by default.")] = "",
    recipe: Recipe = "tiny",
) -> None:
    """Go back to the version that was promoted before, if its gates still let it pass.

    The version that is left is held back: no run promotes it again until `gatehouse promote` does. What was made from
    it stays as it is until its own assets are run again.

    Example: `gatehouse rollback base_model --reason "answers in French"`.
    """
    from pipeline.cli.promote import rollback as execute

    execute(recipe, asset, reason, author)


@app.command(rich_help_panel="Decide")
def adopt(
    assets: Annotated[list[str] | None, typer.Argument(help="Assets, such as corpus base_model.")] = None,
    reason: Annotated[str, typer.Option(help="Required: why today's code makes the same. People will read it.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every asset that only its code sets apart from what a run would make.")
    ] = False,
    author: Annotated[str, typer.Option(help="Who decides; your login name by default.")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="How long the proof of one asset may take.")] = 120,
    recipe: Recipe = "tiny",
) -> None:
    """Take versions over under changed code, after a proof, instead of making them anew.

    After an upgrade `gatehouse status` says "code changed" of what was made by other code from the same recipe, inputs
    and seed. The proof of data makes the files again and compares bytes; the proof of a model repeats the first steps
    of its training and compares the losses digit by digit. Nothing is adopted whose proof fails.

    Exit codes: 0 all adopted, 1 a proof failed or there is more than code that differs, 2 a mistake.

    Examples: `gatehouse adopt --all --reason "moved into rooms"`, `gatehouse adopt base_model --reason "renamed"`.
    """
    from pipeline.cli.adopt import adopt as execute

    raise typer.Exit(execute(recipe, assets or [], everything, reason, author, seconds))


@app.command(rich_help_panel="Upkeep")
def gc(
    recipe: Recipe = "tiny",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would go, and what would be lost with it.")
    ] = False,
    older_than: Annotated[float, typer.Option(metavar="HOURS", min=0, help="Keep what is younger.")] = 24,
) -> None:
    """Delete what no promoted version, certificate in force, waiver, hold or running job needs.

    Kept are the promoted versions, the ones that a rollback goes back to, the newest, the certified ones newer than the
    promoted, those held back or waived, what all of these were made from or are compared with, and their evidence. What
    a run is working at is left alone.

    Example: `gatehouse gc --dry-run`.
    """
    from pipeline.cli.gc import collect

    collect(recipe, dry_run, older_than)


@app.command(rich_help_panel="Upkeep")
def verify(
    asset: Annotated[str, typer.Argument(help="An asset, such as sft_model; every promoted one by default.")] = "",
    recipe: Recipe = "tiny",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a version.")] = False,
) -> None:
    """Read every byte of what is promoted and of what it was made from, and check every record about it.

    Exit codes: 0 all of it holds, 1 something does not; each defect says what to do.

    Examples: `gatehouse verify`, `gatehouse verify sft_model`.
    """
    from pipeline.cli.verify import verify as execute

    raise typer.Exit(execute(recipe, asset, as_json))


@app.command(rich_help_panel="Upkeep")
def sync(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", envvar="GATEHOUSE_RECIPE", help="One recipe; all that were run here by default."
        ),
    ] = "",
) -> None:
    """Tell MLflow what it missed while it was down: metrics, runs, lineage, versions, judgements.

    Runs do the same by themselves, as far as a slow server lets them. An MLflow whose database is new gets everything.
    Nothing is recorded twice.

    Exit codes: 0 MLflow has everything, 1 something is still owed to it.
    """
    from pipeline.cli.sync import sync as execute

    raise typer.Exit(execute(recipe))


@app.command(rich_help_panel="Look")
def chat(
    question: Annotated[str, typer.Argument(help="One question; without it, a conversation on the terminal.")] = "",
    recipe: Recipe = "tiny",
    asset: Annotated[str, typer.Option(help="Which promoted model answers.")] = "lora_model",
) -> None:
    """Talk to a promoted model."""
    from pipeline.cli.chat import talk

    raise typer.Exit(talk(recipe, asset, question))


@recipe_app.command("show")
def recipe_show(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Print the recipe with every default and override filled in."""
    from pipeline.recipes.loader import load_recipe, render

    typer.echo(render(load_recipe(recipe, overrides or []).recipe), nl=False)


@recipe_app.command("check")
def recipe_check(recipe: Recipe = "tiny", overrides: Overrides = None) -> None:
    """Check a recipe before anything is spent: keys, values, files, model, batches, gates, tasks.

    All mistakes are shown at once, each with file, line and key. Nothing is trained and no weights are made.

    Exit codes: 0 good, 2 a mistake in the recipe.
    """
    from pipeline.cli.recipe import check

    check(recipe, overrides or [])


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for an editor's completion."""
    import json

    from pipeline.recipes.loader import recipe_schema as schema

    typer.echo(json.dumps(schema(), indent=1))


def main() -> None:
    """Entry point: a GatehouseError, a path that cannot be used or a full disk is one message and its exit code."""
    make_legible()
    try:
        prepare()
        app()
    except GatehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        message = explain_full_disk(error)
        if not message and isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        if not message:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_USER)
