"""The store on a disk that fails or flips bytes, under writers that are killed or race."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from tests.evidence import with_evidence
from tests.promises import Promise
from tests.unit.store.test_store import certificate, draft
from training.errors import StoreError, UserError
from training.specs.artifacts import Manifest
from training.store.store import Store

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
    new = publish(world.store, folder / "attempt", "new", identity="b" * 64)
    with_evidence(world.store, certificate(new))
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
@pytest.mark.promise("A fault ({kind}) at every storage call of {operation} leaves the old or the new, on a disk")
def test_every_call(
    promise: Promise, kind: str, operation: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
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
        writer = context.Process(
            target=race, daemon=True, args=(root, tmp_path / "cache", tmp_path / "sources", name, barrier, theirs)
        )
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
