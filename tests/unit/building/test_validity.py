"""One rule: what the next stage refuses is refused by all who ask, and judged again by a build."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import decisions
from pipeline.building.builder import Builder
from pipeline.building.planner import promoted_input
from pipeline.cli.gates import show_gates
from pipeline.upkeep.asset_status import AssetStatus, survey
from pipeline.upkeep.verification import Verification
from tests.unit.worlds import World, new_world, silent
from training.errors import InputRefused
from training.specs.artifacts import FileEntry, Manifest
from training.store import store as store_module
from training.store import validity
from training.store.store import utc_today

ASSET, CHILD = "corpus", "tokenizer"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """corpus passes by a waiver that ends today; what follows from it is promoted."""
    world = new_world(tmp_path_factory.mktemp("validity"))
    world.publish("raw_corpus", world.passing("raw_corpus"))
    assert world.judge("raw_corpus").promoted
    world.publish(ASSET, {"bytes": 1})
    assert not world.judge(ASSET).promoted
    waived = decisions.waive(world.builder, ASSET, "bytes", "a demo", utc_today(), "ada", silent)
    assert waived.promoted
    for asset in ("evaluation_sets", CHILD):
        world.publish(asset, world.passing(asset))
        assert world.judge(asset).promoted
    return world


@pytest.fixture
def world(template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(template.folder, tmp_path / "world")
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "world"))
    return World(tmp_path / "world")


def statuses(world: World) -> dict[str, AssetStatus]:
    return {status.asset: status for status in survey(world.builder.loaded, world.store)}


def evidence(world: World, asset: str) -> Path:
    return next(world.path(f"{asset}.evaluation").glob("versions/*"))


def tomorrow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    day = utc_today() + timedelta(days=1)
    for module in (
        "training.store.store",
        "pipeline.upkeep.asset_status",
        "pipeline.upkeep.verification",
        "pipeline.gates.promotion",
        "pipeline.building.builder",
        "pipeline.cli.gates",
    ):
        monkeypatch.setattr(f"{module}.utc_today", lambda: day)


def flip(path: Path) -> None:
    """Change one byte; size and time of change stay as they were."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def parent_refused(world: World, _monkeypatch: pytest.MonkeyPatch) -> None:
    """raw_corpus was judged again by stricter gates; corpus was not."""
    promoted = world.promoted("raw_corpus")
    certificate = world.store.certificate("raw_corpus", promoted)
    assert certificate is not None
    refused = certificate.verdicts[0].model_copy(update={"passed": False})
    world.store.write_certificate(certificate.model_copy(update={"verdicts": (refused,)}))


def waiver_withdrawn_upstream(world: World, _monkeypatch: pytest.MonkeyPatch) -> None:
    decisions.withdraw_waiver(world.builder, ASSET, "bytes", silent)


WAYS: list[tuple[str, str, Callable[[World, pytest.MonkeyPatch], object], str]] = [
    ("an expired waiver", ASSET, tomorrow, "rests on a waiver that has expired: ada waived bytes of corpus"),
    ("an inherited waiver that has expired", CHILD, tomorrow, "rests on a waiver that has expired: ada waived bytes"),
    ("a parent that is refused now", ASSET, parent_refused, "the standing of what it was made from changed since"),
    ("an inherited waiver that was taken back", CHILD, waiver_withdrawn_upstream, "the standing of what it was made"),
    (
        "one byte in the evidence",
        ASSET,
        lambda world, _: flip(evidence(world, ASSET) / "report.json"),
        "report.json has changed since it was published; delete",
    ),
    (
        "evidence cut short",
        ASSET,
        lambda world, _: (evidence(world, ASSET) / "report.json").write_text(""),
        "report.json has changed since it was published",
    ),
    (
        "a file of the evidence is gone",
        ASSET,
        lambda world, _: (evidence(world, ASSET) / "items.jsonl").unlink(),
        "items.jsonl is missing",
    ),
    ("the evidence is gone", ASSET, lambda world, _: shutil.rmtree(evidence(world, ASSET)), "which is gone"),
    (
        "no certificate",
        ASSET,
        lambda world, _: next(world.path(ASSET).glob("certificates/*")).unlink(),
        "has no certificate",
    ),
]


@pytest.mark.parametrize(("asset", "damage", "said"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
def test_all_five_refuse_the_same(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    asset: str,
    damage: Callable[[World, pytest.MonkeyPatch], object],
    said: str,
) -> None:
    before = statuses(world)
    assert before[asset].fresh and before[asset].promoted and not before[asset].why
    pointer = world.store.promotion(asset)
    assert pointer is not None
    damage(world, monkeypatch)
    with pytest.raises(InputRefused, match=said):  # what a job does first
        world.store.require_promoted(asset, pointer.version, pointer.digest, pointer.certificate_digest)
    with pytest.raises(InputRefused, match=said):
        promoted_input(asset, world.builder.loaded, world.store)
    status = statuses(world)[asset]
    assert not status.fresh, "`plan` goes by this: it would not say reuse"
    shown = status.as_json()
    assert (shown["promoted"], shown["fresh"]) == (False, False) and shown["why"]
    if not shown["why"].startswith("upstream is not fresh"):
        assert said in shown["why"]
    found = {finding.asset: finding for finding in Verification(world.store, "").findings}
    assert said in " ".join(found[asset].defects)
    assert json.dumps(shown)


@pytest.mark.parametrize(("asset", "damage"), [way[1:3] for way in WAYS], ids=[way[0] for way in WAYS])
def test_a_build_judges_again_and_gates_says_what_changed(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asset: str,
    damage: Callable[[World, pytest.MonkeyPatch], object],
) -> None:
    def examine(_builder: Builder, manifest: Manifest, _say: object, **_how: object) -> None:
        raise InputRefused(f"{manifest.asset} would be judged again")

    def rows() -> list[dict[str, Any]]:
        show_gates(str(world.folder / "unit.yaml"), [], as_json=True)
        return [row for row in json.loads(capsys.readouterr().out) if row["asset"] == asset]

    manifest = world.store.manifest(asset, world.promoted(asset))
    newer = manifest.model_copy(update={"version": "a newer one, which was refused"})
    assert not [row for row in rows() if row["stale"]]
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "examine", examine)
        world.builder.measure(manifest, silent)
        world.builder._renew_promoted(asset, newer, silent)

    damage(world, monkeypatch)
    monkeypatch.setattr(Builder, "examine", examine)
    with pytest.raises(
        InputRefused, match=r"would be judged again|corpus .* is not promoted|rests on a waiver that has"
    ):
        world.builder.measure(manifest, silent)
    with pytest.raises(InputRefused, match="would be judged again"):
        world.builder._renew_promoted(asset, newer, silent)
    assert all(row["stale"] or row["verdict"] == "not judged" for row in rows())


def test_a_leaf_that_was_judged_by_other_gates_is_not_fresh(world: World) -> None:
    gate = world.builder.loaded.recipe.gates[CHILD][0]
    other = world.with_overrides(f"gates.{CHILD}.0.threshold={gate.threshold / 2}")
    assert statuses(world)[CHILD].fresh
    with pytest.raises(InputRefused, match="was judged on other terms: the asset's gates changed since"):
        promoted_input(CHILD, other.builder.loaded, other.store)
    status = statuses(other)[CHILD]
    assert not status.fresh and "the asset's gates changed since" in status.why


def test_evidence_is_read_once_as_long_as_nobody_touches_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    hashed = store_module.file_entry

    def counted(path: Path) -> FileEntry:
        read.append(path)
        return hashed(path)

    monkeypatch.setattr(store_module, "file_entry", counted)
    store, pointer = world.store, world.store.promotion(ASSET)
    assert pointer is not None
    for _ in range(3):
        assert not validity.why_invalid(store, pointer, utc_today())
    assert sorted(path.name for path in read) == ["items.jsonl", "report.json"]
    flip(evidence(world, ASSET) / "report.json")
    assert "has changed" in validity.why_invalid(store, pointer, utc_today())
