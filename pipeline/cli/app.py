"""The `gatehouse` command: which commands there are, and how an error ends one. Each has a module of its own."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from pipeline.cli.options import new_app
from pipeline.cli.terminal import make_legible
from pipeline.full_disk import explain_full_disk
from pipeline.paths import prepare
from training.errors import EXIT_USER, GatehouseError

COMMANDS = {
    "Build": {
        "run": "Materialize the graph: build what has changed, reuse the rest, stop where a gate refuses.",
        "plan": "Say what `gatehouse run` would build and what it would reuse, and why. Nothing runs.",
        "recipe": "Look at recipes.",
    },
    "Look": {
        "up": "Serve the Dagster UI with its daemon, and MLflow, until Ctrl-C.",
        "status": "Show every asset: version, fresh or stale and why, gates, headline metric, age.",
        "gates": "Show every gate of every asset: value, interval, threshold, the champion's value, verdict, age.",
        "chat": "Talk to a promoted model.",
        "data": "Look at data: the first documents, and what was counted.",
        "preview": "Show rows of training data as the model will see them, coloured by what is learned.",
    },
    "Decide": {
        "waive": "Let one version pass a gate that refused it, for a reason and until a day.",
        "promote": "Make one version of an asset the one that downstream reads.",
        "rollback": "Go back to the version that was promoted before, if its gates still let it pass.",
        "adopt": "Take versions over under changed code, after a proof, instead of making them anew.",
    },
    "Upkeep": {
        "gc": "Delete what no recent promotion, hold, waiver or running job keeps.",
        "verify": "Read every byte of what is promoted and of what it was made from, and check every record about it.",
        "sync": "Tell MLflow what it missed while it was down: metrics, runs, lineage, versions, judgements.",
    },
}
"""Panel of the help page to its commands, each with the first sentence of its own help. A test holds them together."""


class LazyCommand(TyperCommand):
    """A command by its name alone. Its module is imported when it is called: those of the others would take seconds."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, so that this one is never invoked."""
        module = import_module(f"pipeline.cli.{self.name}")
        return get_command(module.app).make_context(info_name, args, parent, **extra)


def _make_app() -> typer.Typer:
    made = new_app("Gatehouse trains language models as a graph of assets, with a promotion gate after every stage.")
    for panel, commands in COMMANDS.items():
        for name, summary in commands.items():
            made.command(name, cls=LazyCommand, help=summary, rich_help_panel=panel)(lambda: None)
    return made


app = _make_app()


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
