"""The store in an object store that fails, under writers that are killed or race."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.object_faults import (
    PART,
    LostAnswer,
    Operation,
    clean_processes,
    faulty_network,
    killed_remotely,
    with_variables,
)
from tests.chaos.store_faults import Fault, assert_whole, flipped, promote, publish, served, text_of, write_files
from tests.chaos.test_store import (
    assert_both_committed,
    judge_again,
    promote_new,
    publish_first,
    publish_third,
    race,
    withdraw,
)
from tests.integration.object_store import BUCKET, SECRET, ObjectServer
from tests.promises import Promise
from tests.unit.store.test_store import draft
from training.errors import StoreError, UserError
from training.store.store import Store

pytestmark = pytest.mark.s3
pytest_plugins = ["tests.integration.object_store_fixtures"]
TEMPLATE = "template"

OPERATIONS: dict[str, tuple[Operation, set[str]]] = {
    "a publish": (publish_third, {"old"}),
    "a first publish": (publish_first, {"old"}),
    "a certificate and its promotion": (promote_new, {"old", "new"}),
    "a promoted version's new certificate": (judge_again, {"old"}),
    "a withdrawal": (withdraw, {"old", ""}),
}


def at(prefix: str, cache: Path) -> Store:
    """The store under a prefix as a machine sees it that has nothing yet."""
    return Store(f"s3://{BUCKET}/{prefix}", "r", cache=cache)


@pytest.fixture
def template(bucket: Any, tmp_path: Path) -> Store:
    """A store whose promoted version is made of `old`; `new` is published, and neither judged nor promoted."""
    store = at(TEMPLATE, tmp_path / "template")
    promote(store, publish(store, tmp_path / "attempt", "old"))
    publish(store, tmp_path / "attempt", "new", identity="b" * 64)
    return store


def copied(bucket: Any, prefix: str, cache: Path) -> Store:
    bucket.copy(f"{BUCKET}/{TEMPLATE}/", f"{BUCKET}/{prefix}/", recursive=True)
    return at(prefix, cache)


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize(
    "kind", ["kill", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("error", "gone", "lost answer"))]
)
@pytest.mark.promise("A fault ({kind}) at every request of {operation} leaves the old or the new, in S3")
def test_every_request(
    promise: Promise,
    kind: str,
    operation: str,
    template: Store,
    bucket: Any,
    credentials: dict[str, str],
    tmp_path: Path,
) -> None:
    work, expected = OPERATIONS[operation]
    counted, changing = Fault(), Fault()
    for fault, changing_only in ((counted, False), (changing, True)):
        prefix = f"whole-{changing_only}"
        whole = copied(bucket, prefix, tmp_path / prefix)
        with faulty_network(fault, changing_only):
            work(whole, write_files(tmp_path / "source", "third"))
    before, after = served(at(TEMPLATE, tmp_path / "before")), served(at("whole-False", tmp_path / "after"))
    every = promise.full or kind != "kill"  # the kills in between differ in nothing but the time they take
    count = len((counted if every else changing).calls)
    assert count >= 1
    for trial in promise.trials(quick=count, full=count):
        with trial:
            prefix = f"trial-{trial.number}"
            copied(bucket, prefix, tmp_path / prefix)
            source = write_files(tmp_path / prefix / "source", "third")
            if kind == "kill":
                assert (
                    killed_remotely(credentials, f"s3://{BUCKET}/{prefix}", work, source, trial.number + 1, not every)
                    == -signal.SIGKILL
                )
            else:
                fault = (LostAnswer if kind == "lost answer" else Fault)(
                    trial.number + 1, "gone" if kind == "gone" else "error"
                )
                _try(work, at(prefix, tmp_path / prefix / "writer"), source, fault)
            reader = at(prefix, tmp_path / prefix / "reader")
            seen = served(reader)
            assert seen in (before, after) and seen[2] in expected
            for asset in ("corpus", "tokenizer"):
                assert_whole(reader, asset)
            shutil.rmtree(source, ignore_errors=True)
            work(reader, write_files(source, "third"))
            assert served(at(prefix, tmp_path / prefix / "other"))[2] == after[2]
            assert not [
                path
                for path in (tmp_path / prefix).rglob("*")
                if path.is_file() and SECRET.encode() in path.read_bytes()
            ]
            bucket.rm(f"{BUCKET}/{prefix}", recursive=True)
            shutil.rmtree(tmp_path / prefix)


def _try(work: Operation, store: Store, source: Path, fault: Fault) -> None:
    with faulty_network(fault):
        try:
            work(store, source)
        except StoreError as error:
            told = str(error)
        else:
            return
    assert "untouched" in told or "start it again" in told, told
    assert SECRET not in told


@pytest.mark.promise("Of two writers that race each commits its own version and promotion, in S3")
def test_race(promise: Promise, bucket: Any, credentials: dict[str, str], tmp_path: Path) -> None:
    root, context = f"s3://{BUCKET}/race", clean_processes()
    barrier = context.Barrier(2)
    ends, writers = [], []
    for name in ("ada", "bob"):
        mine, theirs = context.Pipe()
        writer = context.Process(
            target=with_variables,
            daemon=True,
            args=(credentials, race, root, tmp_path / name, tmp_path / "sources", name, barrier, theirs),
        )
        writer.start()
        ends.append(mine)
        writers.append(writer)
    for trial in promise.trials(quick=10, full=1000):
        with trial:
            assert_both_committed(Store(root, "r", cache=tmp_path / "reader"), trial.number, ends)
            bucket.rm(f"{BUCKET}/race/r/corpus{trial.number}", recursive=True)
    for end, writer in zip(ends, writers, strict=True):
        end.send(None)
        writer.join(30)
        assert writer.exitcode == 0


@pytest.mark.promise("A byte flipped anywhere in an artifact's files and records is detected before it is used, in S3")
def test_flipped_bytes(promise: Promise, template: Store, bucket: Any, tmp_path: Path) -> None:
    before = served(template)
    objects = [
        path
        for path in bucket.find(f"{BUCKET}/{TEMPLATE}/r/corpus")
        if before[0] in path and "promotions" not in path and not path.endswith(".claim")
    ]
    objects.append(f"{BUCKET}/{TEMPLATE}/r/corpus/promoted.json")
    assert len(objects) == 6
    for trial in promise.trials(quick=20, full=1000):
        with trial:
            path = trial.random.choice(objects)
            sound = bucket.cat_file(path)
            bucket.pipe_file(path, flipped(sound, trial.random))
            with pytest.raises(UserError):
                served(at(TEMPLATE, tmp_path / f"cache-{trial.number}"))
            bucket.pipe_file(path, sound)
            assert served(at(TEMPLATE, tmp_path / f"cache-{trial.number}")) == before
            shutil.rmtree(tmp_path / f"cache-{trial.number}")


@pytest.mark.promise("A byte flipped anywhere in a local copy is repaired from S3 before it is used")
def test_flipped_copies(promise: Promise, template: Store, tmp_path: Path) -> None:
    reader = at(TEMPLATE, tmp_path / "reader")
    before = served(reader)
    folder = reader.folder("corpus", before[0])
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    for trial in promise.trials(quick=20, full=1000):
        with trial:
            path = trial.random.choice(files)
            path.write_bytes(flipped(path.read_bytes(), trial.random))
            assert served(reader) == before
            assert [copy.name for copy in folder.parent.iterdir()] == [folder.name]


@pytest.mark.promise("A multipart upload that a kill cut short is no version, and its parts can be freed")
def test_killed_multipart_upload(
    promise: Promise, template: Store, bucket: Any, credentials: dict[str, str], tmp_path: Path
) -> None:
    before, versions = served(template), template.versions("corpus")
    source = tmp_path / "killed"
    for trial in promise.trials(quick=1, full=8):
        with trial:
            write_files(source, "third")
            (source / "data.txt").write_bytes(b"third " * (2 * PART // 5))
            # claim, create upload, parts
            assert (
                killed_remotely(
                    credentials, f"s3://{BUCKET}/{TEMPLATE}", publish_third, source, 5 + trial.number % 2, True
                )
                == -signal.SIGKILL
            )
            assert (served(template), template.versions("corpus")) == (before, versions)
            left = template.storage.unfinished_uploads()
            assert [upload.path.name for upload in left] == ["data.txt"]
            for upload in left * 2:
                template.storage.abort(upload)
            assert template.storage.unfinished_uploads() == []


@pytest.mark.promise("A lost permission in S3 is one clear error, and the promoted version is still served")
def test_lost_permission(promise: Promise, template: Store, object_server: ObjectServer, tmp_path: Path) -> None:
    before, versions = served(template), template.versions("corpus")
    new = template.manifest("corpus", versions[1])
    source, writer = write_files(tmp_path / "third", "third"), at(TEMPLATE, tmp_path / "writer")
    for trial in promise.trials(quick=1, full=1):
        with trial:
            object_server.refuse = lambda method, _path: method not in ("GET", "HEAD")
            for refused in (
                lambda: writer.publish(source, draft()),
                lambda: promote(writer, new),
                lambda: writer.withdraw("corpus"),
            ):
                with pytest.raises(StoreError, match=f"no permission for s3://{BUCKET}/{TEMPLATE}/.*untouched"):
                    refused()
            reader = at(TEMPLATE, tmp_path / "reader")
            assert (served(reader), reader.versions("corpus"), text_of(source)) == (before, versions, "third")
            object_server.refuse = lambda _method, _path: True
            with pytest.raises(StoreError, match="no permission for s3://.*untouched"):
                reader.versions("corpus")
