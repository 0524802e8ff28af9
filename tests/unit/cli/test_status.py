"""What the command line shows of the assets, and what it proposes to do next."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import addresses, graph
from pipeline.cli import status
from pipeline.cli.next_steps import next_steps
from pipeline.humanize import nearest
from pipeline.recipes.loader import load_recipe
from pipeline.workspace import Workspace
from tests.unit.worlds import World, world
from training.errors import RecipeError
from training.job.fingerprint import fingerprint

__all__ = ["world"]
TERMINAL = 80
GRAPH = load_recipe("tiny").graph


@pytest.fixture
def shown(world: World, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the commands print of the world's store, on a terminal of 80 columns."""
    printed = io.StringIO()
    monkeypatch.setattr(status, "make_console", lambda: Console(file=printed, width=TERMINAL))
    monkeypatch.setattr(
        status, "Workspace", lambda recipe: Workspace(str(world.folder / "unit.yaml"), folder=world.folder)
    )
    return printed


def test_status_fits_a_terminal_and_breaks_no_name(world: World, shown: io.StringIO) -> None:
    world.publish_upstream()
    world.publish("base_model", {"loss_drop": -1.0})
    assert not world.judge("base_model").promoted
    status.show_status("unit", as_json=False)
    lines = shown.getvalue().splitlines()

    table = [line for line in lines if re.match(r" \w+ +([0-9a-f]{8}|-)\*? ", line)]
    assert [line.split()[0] for line in table] == list(GRAPH)
    assert max(map(len, table)) <= TERMINAL
    assert next(line for line in table if "base_model" in line).split()[2] == "refused"
    assert any(line.startswith("base_model: ") and "refused it" in line for line in lines), "the reason stands below"


def test_a_change_of_code_alone_has_a_state_of_its_own(
    world: World, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish_upstream()
    monkeypatch.setattr("pipeline.building.planner.fingerprint", lambda module: "x" + fingerprint(module)[1:])
    status.show_status("unit", as_json=False)
    lines = shown.getvalue().splitlines()
    row = next(line for line in lines if line.startswith(" packed_shards"))
    assert " code changed " in row and len(row) <= TERMINAL
    assert any(line.startswith("packed_shards: code changed: ") and "gatehouse adopt" in line for line in lines)


def test_a_newer_version_is_marked(world: World, shown: io.StringIO) -> None:
    world.publish_upstream()
    first = world.publish("base_model", world.passing("base_model"))
    assert world.judge("base_model").promoted
    world.publish("base_model", {}, current=False)
    status.show_status("unit", as_json=False)
    assert f"{status.short(first.version)}*" in shown.getvalue()
    assert "* a newer version exists that is not promoted; --wide shows it" in shown.getvalue()


def test_one_asset_is_shown_with_its_files_and_its_lineage_both_ways(world: World, shown: io.StringIO) -> None:
    world.publish_upstream()
    made = world.publish("base_model", world.passing("base_model"))
    assert world.judge("base_model").promoted
    status.show_asset("unit", "tokenizer")
    page = shown.getvalue()
    assert f"went into   base_model {made.version}" in page
    assert f"made from   corpus {world.promoted('corpus')}" in page

    status.show_asset("unit", "base_model")
    page = shown.getvalue()
    assert "promoted)" in page
    assert f'model="{world.store.uri("base_model", made.version)}/model"' in page.replace("\n", "")


def test_an_asset_that_was_never_built_says_what_to_do(shown: io.StringIO) -> None:
    status.show_asset("unit", "sft_model")
    assert "sft_model was never built: materialize sft_model first" in shown.getvalue()


def test_after_a_refusal_the_next_step_is_why(world: World) -> None:
    steps = next_steps("my notes.yaml", GRAPH, ["base_model"], failed=True, store=world.store)
    assert [step.split(" ", 1)[1] for step, _ in steps] == ["gates --why base_model -r 'my notes.yaml'"]


def test_a_chat_is_proposed_only_with_a_promoted_model(world: World) -> None:
    world.publish_upstream()
    assert [step.split()[1] for step, _ in next_steps("unit", GRAPH, [], failed=False, store=world.store)] == ["up"]
    world.publish("base_model", world.passing("base_model"))
    assert world.judge("base_model").promoted
    steps = [step.split(" ", 1)[1] for step, _ in next_steps("unit", GRAPH, [], failed=False, store=world.store)]
    assert steps == ["up -r unit", "chat --asset base_model -r unit", "status base_model -r unit"]
    assert next_steps("unit", GRAPH, [], failed=True, store=world.store) == []


@pytest.mark.parametrize(("word", "meant"), [("sft", "sft_model"), ("sft_modle", "sft_model"), ("base", "base_model")])
def test_the_beginning_of_a_name_is_enough_to_be_understood(word: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"--why {word}: there is no such asset; did you mean {meant}?"):
        graph.require_asset(word, GRAPH, "--why")


def test_an_asset_that_the_recipe_left_out_is_no_typing_error() -> None:
    short = load_recipe("tiny", ["dpo_model=null"]).graph
    with pytest.raises(RecipeError, match="this recipe has no dpo_model: it has no section dpo_model; its assets are"):
        graph.require_asset("dpo_model", short)


def test_what_begins_several_names_is_no_hint() -> None:
    assert nearest("e", ["evaluation", "errors"]) == ""


def test_a_chat_needs_a_model() -> None:
    with pytest.raises(RecipeError, match="this is no model; the models are base_model, sft_model"):
        graph.require_model("tokenizer", GRAPH, "--asset")


def test_addresses_open_on_the_expanded_graph_and_on_mlflows_training_view() -> None:
    assert "post_training_data" in addresses.graph_url("http://d")
    page = addresses.run_url("http://m", "1", "abc")
    assert page == "http://m/#/experiments/1/runs/abc?workflowType=machine_learning"
    curve = "http://m/#/experiments/1/runs/abc/model-metrics?workflowType=machine_learning"
    assert addresses.live_curve_url(page) == curve
    nobody = "http://127.0.0.1:1"
    assert not addresses.is_served(nobody)
    assert addresses.experiment_url(nobody, "tiny") == f"{nobody}/#/experiments?workflowType=machine_learning"


def test_a_command_is_named_as_it_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli import next_steps as module

    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert module.command_name() == ".venv/bin/gatehouse"
    monkeypatch.chdir("/")
    assert module.command_name().endswith(".venv/bin/gatehouse")


def test_what_cannot_be_read_is_not_called_never_built(world: World, shown: io.StringIO) -> None:
    world.publish_upstream()
    (world.path("tokenizer") / "promoted.json").write_text("{")
    status.show_status("unit", as_json=False)
    lines = shown.getvalue().splitlines()
    assert next(line for line in lines if line.startswith(" tokenizer")).split()[2] == "unreadable"
    assert any(line.startswith("tokenizer: ") and "promoted.json is damaged" in line for line in lines)


def test_a_page_is_judged_on_todays_thresholds(world: World) -> None:
    metrics = world.passing("raw_corpus")
    made = world.publish("raw_corpus", metrics)
    assert world.judge("raw_corpus").promoted
    assert world.builder.measure(made, lambda _: None).certificate.passed
    gate = world.builder.loaded.recipe.gates["raw_corpus"][0]
    strict = world.with_overrides(f"gates.raw_corpus.0.threshold={metrics[gate.metric] + 1:.0f}")
    assert not strict.builder.measure(made, lambda _: None).certificate.passed
