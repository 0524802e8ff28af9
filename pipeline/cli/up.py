"""`gatehouse up`: Dagster and MLflow in the browser, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import new_app

app = new_app()


@app.command()
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
    from pipeline.cli.serving import serve

    serve(recipe or [], port, mlflow_port)
