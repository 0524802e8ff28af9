"""The list of commands, and the module of each."""

from __future__ import annotations

from importlib import import_module

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli.app import COMMANDS, app
from tests.conftest import ROOT

SUMMARIES = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_list_shows_the_first_sentence_of_each_command(name: str) -> None:
    command = get_command(import_module(f"pipeline.cli.{name}").app)
    assert (command.help or "").splitlines()[0] == SUMMARIES[name]


def test_the_list_knows_every_command() -> None:
    modules = {path.stem for path in (ROOT / "pipeline" / "cli").glob("*.py") if "\napp = new_app(" in path.read_text()}
    assert modules == set(SUMMARIES)


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["status", "--help"], "Usage: gatehouse status [OPTIONS]"),
        (["recipe", "check", "--help"], "Usage: gatehouse recipe check [OPTIONS]"),
        (["recipe"], "Usage: gatehouse recipe [OPTIONS] COMMAND [ARGS]..."),
    ],
)
def test_the_help_is_that_of_the_real_command(arguments: list[str], usage: str) -> None:
    assert usage in CliRunner().invoke(app, arguments, prog_name="gatehouse").output


def test_a_command_that_there_is_not_is_understood() -> None:
    done = CliRunner().invoke(app, ["statu"])
    assert done.exit_code == 2 and "Did you mean 'status'?" in done.output
