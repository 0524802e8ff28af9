"""A workspace opens what is asked for, once, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import workspace
from pipeline.workspace import Workspace, open_store, open_tracker
from tests.arch.test_imports import loaded_after
from training.errors import RecipeError


def test_nothing_is_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    made = Workspace("no_such_recipe", folder=tmp_path / "state")
    assert made.work == tmp_path / "state" / "work" and not made.home.exists()
    with pytest.raises(RecipeError, match="no_such_recipe"):
        _ = made.store
    statement = "from pipeline.workspace import Workspace; Workspace('tiny').store"
    assert (
        loaded_after(statement, ("dagster", "mlflow", "pipeline.building.builder", "pipeline.tracking.tracker")) == []
    )


def test_everything_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = workspace.load_recipe
    monkeypatch.setattr(workspace, "load_recipe", lambda name, overrides: loads.append(name) or load(name, overrides))
    made = Workspace("tiny", ["seed=7"], folder=tmp_path)
    builder = made.builder("ada")
    assert (builder.loaded, builder.store, builder.launcher, builder.tracker, builder.work) == (
        made.loaded,
        made.store,
        made.launcher,
        made.tracker,
        made.work,
    )
    assert loads == ["tiny"] and builder.loaded.recipe.seed == 7 and builder.owner == "ada"


def test_a_folder_of_its_own_holds_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_STORE", str(tmp_path / "elsewhere"))
    assert Workspace("tiny").store.root == str(tmp_path / "elsewhere")
    assert Workspace("tiny").moved_to(tmp_path / "own").store.root == str(tmp_path / "own" / "store")
    assert open_store("tiny").cache == Path(os.environ["GATEHOUSE_HOME"]) / "cache"


def test_an_unknown_launcher_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="launchers.yaml has no launcher 'moon'"):
        _ = Workspace("tiny", launcher="moon", folder=tmp_path).launcher


def test_links_lead_to_where_the_pages_are_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert str(open_tracker("tiny", uri).model_url("m", "1")).startswith("http://127.0.0.1:5000/")
    monkeypatch.setenv("GATEHOUSE_MLFLOW_URL", "https://mlflow.example")
    assert str(open_tracker("tiny", uri).model_url("m", "1")).startswith("https://mlflow.example/")
    assert open_tracker("tiny", uri, mlflow="").model_url("m", "1") is None
