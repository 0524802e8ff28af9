"""The store on a disk that is full, read-only or not ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.store_faults import assert_whole, in_child, promote, publish, served, text_of, write_files
from tests.chaos.test_store import prepare, publish_third, withdraw
from tests.integration.workspaces import workspace
from tests.promises import Promise
from tests.unit.store.test_store import draft
from training.errors import StoreError

NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with a megabyte of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
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
            for refused in (
                lambda: publish(world.store, tmp_path / "third", "third"),
                lambda: promote(world.store, world.store.manifest("corpus", versions[1])),
                lambda: world.store.withdraw("corpus"),
            ):
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
        operations = {
            "publish": lambda: publish_third(world.store, source),
            "withdraw": lambda: withdraw(world.store, source),
            "read": lambda: served(world.store),
            "list": lambda: world.store.versions("corpus"),
        }
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
