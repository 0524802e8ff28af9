"""`gatehouse waive` says at once everything that is missing."""

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.waive import waive
from training.errors import RecipeError

DAY = "--until: write the day as 2026-12-31"
REASON = "--reason: say why it may pass all the same; people will read it"


@pytest.mark.parametrize(
    ("reason", "until", "said"),
    [
        ("a demo", "", DAY),
        ("a demo", "31.12.2026", "--until 31.12.2026: write the day as 2026-12-31"),
        ("", "2026-12-31", REASON),
        ("  ", "", f"{REASON}; {DAY}"),
    ],
)
def test_what_is_missing_is_said(reason: str, until: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        waive("tiny", "sft_model", "loss_drop", reason, until, "ada", "")
    assert str(error.value) == said


def test_help_marks_what_is_required() -> None:
    shown = " ".join(CliRunner().invoke(app, ["waive", "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert shown.count("Required without --withdraw") == 2 and shown.count("[required]") == 2
