"""The four places that an asset is added in, as the docstring of pipeline/graph.py lists them, agree about it."""

import importlib.util

import pytest

from pipeline.graph import KINDS, in_order, stage_module
from pipeline.recipes.document import read_yaml
from pipeline.recipes.loader import FOLDER, available, load_recipe
from tests.conftest import ROOT
from training.specs.contracts import CONTRACTS
from training.specs.metrics import METRICS
from training.specs.recipe import Recipe
from training.stages.evaluate_data import MEASURES

ASSETS = sorted({*KINDS, *CONTRACTS, *METRICS})


@pytest.mark.parametrize("asset", ASSETS)
def test_every_place_knows_the_asset(asset: str) -> None:
    assert asset in CONTRACTS, "1. training/specs/contracts.py: what it is made from, and what measures it"
    assert METRICS.get(asset), "1. training/specs/metrics.py: what its evaluation measures"
    assert asset in Recipe.model_fields, "1. training/specs/recipe.py: its section"
    assert importlib.util.find_spec(stage_module(asset)), "2. training/stages: the module that makes it"
    if CONTRACTS[asset].evaluator == "evaluate_data":
        assert asset in MEASURES, "2. training/stages/evaluate_data.py: how it is measured"
    assert asset in KINDS, "3. pipeline/graph.py: what people read about it"
    assert KINDS[asset].is_model or {*KINDS[asset].headlines} <= {*METRICS[asset]}, "its headline is measured"
    for name in available():
        document = read_yaml(FOLDER / f"{name}.yaml")
        gates = document.child("gates")
        is_there = asset in load_recipe(name).graph
        assert document.child("extends") or not is_there or (gates and gates.child(asset)), (
            f"4. assets_config/{name}.yaml: its gates"
        )


@pytest.mark.parametrize("name", available())
def test_an_asset_comes_after_what_it_is_made_from(name: str) -> None:
    graph = load_recipe(name).graph
    order = list(graph)
    assert order == in_order(reversed(order))
    for asset, node in graph.items():
        assert all(order.index(name) < order.index(asset) for name in node.inputs), asset


def test_no_table_beside_these_lists_the_data_assets() -> None:
    """A fifth place would be forgotten: the two roots name the assets of data that a job reads, and no list of them."""
    listed = [
        path.relative_to(ROOT).as_posix()
        for root in ("pipeline", "training")
        for path in (ROOT / root).rglob("*.py")
        if all(f'"{asset}":' in path.read_text() for asset in ("instruction_data", "preference_data", "adapter_data"))
    ]
    assert sorted(listed) == [
        "training/specs/contracts.py",
        "training/specs/lineage.py",
        "training/specs/metrics.py",
        "training/stages/evaluate_data.py",
    ]
