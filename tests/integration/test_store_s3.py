"""The store in an object store: the same promises over S3's own protocol."""

from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.integration.object_store import BUCKET, SECRET, ObjectServer
from tests.integration.workspaces import Workspace, workspace
from tests.unit.store.test_store import draft, promote, publish
from training.errors import InputRefused, StoreError, UserError
from training.store import storage
from training.store.store import Store

pytestmark = pytest.mark.s3
pytest_plugins = ["tests.integration.object_store_fixtures"]


@pytest.fixture
def store(bucket: Any, tmp_path: Path) -> Store:
    return Store(f"s3://{BUCKET}/prefix", "r", cache=tmp_path / "cache")


def reader(tmp_path: Path, name: str = "reader") -> Store:
    """The same store on another machine."""
    return Store(f"s3://{BUCKET}/prefix", "r", cache=tmp_path / name)


def test_versions_as_on_a_disk(store: Store, tmp_path: Path) -> None:
    other = reader(tmp_path)
    assert (other.versions("corpus"), other.latest("corpus"), other.find("corpus", "a" * 64)) == ([], None, None)
    first, second = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", "two")
    third = publish(store, tmp_path / "c", identity="b" * 64)
    assert set(other.versions("corpus")) == {first.version, second.version, third.version}
    assert other.find("corpus", "a" * 64) == second
    assert other.manifest("corpus", first.version) == first
    assert other.uri("corpus", first.version) == f"s3://{BUCKET}/prefix/r/corpus/versions/{first.version}"
    assert not (tmp_path / "a").exists()
    with pytest.raises(StoreError, match=r"corpus has no version nothing in s3://models/prefix"):
        other.manifest("corpus", "nothing")


def test_promotion_as_on_a_disk(store: Store, tmp_path: Path) -> None:
    other = reader(tmp_path)
    published = publish(store, tmp_path / "a")
    with pytest.raises(InputRefused, match="never judged"):
        other.require_promoted("corpus", published.version, published.digest)
    pointer = promote(store, published)
    assert other.promotion("corpus") == pointer
    kept = other.certificate("corpus", published.version)
    assert kept is not None and (kept.artifact_digest, kept.digest) == (published.digest, pointer.certificate_digest)
    assert other.require_promoted("corpus", published.version, published.digest).passed
    store.withdraw("corpus")
    assert other.promotion("corpus") is None
    store.withdraw("corpus")
    assert other.versions("corpus") == [published.version]


def test_links_are_added_up(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    store.write_links("corpus", published.version, {"a": "1"})
    reader(tmp_path).write_links("corpus", published.version, {"b": "2"})
    assert store.links("corpus", published.version) == {"a": "1", "b": "2"}


def test_an_upload_that_was_cut_short_is_no_version(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    bucket.rm_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/manifest.json")
    assert store.versions("corpus") == []
    assert store.find("corpus", "a" * 64) is None


def test_who_publishes_need_not_fetch(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    bucket.rm_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/data.txt")
    folder = store.verified_folder("corpus", published.version, published.digest)
    assert (folder / "data.txt").read_text() == "hello"


def test_a_copy_is_made_once_and_replaced_when_it_is_damaged(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    other = reader(tmp_path)
    folder = other.verified_folder("corpus", published.version, published.digest)
    copied = (folder / "data.txt").stat().st_ino
    assert folder == other.verified_folder("corpus", published.version, published.digest)
    assert folder.is_relative_to(tmp_path / "reader")
    assert (folder / "data.txt").stat().st_ino == copied
    for damage in (
        lambda: (folder / "data.txt").write_text("hellO"),
        lambda: (folder / "data.txt").unlink(),
        lambda: (folder / "more.txt").write_text("x"),
    ):
        damage()
        assert other.verified_folder("corpus", published.version, published.digest) == folder
        assert sorted(path.name for path in folder.rglob("*.txt")) == ["data.txt", "time.txt"]
        assert (folder / "data.txt").read_text() == "hello"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder / "data.txt").write_text("hellO")
    bucket.pipe_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/data.txt", b"hellO")
    with pytest.raises(InputRefused, match=f"data.txt has changed .*s3://{BUCKET}/prefix/r/corpus/versions"):
        other.verified_folder("corpus", published.version, published.digest)


def test_one_file_is_copied_and_verified_by_itself(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    other = reader(tmp_path)
    assert other.verified_file(published, "data.txt", tmp_path / "one").read_text() == "hello"
    assert not list((tmp_path / "reader").rglob("*.txt"))
    bucket.pipe_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/data.txt", b"hellO")
    with pytest.raises(InputRefused, match="data.txt has changed"):
        other.verified_file(published, "data.txt", tmp_path / "two")


def test_a_changed_object_is_refused(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    bucket.pipe_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/data.txt", b"hellO")
    with pytest.raises(InputRefused, match="data.txt has changed"):
        reader(tmp_path).verified_folder("corpus", published.version, published.digest)


def test_a_missing_object_is_refused_and_leaves_no_half_copy(store: Store, bucket: Any, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    bucket.rm_file(f"{BUCKET}/prefix/r/corpus/versions/{published.version}/report/time.txt")
    with pytest.raises(StoreError, match=r"failed at s3://models/prefix/r/corpus/versions/.*/report/time.txt"):
        reader(tmp_path).verified_folder("corpus", published.version, published.digest)
    assert not list((tmp_path / "reader").rglob("*.txt"))


def test_a_damaged_pointer_is_named_by_its_url(store: Store, bucket: Any, tmp_path: Path) -> None:
    promote(store, publish(store, tmp_path / "a"))
    bucket.pipe_file(f"{BUCKET}/prefix/r/corpus/promoted.json", b"{")
    with pytest.raises(StoreError, match="s3://models/prefix/r/corpus/promoted.json is damaged.*delete this file and"):
        store.promotion("corpus")


@pytest.mark.parametrize(("size", "message"), [(0, "promoted.json is damaged"), (9, "it is no file of at most")])
def test_a_pointer_of_an_absurd_size(
    store: Store, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, message: str
) -> None:
    promote(store, publish(store, tmp_path / "a"))
    bucket.pipe_file(f"{BUCKET}/prefix/r/corpus/promoted.json", b"x" * size)
    monkeypatch.setattr(storage, "MAX_RECORD_BYTES", 8)
    with pytest.raises(UserError, match=message):
        reader(tmp_path).promotion("corpus")


def test_a_bucket_that_is_not_there(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="s3://nowhere/x failed at .*bucket does not exist"):
        publish(Store("s3://nowhere/x", "r"), tmp_path / "a")


def test_a_server_that_is_not_there(credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(f"s3://{BUCKET}/prefix", "r", cache=None)
    with pytest.raises(StoreError, match="Could not connect to the endpoint URL"):
        store.versions("corpus")


def test_a_folder_without_files_is_not_published(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no file"):
        store.publish(tmp_path / "empty", draft())


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_server_without_conditions_is_refused(
    conditions: str, store: Store, object_server: ObjectServer, bucket: Any, tmp_path: Path
) -> None:
    published = publish(store, tmp_path / "a")
    promote(store, published)
    object_server.conditions = conditions
    before = bucket.find(BUCKET)
    other = Store(f"s3://{BUCKET}/prefix", "r", cache=tmp_path / "other")
    for refused in (lambda: publish(other, tmp_path / "b"), lambda: promote(other, published)):
        with pytest.raises(StoreError, match="s3://models/prefix does not create objects on condition.*to a service"):
            refused()
    assert bucket.find(BUCKET) == before
    assert (tmp_path / "b" / "data.txt").read_text() == "hello"
    assert other.require_promoted("corpus", published.version, published.digest).passed


def test_a_lost_answer_to_a_condition_is_no_loss(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, asked = s3fs.S3FileSystem._call_s3, []

    async def twice(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        if "IfNoneMatch" in named:  # as botocore does when the connection breaks before the answer
            asked.append(named["Key"])
            await real(self, method, *arguments, **named)
        return await real(self, method, *arguments, **named)

    publish(store, tmp_path / "a")
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", twice)
    published = publish(store, tmp_path / "b")
    assert len(asked) == 2 and asked[-1].endswith(f"{published.version}/manifest.json")
    assert len(store.versions("corpus")) == 2


def test_a_failed_multipart_upload_is_aborted_at_once(
    store: Store, object_server: ObjectServer, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    parts: list[str] = []
    object_server.refuse = lambda method, path: "partNumber=2" in path and not parts.append(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data.bin").write_bytes(b"x" * (11 << 20))
    with pytest.raises(StoreError, match="no permission for s3://models/prefix/r/corpus/versions.*data.bin"):
        store.publish(tmp_path / "a", draft())
    assert parts
    assert store.storage.unfinished_uploads() == []
    assert store.versions("corpus") == [] and [path for path in bucket.find(BUCKET) if "versions" in path] == []
    assert (tmp_path / "a" / "data.bin").stat().st_size == 11 << 20
    object_server.reset()
    published = store.publish(tmp_path / "a", draft())
    assert reader(tmp_path).verified_folder("corpus", published.version, published.digest).is_dir()


@pytest.fixture
def mine(bucket: Any, tmp_path: Path) -> Workspace:
    return workspace(tmp_path / "mine")


def test_the_data_stages_end_to_end(mine: Workspace, credentials: dict[str, str], bucket: Any) -> None:
    variables = {**credentials, "GATEHOUSE_STORE": f"s3://{BUCKET}/prefix"}
    first = mine.run("--select", "+tokenizer", **variables)
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("✓ built") == 3
    assert bucket.exists(f"{BUCKET}/prefix/mine/tokenizer/promoted.json")
    assert not (mine.home / "store").exists()
    second = mine.run("--select", "+tokenizer", **variables)
    assert second.returncode == 0, second.stdout
    assert second.stdout.count("= reused") == 3
    assert "built" not in second.stdout
    verified = mine.command("gatehouse", "verify", "-r", str(mine.recipe), **variables)
    assert verified.returncode == 0, verified.stdout
    assert "everything holds" in verified.stdout
    collected = mine.command("gatehouse", "gc", "-r", str(mine.recipe), "--older-than", "0", **variables)
    assert collected.returncode == 0, collected.stdout
    for output in (first.stdout, second.stdout, verified.stdout, collected.stdout):
        assert SECRET not in output
    assert not [path for path in bucket.find(BUCKET) if SECRET.encode() in bucket.cat_file(path)]
    leaks = [path for path in mine.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert leaks == []
