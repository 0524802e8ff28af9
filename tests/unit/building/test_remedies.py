"""Every remedy that a message names leads to a state in which `verify` and `status` are good."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.building import decisions
from pipeline.building.planner import plan_asset, plan_evaluation
from pipeline.cli.chat import talk
from pipeline.upkeep.asset_status import survey
from pipeline.upkeep.verification import Verification
from tests.unit.worlds import World, new_world, silent
from training.errors import StoreError, UserError
from training.store.store import utc_today

ASSET, CHILD = "corpus", "tokenizer"
CHAIN = ("raw_corpus", ASSET, "evaluation_sets", CHILD)
PASSING = {"bytes": 100.0}
WAIVED = {"bytes": 1.0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("remedies"))
    for asset in CHAIN:
        run(world, asset)
    assert not problems(world)
    return world


@pytest.fixture
def world(template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(template.folder, tmp_path / "world")
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "world"))
    return World(tmp_path / "world")


def run(world: World, asset: str) -> None:
    """As `gatehouse run --select ASSET`, with the jobs' results written down instead of computed."""
    metrics = PASSING if asset == ASSET else world.passing(asset)
    store, builder = world.store, world.builder
    existing = plan_asset(asset, builder.loaded, store).existing
    if existing is None:
        world.publish(asset, metrics)
    elif plan_evaluation(existing, builder.loaded, store).existing is None:
        world.evaluated(existing, metrics)
    world.judge(asset)


def problems(world: World) -> list[str]:
    """What `verify` and `status` say of what was built; empty when both are good."""
    found = [
        defect
        for finding in Verification(world.store, "").run(lambda _asset, _bytes: None)
        for defect in finding.defects
    ]
    found += [
        f"status of {status.asset}: {status.why}"
        for status in survey(world.builder.loaded, world.store)
        if status.asset in CHAIN and not (status.fresh and status.promoted)
    ]
    return found


def obey(world: World, messages: list[str]) -> None:
    """Do what messages say, in their order and once each: delete a path, then run or promote an asset."""
    commands: dict[str, None] = {}
    for message in messages:
        for path in re.findall(r"delete (/\S+?)[,;]", message):
            shutil.rmtree(path, ignore_errors=True)
        if "delete this file" in message:
            named = re.search(r"(/\S+) is damaged", message)
            assert named, message
            Path(named[1]).unlink(missing_ok=True)
        again = re.findall(r"run -r unit --select (\w+)|delete this file and materialize (\w+) again", message)
        commands |= dict.fromkeys(f"run {first or second}" for first, second in again)
        commands |= dict.fromkeys(
            f"promote {name}" for name in re.findall(r"gatehouse promote -r unit (\w+ \S+?)`", message)
        )
    for command in commands:
        name, _, rest = command.partition(" ")
        if name == "run":
            run(world, rest)
        else:
            asset, version = rest.split()
            decisions.promote(world.builder, asset, version, "ada", silent)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of(world: World, asset: str) -> Path:
    return world.path(asset) / "versions" / world.store.versions(asset)[-1]


def evidence(world: World) -> Path:
    return of(world, f"{ASSET}.evaluation")


def another_pointer(world: World) -> None:
    shutil.copy2(world.path("raw_corpus") / "promoted.json", world.path(ASSET) / "promoted.json")


DAMAGES: dict[str, Callable[[World], object]] = {
    "a damaged manifest": lambda world: flip(of(world, ASSET) / "manifest.json"),
    "a damaged file": lambda world: flip(of(world, ASSET) / "data.txt"),
    "a file is missing": lambda world: (of(world, ASSET) / "data.txt").unlink(),
    "a file was added": lambda world: (of(world, ASSET) / "x").write_text(""),
    "the version is gone": lambda world: shutil.rmtree(of(world, ASSET)),
    "the manifest of the evidence": lambda world: flip(evidence(world) / "manifest.json"),
    "the report": lambda world: flip(evidence(world) / "report.json"),
    "a page of the evidence": lambda world: (evidence(world) / "items.jsonl").write_text("x"),
    "the evidence is gone": lambda world: shutil.rmtree(evidence(world)),
    "a damaged certificate": lambda world: flip(next(world.path(ASSET).glob("certificates/*"))),
    "no certificate": lambda world: next(world.path(ASSET).glob("certificates/*")).unlink(),
    "a damaged pointer": lambda world: flip(world.path(ASSET) / "promoted.json"),
    "the pointer of another asset": another_pointer,
    "no pointer": lambda world: (world.path(ASSET) / "promoted.json").unlink(),
    "a damaged promotion": lambda world: flip(next(world.path(ASSET).glob("promotions/*"))),
    "no history": lambda world: shutil.rmtree(world.path(ASSET) / "promotions"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_remedy_mends(world: World, damage: Callable[[World], object]) -> None:
    damage(world)
    said = problems(world)
    assert said
    for _ in range(3):  # one remedy may bring out what hid behind it
        obey(
            world,
            [
                message.replace("materialize corpus to have it judged", "`gatehouse run -r unit --select corpus`")
                for message in said
            ],
        )
        said = problems(world)
        if not said:
            return
    raise AssertionError(said)


def test_a_damaged_waiver_is_written_anew(world: World) -> None:
    world.store.withdraw(ASSET)
    shutil.rmtree(world.path(ASSET))
    shutil.rmtree(world.path(f"{ASSET}.evaluation"))
    world.publish(ASSET, WAIVED)
    until = utc_today() + timedelta(days=30)
    assert not world.judge(ASSET).promoted
    assert decisions.waive(world.builder, ASSET, "bytes", "a demo", until, "ada", silent).promoted
    flip(next(world.path(ASSET).glob("waivers/*/bytes.json")))
    with pytest.raises(
        StoreError,
        match=r"delete this file, then `gatehouse waive -r unit corpus --version \S+ --gate "
        "bytes --reason",
    ):
        world.judge(ASSET)
    next(world.path(ASSET).glob("waivers/*/bytes.json")).unlink()
    assert decisions.waive(world.builder, ASSET, "bytes", "a demo", until, "ada", silent).promoted


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_text("{}"), lambda path: path.write_text('{"a": 1}')])
def test_links_are_vouched_for(world: World, damage: Callable[[Path], object]) -> None:
    version = world.promoted(ASSET)
    path = world.path(ASSET) / "links" / f"{version}.json"
    world.store.write_links(ASSET, version, {"mlflow_run_id": "r" * 32})
    damage(path)
    if path.read_text() != "{}":
        with pytest.raises(StoreError, match="is damaged.*delete this file, then `gatehouse sync -r unit` writes"):
            world.store.links(ASSET, version)
        path.unlink()
    assert world.store.links(ASSET, version) == {}
    assert not problems(world)


def test_every_byte_of_the_links_counts(world: World) -> None:
    version = world.promoted(ASSET)
    world.store.write_links(ASSET, version, {"mlflow_run_id": "r" * 32, "attempt": "/somewhere"})
    path = world.path(ASSET) / "links" / f"{version}.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StoreError, match="is damaged"):
            world.store.links(ASSET, version)


def test_links_without_a_checksum_are_still_read(world: World) -> None:
    path = world.path(ASSET) / "links" / "old.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"mlflow_run_id": "r"}')
    assert world.store.links(ASSET, "old") == {"mlflow_run_id": "r"}
    world.store.write_links(ASSET, "old", {"attempt": "a"})
    assert world.store.links(ASSET, "old") == {"mlflow_run_id": "r", "attempt": "a"}


PATHS = ("../../raw_corpus/versions/V", "..", ".", "/etc/passwd", "a/b", ".hidden", "a\nb", "")


@pytest.mark.parametrize("path", PATHS)
def test_a_version_is_a_name_and_never_a_path(world: World, path: str) -> None:
    before = world.promoted(ASSET)
    path = path.replace("V", world.promoted("raw_corpus"))
    with pytest.raises(UserError, match="is no name of an asset, a version or a gate"):
        decisions.promote(world.builder, ASSET, path, "ada", silent)
    for read in (
        world.store.links,
        world.store.certificate,
        world.store.waivers,
        world.store.hold,
        world.store.uri,
        world.store.gate_report,
        world.store.folder,
    ):
        with pytest.raises(StoreError, match="is no name of"):
            read(ASSET, path)
    for asset_read in (world.store.promotion, world.store.promotions, world.store.versions, world.store.latest):
        with pytest.raises(StoreError, match="is no name of"):
            asset_read(path)
    if path:
        with pytest.raises(UserError, match="is no name of|has no such gate"):
            decisions.waive(world.builder, ASSET, "bytes", "a demo", utc_today(), "ada", silent, version=path)
        with pytest.raises(StoreError, match="is no name of"):
            world.store.remove_waiver(ASSET, before, path)
    with pytest.raises(UserError, match="there is no such asset" if path else "lora_model was never built"):
        talk(str(world.folder / "unit.yaml"), path, "hello")
    assert world.promoted(ASSET) == before and not problems(world)
