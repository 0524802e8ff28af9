"""The store on a disk that fails, is full, read-only or not ours, under writers that are killed or race."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.chaos.store_faults import (
    Fault,
    assert_whole,
    faulty_disk,
    flipped,
    in_child,
    promote,
    publish,
    served,
    text_in,
    text_of,
    write_files,
)
from tests.integration.workspaces import workspace
from tests.promises import Promise
from tests.unit.test_store import draft
from training.errors import StoreError, UserError
from training.specs.artifacts import Manifest
from training.store import Store

NOBODY = 65534
Operation = Callable[[Store, Path], None]


@dataclass(frozen=True)
class World:
    """A store with a promoted version, and a folder to publish from."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"), "r")


def prepare(folder: Path) -> World:
    """A store whose promoted version is made of `old`; `new` is published, and neither judged nor promoted."""
    world = World(folder)
    promote(world.store, publish(world.store, folder / "attempt", "old"))
    publish(world.store, folder / "attempt", "new", identity="b" * 64)
    return world


def publish_third(store: Store, source: Path) -> None:
    store.publish(source, draft(identity="c" * 64))


def publish_first(store: Store, source: Path) -> None:
    store.publish(source, draft(asset="tokenizer"))


def promote_new(store: Store, _source: Path) -> None:
    promote(store, store.manifest("corpus", store.versions("corpus")[1]))


def judge_again(store: Store, _source: Path) -> None:
    promote(store, store.manifest("corpus", store.versions("corpus")[0]), by="somebody else")


def withdraw(store: Store, _source: Path) -> None:
    store.withdraw("corpus")


OPERATIONS: dict[str, tuple[Operation, set[str]]] = {
    "a publish": (publish_third, {"old"}),
    "a first publish": (publish_first, {"old"}),
    "a publish from another filesystem": (publish_third, {"old"}),
    "a certificate and its promotion": (promote_new, {"old", "new"}),
    "a promoted version's new certificate": (judge_again, {"old"}),
    "a withdrawal": (withdraw, {"old", ""}),
}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another filesystem."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("needs a second filesystem, /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["kill", "error", pytest.param("gone", marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.promise("A {kind} at every storage call of {operation} leaves the old or the new, on a disk")
def test_every_call(promise: Promise, kind: str, operation: str, tmp_path: Path,
                    request: pytest.FixtureRequest) -> None:
    work, expected = OPERATIONS[operation]
    sources = request.getfixturevalue("elsewhere") if "another" in operation else tmp_path
    template = prepare(tmp_path / "template")

    def attempt(number: int, fault: Fault, forked: bool) -> tuple[World, Path, int]:
        world = World(tmp_path / str(number))
        shutil.copytree(template.folder, world.folder)
        source = write_files(sources / f"source-{number}", "third")

        def strike() -> None:
            store = world.store
            with faulty_disk(fault):
                work(store, source)

        return world, source, in_child(strike) if forked else _tried(strike)

    counted = Fault()
    world, source, code = attempt(0, counted, forked=False)
    assert code == 0 and len(counted.calls) > 1
    before, after = served(template.store), served(world.store)
    for trial in promise.trials(quick=len(counted.calls), full=len(counted.calls)):
        with trial:
            world, source, code = attempt(trial.number + 1, Fault(trial.number + 1, kind), kind == "kill")
            assert code == -signal.SIGKILL if kind == "kill" else code in (0, 1)
            seen = served(world.store)
            assert seen in (before, after) and seen[2] in expected
            for asset in ("corpus", "tokenizer"):
                assert_whole(world.store, asset)
            if "publish" in operation:
                hidden = [] if kind == "error" else list(world.folder.rglob("versions/.*"))
                places = [source, *world.folder.rglob("versions/[!.]*"), *hidden]
                assert any(text_in(place) == {"third"} for place in places), "what was made is lost"
            shutil.rmtree(source, ignore_errors=True)
            work(world.store, write_files(source, "third"))
            assert served(world.store)[2] == after[2]
            shutil.rmtree(world.folder)


def _tried(work: Callable[[], None]) -> int:
    try:
        work()
    except StoreError as error:
        return 1 if "Input/output error" in str(error) and "untouched" in str(error) else 2
    return 0


def race(root: str, cache: Path, sources: Path, name: str, barrier: Barrier, orders: Connection) -> None:
    """One of two writers: for each order publish a version, then promote it, each at the same time as the other."""
    store = Store(root, "r", cache=cache)
    while (number := orders.recv()) is not None:
        try:
            source = write_files(sources / f"{name}{number}", name)
            barrier.wait(60)
            manifest = store.publish(source, draft(asset=f"corpus{number}"))
            barrier.wait(60)
            promote(store, manifest)
            orders.send(manifest)
        except BaseException as error:
            barrier.abort()
            orders.send(error)
            raise


@pytest.mark.promise("Of two writers that race each commits its own version and promotion, on a disk")
def test_race(promise: Promise, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    context = get_context("fork")
    barrier = context.Barrier(2)
    ends, writers = [], []
    for name in ("ada", "bob"):
        mine, theirs = context.Pipe()
        writer = context.Process(target=race, daemon=True, args=(root, tmp_path / "cache", tmp_path / "sources", name,
                                                                 barrier, theirs))
        writer.start()
        ends.append(mine)
        writers.append(writer)
    store = Store(root, "r")
    for trial in promise.trials(quick=50, full=1000):
        with trial:
            assert_both_committed(store, trial.number, ends)
    for end, writer in zip(ends, writers, strict=True):
        end.send(None)
        writer.join(30)
        assert writer.exitcode == 0


def assert_both_committed(store: Store, number: int, ends: list[Connection]) -> None:
    """Let both writers go, and look at what they left."""
    asset = f"corpus{number}"
    for end in ends:
        end.send(number)
    made: list[Manifest] = []
    for end in ends:
        assert end.poll(60)
        answer = end.recv()
        assert isinstance(answer, Manifest), answer
        made.append(answer)
    assert store.versions(asset) == sorted(manifest.version for manifest in made)
    for manifest, name in zip(made, ("ada", "bob"), strict=True):
        assert store.manifest(asset, manifest.version) == manifest
        assert text_of(store.verified_folder(asset, manifest.version, manifest.digest)) == name
    assert served(store, asset)[0] in {manifest.version for manifest in made}
    assert {promotion.version for promotion in store.promotions(asset)} == {manifest.version for manifest in made}


@pytest.mark.promise("A byte flipped anywhere in an artifact's files and records is detected before it is used")
def test_flipped_bytes(promise: Promise, tmp_path: Path) -> None:
    store = prepare(tmp_path).store
    before = served(store)
    asset = tmp_path / "store" / "r" / "corpus"
    files = [path for path in (asset / "versions" / before[0]).rglob("*") if path.is_file()]
    files += [asset / "certificates" / f"{before[0]}.json", asset / "promoted.json"]
    assert len(files) == 6
    for trial in promise.trials(quick=200, full=1000):
        with trial:
            path = trial.random.choice(files)
            sound = path.read_bytes()
            path.write_bytes(flipped(sound, trial.random))
            with pytest.raises(UserError):
                served(store)
            path.write_bytes(sound)
            assert served(store) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with a megabyte of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(folder)],
                             capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"may not mount a filesystem: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.promise("A full disk is one clear error, and the promoted version is still served")
def test_full_disk(promise: Promise, small_disk: Path, tmp_path: Path) -> None:
    world = prepare(small_disk)
    before, versions = served(world.store), world.store.versions("corpus")
    for trial in promise.trials(quick=20, full=300):
        with trial:
            status = os.statvfs(small_disk)
            room = trial.random.randrange(0, 40) * status.f_frsize
            (small_disk / "filler").write_bytes(b"x" * max(0, status.f_bavail * status.f_frsize - room))
            source = write_files(tmp_path / f"source-{trial.number}", "third")
            (source / "model" / "deep" / "weights.bin").write_text("third " * 25_000)
            with pytest.raises(StoreError, match="No space left on device.*untouched"):
                world.store.publish(source, draft())
            new = world.store.manifest("corpus", versions[1])
            refused = trial.random.random() < 0.5
            if refused:
                (small_disk / "rest").write_bytes(b"x" * os.statvfs(small_disk).f_bavail * status.f_frsize)
                with pytest.raises(StoreError, match="No space left on device.*untouched"):
                    promote(world.store, new)
            assert (served(world.store), assert_whole(world.store)) == (before, versions)
            assert text_of(source) == "third"
            assert not [path for path in small_disk.rglob(".*") if path.is_dir()], "a failed copy takes up room"
            for name in ("filler", "rest"):
                (small_disk / name).unlink(missing_ok=True)
            shutil.rmtree(world.store.folder("corpus", world.store.publish(source, draft()).version))


@pytest.mark.promise("A read-only store is one clear error, and the promoted version is still served")
def test_read_only_store(promise: Promise, small_disk: Path, tmp_path: Path) -> None:
    world = prepare(small_disk)
    before, versions = served(world.store), world.store.versions("corpus")
    for trial in promise.trials(quick=1, full=1):
        with trial:
            remount(small_disk, "ro")
            for refused in (lambda: publish(world.store, tmp_path / "third", "third"),
                            lambda: promote(world.store, world.store.manifest("corpus", versions[1])),
                            lambda: world.store.withdraw("corpus")):
                with pytest.raises(StoreError, match="Read-only file system.*untouched"):
                    refused()
            assert (served(world.store), world.store.versions("corpus")) == (before, versions)
            assert text_of(tmp_path / "third") == "third"
            remount(small_disk, "rw")
            publish(world.store, tmp_path / "third", "third")


@pytest.mark.slow
@pytest.mark.promise("A full or read-only store ends a run with exit code 2 and one message; promoted is what was")
def test_refusing_disk_through_the_command(promise: Promise, small_disk: Path, tmp_path: Path) -> None:
    mine = workspace(tmp_path / "mine")
    remount(small_disk, "size=16m")
    run = partial(mine.run, "--select", "raw_corpus", GATEHOUSE_STORE=str(small_disk))
    assert (first := run()).returncode == 0, first.stdout

    def status() -> dict[str, object]:
        told = mine.command("gatehouse", "status", "-r", str(mine.recipe), "--json", GATEHOUSE_STORE=str(small_disk))
        return dict(json.loads(told.stdout)[0])

    before = status()
    note = next(mine.notes.glob("*.py"))
    for trial in promise.trials(quick=2, full=2):
        with trial:
            note.write_text(note.read_text() + f"# edit {trial.number}\n")
            if trial.number == 0:
                room = os.statvfs(small_disk)
                (small_disk / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 100_000))
            remount(small_disk, "rw" if trial.number == 0 else "ro")
            refused = run()
            assert refused.returncode == 2, refused.stdout
            assert ("No space left on device", "Read-only file system")[trial.number] in refused.stdout
            assert "Traceback" not in refused.stdout
            assert (status()["version"], status()["promoted"]) == (before["version"], True)
            remount(small_disk, "rw")
            (small_disk / "filler").unlink(missing_ok=True)
    assert (last := run()).returncode == 0, last.stdout
    assert status()["version"] != before["version"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("lost", ["write", "read"])
@pytest.mark.promise("A lost permission to {lost} is one clear error, and the promoted version is not replaced")
def test_lost_permission(promise: Promise, lost: str, open_folder: Path) -> None:
    world = prepare(open_folder)
    before, versions = served(world.store), world.store.versions("corpus")
    source = write_files(open_folder / "mine" / "source", "third")
    for path in (source.parent, *source.parent.rglob("*")):
        path.chmod(0o777)
    asset = open_folder / "store" / "r" / "corpus"
    for path in (asset, *asset.rglob("*")):
        if path.is_dir():
            path.chmod(0o555 if lost == "write" else 0o000)

    def refused() -> None:
        operations = {"publish": lambda: publish_third(world.store, source), "withdraw": lambda: withdraw(
            world.store, source), "read": lambda: served(world.store), "list": lambda: world.store.versions("corpus")}
        for name, operation in operations.items():
            if lost == "write" and name in ("read", "list"):
                assert served(world.store) == before and world.store.versions("corpus") == versions
                continue
            with pytest.raises(StoreError, match=f"no permission for {asset}.*untouched"):
                operation()
        assert text_of(source) == "third"

    for trial in promise.trials(quick=1, full=1):
        with trial:
            assert in_child(refused, NOBODY if os.geteuid() == 0 else 0) == 0
            subprocess.run(["chmod", "-R", "u+rwx", str(asset)], check=True)
            assert (served(world.store), world.store.versions("corpus")) == (before, versions)
