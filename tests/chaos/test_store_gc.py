"""`gatehouse gc` killed at every call: what a reader sees is whole or gone, and the next one finishes the work."""

from __future__ import annotations

import shutil
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipes.loader import load_recipe
from pipeline.upkeep.gc import delete_garbage, find_garbage
from pipeline.upkeep.retention import KEPT_PROMOTIONS
from tests.chaos.object_faults import PART, faulty_network, killed_remotely
from tests.chaos.store_faults import Fault, assert_whole, faulty_disk, in_child, served, write_files
from tests.evidence import with_evidence
from tests.integration.object_store import BUCKET, SECRET, ObjectServer
from tests.promises import Promise
from tests.unit.store.test_store import certificate, draft, pointer_to, waiver
from tests.unit.worlds import World, new_world
from training.errors import StoreError
from training.store.store import Store, utc_today

pytest_plugins = ["tests.integration.object_store_fixtures"]
ASSET = "raw_corpus"


def fill(store: Store, world: World) -> list[str]:
    """Versions made of `0` to `4`: 0 to 3 were promoted in turn, 4 is refused. gc deletes 0 alone.

    Of each there are links and a waiver that has ended.
    """
    made = []
    for number in range(KEPT_PROMOTIONS + 2):
        manifest = store.publish(write_files(world.folder / "attempt", str(number)), draft(ASSET, f"{number}" * 64))
        made.append(manifest.version)
        issued = with_evidence(
            store,
            certificate(manifest, value=float(number <= KEPT_PROMOTIONS)),
        )
        store.write_certificate(issued)
        if issued.passed:
            store.promote(pointer_to(issued))
        store.write_links(ASSET, manifest.version, {"mlflow_run_id": "r"})
        store.write_waiver(waiver(manifest, utc_today() - timedelta(1)))
    store.write_links(ASSET, "promoted", {"version": made[KEPT_PROMOTIONS]})
    return made


def clean(world: World, store: Store) -> None:
    """Delete what nothing needs, however new."""
    loaded = load_recipe(str(world.folder / "unit.yaml"))
    delete_garbage(
        find_garbage(loaded, store, world.folder / "work", 0),
        store,
        world.folder / "work",
        lambda _deletion, _kept: None,
    )


def assert_nothing_needed_is_lost(store: Store, made: list[str], before: tuple[str, str, str]) -> None:
    assert served(store, ASSET) == before
    assert set(made[1:]) <= set(assert_whole(store, ASSET)) <= set(made)


def assert_clean(store: Store, made: list[str]) -> None:
    left = {
        folder: sorted(name.removesuffix(".json") for name in store.storage.names(store.base / ASSET / folder))
        for folder in ("versions", "certificates", "waivers", "links")
    }
    assert store.versions(ASSET) == made[1:]
    assert left == {
        "versions": made[1:],
        "certificates": made[1:],
        "waivers": made[1:],
        "links": [*made[1:], "promoted"],
    }


@pytest.mark.parametrize("kind", ["kill", pytest.param("gone", marks=pytest.mark.slow)])
@pytest.mark.promise("A fault ({kind}) at every storage call of a gc loses nothing that is needed, on a disk")
def test_every_call(promise: Promise, kind: str, tmp_path: Path) -> None:
    (tmp_path / "template").mkdir()
    template = new_world(tmp_path / "template")
    made = fill(template.store, template)
    before = served(template.store, ASSET)

    def struck(name: str, fault: Fault) -> tuple[World, int]:
        shutil.copytree(template.folder, tmp_path / name)
        world = World(tmp_path / name)

        def work() -> None:
            with faulty_disk(fault):
                clean(world, world.store)

        if kind == "kill" and name != "counted":
            return world, in_child(work)
        try:
            work()
        except StoreError:
            return world, 1
        return world, 0

    counted = Fault()
    world, code = struck("counted", counted)
    assert code == 0 and len(counted.calls) > 15
    assert_clean(world.store, made)
    for trial in promise.trials(quick=len(counted.calls), full=len(counted.calls)):
        with trial:
            world, code = struck(str(trial.number), Fault(trial.number + 1, kind))
            assert code == -signal.SIGKILL if kind == "kill" else code in (0, 1)
            assert_nothing_needed_is_lost(world.store, made, before)
            clean(world, world.store)
            assert_clean(world.store, made)
            shutil.rmtree(world.folder)


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.promise("A connection lost at every request of a gc loses nothing that is needed, in S3")
def test_every_request(promise: Promise, bucket: Any, tmp_path: Path) -> None:
    world = new_world(tmp_path)
    template = Store(f"s3://{BUCKET}/template", "r", cache=tmp_path / "cache")
    made = fill(template, world)
    before = served(template, ASSET)

    def struck(name: str, fault: Fault) -> Store:
        bucket.copy(f"{BUCKET}/template/", f"{BUCKET}/{name}/", recursive=True)
        store = Store(f"s3://{BUCKET}/{name}", "r", cache=tmp_path / f"cache-{name}")
        try:
            with faulty_network(fault, changing_only=True):
                clean(world, store)
        except StoreError:
            assert fault.calls
        return store

    counted = Fault()
    assert_clean(struck("counted", counted), made)
    assert len(counted.calls) > 2
    for trial in promise.trials(quick=len(counted.calls), full=len(counted.calls)):
        with trial:
            store = struck(str(trial.number), Fault(trial.number + 1, "gone"))
            assert_nothing_needed_is_lost(store, made, before)
            clean(world, store)
            assert_clean(store, made)
            bucket.rm(f"{BUCKET}/{trial.number}", recursive=True)


@pytest.mark.s3
@pytest.mark.promise("What killed publishes left in S3 is cleaned by gc once it is old, and not before")
def test_left_overs_in_s3(
    promise: Promise, bucket: Any, object_server: ObjectServer, credentials: dict[str, str], tmp_path: Path
) -> None:
    world = new_world(tmp_path)
    root = f"s3://{BUCKET}/left"
    store = Store(root, "r", cache=tmp_path / "cache")
    made = fill(store, world)
    killed = write_files(tmp_path / "killed", "third")
    (killed / "data.txt").write_bytes(b"third " * (2 * PART // 5))
    for trial in promise.trials(quick=1, full=3):
        with trial:
            for at in (3, 5):  # after the claim, and in the middle of the first file's parts
                shutil.rmtree(killed)
                (write_files(killed, "third") / "data.txt").write_bytes(b"third " * (2 * PART // 5))
                assert killed_remotely(credentials, root, publish_raw, killed, at, True) == -signal.SIGKILL
            hidden = tmp_path / "cache" / "r" / ASSET / ".half-a-copy"
            hidden.mkdir(parents=True)
            assert store.storage.unfinished_uploads() and set(store.versions(ASSET)) <= set(made)
            object_server.uploads_are_new = True
            loaded, work = load_recipe(str(world.folder / "unit.yaml")), world.folder / "work"
            assert {deletion.kind for deletion in find_garbage(loaded, store, work, 3600).deletions} <= {"version"}
            object_server.uploads_are_new = False
            found = find_garbage(loaded, store, work, 0)
            assert {"upload", "leftover", "copy"} <= {deletion.kind for deletion in found.deletions}
            assert SECRET not in str(found)
            clean(world, store)
            assert store.storage.unfinished_uploads() == []
            assert_clean(store, made)
            assert sorted(path.name[:24] for path in hidden.parent.iterdir()) == made[1:]


def publish_raw(store: Store, source: Path) -> None:
    store.publish(source, draft(ASSET, "c" * 64))
