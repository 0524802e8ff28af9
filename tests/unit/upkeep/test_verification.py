"""`gatehouse verify`: everything holds, or each defect is said in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.verify import show_verification
from tests.unit.worlds import World, new_world
from training.errors import InputRefused, RecipeError
from training.specs.artifacts import Manifest
from training.store.records import sealed

MODEL = {"clean_stop_rate": 0.9}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A promoted base model and what it was made from."""
    world = new_world(tmp_path_factory.mktemp("verify"))
    world.publish_upstream()
    world.overrides.append("gates.base_model=[{metric: loss_drop, must_be: '>=', threshold: 0.5}]")
    world.publish("base_model", {"loss_drop": 0.9})
    assert world.judge("base_model").promoted
    return world


@pytest.fixture
def world(template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(template.folder, tmp_path / "world")
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "world"))
    return World(tmp_path / "world")


def told(world: World, capsys: pytest.CaptureFixture[str], asset: str = "") -> tuple[int, list[dict[str, Any]]]:
    code = show_verification(str(world.folder / "unit.yaml"), asset, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def promoted(world: World, asset: str) -> Manifest:
    return world.store.manifest(asset, world.promoted(asset))


def of(world: World, asset: str) -> Path:
    return world.path(asset) / "versions" / promoted(world, asset).version


def rewrite(world: World, asset: str, **fields: Any) -> None:
    """Another manifest in place of the promoted version's, as somebody writes it who knows how."""
    manifest = promoted(world, asset)
    (of(world, asset) / "manifest.json").write_bytes(sealed(manifest.model_copy(update=fields)))


def test_everything_holds(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = told(world, capsys)
    assert code == 0
    assert {finding["asset"] for finding in found} == {
        name
        for asset in ("raw_corpus", "corpus", "evaluation_sets", "tokenizer", "packed_shards", "base_model")
        for name in (asset, f"{asset}.evaluation")
    }
    assert all(finding["files"] and finding["bytes"] and not finding["defects"] for finding in found)
    assert show_verification(str(world.folder / "unit.yaml"), "", as_json=False) == 0
    assert "12 versions" in (said := capsys.readouterr().out) and "everything holds" in said


def test_one_asset_and_what_it_was_made_from(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = told(world, capsys, "tokenizer")
    assert code == 0
    assert {finding["asset"]: finding["role"] for finding in found} == {
        "raw_corpus": "corpus was made from it",
        "corpus": "tokenizer was made from it",
        "tokenizer": "promoted",
        "tokenizer.evaluation": "evidence about tokenizer",
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: list[tuple[str, Callable[[World], object], str]] = [
    ("raw_corpus", lambda world: flip(of(world, "raw_corpus") / "data.txt"), "the file data.txt has changed since"),
    ("corpus", lambda world: flip(of(world, "corpus") / "report" / "card.md"), "the file report/card.md has changed"),
    ("corpus", lambda world: (of(world, "corpus") / "data.txt").unlink(), "the file data.txt is missing"),
    ("tokenizer", lambda world: (of(world, "tokenizer") / "x").write_text(""), "x was added after publishing"),
    ("packed_shards", lambda world: flip(of(world, "packed_shards") / "manifest.json"), "manifest.json is damaged"),
    ("base_model", lambda world: flip(next(world.path("base_model").glob("certificates/*"))), "is damaged: it is not"),
    ("base_model", lambda world: flip(world.path("base_model") / "promoted.json"), "promoted.json is damaged"),
    ("base_model", lambda world: shutil.rmtree(world.path("base_model") / "promotions"), "the history of promotions"),
    ("base_model", lambda world: next(world.path("base_model").glob("certificates/*")).unlink(), "has no certificate"),
    (
        "base_model.evaluation",
        lambda world: flip(next(world.path("base_model.evaluation").glob("versions/*/report.json"))),
        "the file report.json has changed since",
    ),
    ("base_model", lambda world: shutil.rmtree(world.path("base_model.evaluation")), "which is gone; `gatehouse run"),
    ("corpus", lambda world: shutil.rmtree(of(world, "raw_corpus")), "it was made from raw_corpus 2"),
    ("corpus", lambda world: rewrite(world, "raw_corpus", digest="0" * 64), "has 000000000000 now"),
    (
        "base_model",
        lambda world: (
            rewrite(world, "tokenizer", facts={"tokenizer": "1" * 64})
            or rewrite(world, "packed_shards", facts={"tokenizer": "2" * 64})
        ),
        "packed_shards with 222222222222, tokenizer with 1111",
    ),
]


@pytest.mark.parametrize(("asset", "damage", "message"), DAMAGES, ids=[message for _, _, message in DAMAGES])
def test_a_defect_is_named(
    world: World, capsys: pytest.CaptureFixture[str], asset: str, damage: Callable[[World], object], message: str
) -> None:
    damage(world)
    code, found = told(world, capsys)
    assert code == 1
    assert message in " ".join(
        defect for finding in found if finding["asset"] == asset for defect in finding["defects"]
    )
    show_verification(str(world.folder / "unit.yaml"), "", as_json=False)
    said = capsys.readouterr().out
    assert message in said and "not hold" in said
    named = world.folder / "unit.yaml"
    remedies = (f"`gatehouse run -r {named} --select", f"`gatehouse promote -r {named}", "materialize", "restore")
    assert any(remedy in said for remedy in remedies)


def test_what_cannot_be_verified(world: World) -> None:
    with pytest.raises(InputRefused, match="nothing of sft_model is promoted, so there is nothing to verify: sft_mode"):
        show_verification(str(world.folder / "unit.yaml"), "sft_model", as_json=False)
    with pytest.raises(RecipeError, match="there is no asset 'sft_mode'.*did you mean"):
        show_verification(str(world.folder / "unit.yaml"), "sft_mode", as_json=False)


def test_an_empty_store_holds(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(world.folder / "store")
    assert show_verification(str(world.folder / "unit.yaml"), "", as_json=False) == 0
    assert "nothing is promoted" in capsys.readouterr().out
