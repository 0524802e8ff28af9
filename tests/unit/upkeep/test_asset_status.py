"""What `gatehouse status` says of records that are wrong: in the row of their asset, with a remedy that mends it."""

from __future__ import annotations

import shutil

import pytest

from pipeline.upkeep.asset_status import AssetStatus, survey
from tests.unit.worlds import World
from training.errors import StoreError


def rows(world: World) -> dict[str, AssetStatus]:
    return {status.asset: status for status in survey(world.builder.loaded, world.store)}


def test_another_assets_pointer_is_said_in_its_row_and_its_remedy_mends_it(world: World) -> None:
    world.publish_upstream()
    pointer = world.path("tokenizer") / "promoted.json"
    shutil.copyfile(world.path("corpus") / "promoted.json", pointer)
    shown = rows(world)
    assert shown["corpus"].fresh and not shown["tokenizer"].fresh
    assert shown["tokenizer"].why == (
        f"{pointer} is damaged: it belongs to corpus; delete this file and materialize tokenizer again"
    )
    pointer.unlink()
    assert world.judge("tokenizer").promoted and rows(world)["tokenizer"].fresh


def test_a_pointer_to_a_version_that_is_gone_is_said_in_its_row(world: World) -> None:
    world.publish_upstream()
    version = world.promoted("tokenizer")
    shutil.rmtree(world.path("tokenizer") / "versions" / version)
    shown = rows(world)
    assert shown["corpus"].fresh
    assert shown["tokenizer"].why == (
        f"tokenizer {version} is promoted and its files are gone; `gatehouse run -r unit "
        "--select tokenizer` makes it anew"
    )
    world.publish("tokenizer", world.passing("tokenizer"))
    assert world.judge("tokenizer").promoted and rows(world)["tokenizer"].fresh


def test_a_version_that_is_not_there_is_named_beside_those_that_are(world: World) -> None:
    world.publish_upstream()
    with pytest.raises(StoreError, match=rf"corpus has no version X in .*; its newest are: {world.promoted('corpus')}"):
        world.store.manifest("corpus", "X")


def test_a_store_of_which_nothing_can_be_read_is_one_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise StoreError("s3://models does not answer")

    monkeypatch.setattr("training.store.store.Store.promotion", unreachable)
    with pytest.raises(StoreError, match="does not answer"):
        rows(world)
