"""The store in an object store: the same promises over S3's own protocol."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.integration.workspaces import Workspace, workspace
from tests.unit.test_store import certificate, draft, promote, publish
from training.errors import InputRefused, StoreError
from training.store import Store

pytestmark = pytest.mark.s3
SECRET = "canary-0f6c2b9e51d7"
BUCKET = "models"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a person sets to reach the server; it is set in this process too."""
    variables = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
                 "AWS_ENDPOINT_URL": endpoint}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return variables


@pytest.fixture
def bucket(credentials: dict[str, str]) -> Any:
    """The server's files as another client sees them; the bucket is empty."""
    client = s3fs.S3FileSystem(use_listings_cache=False)
    if client.exists(BUCKET):
        client.rm(BUCKET, recursive=True)
    client.mkdir(BUCKET)
    return client


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
    assert other.certificate("corpus", published.version) == certificate(published)
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


def test_a_copy_is_made_once_and_verified_each_time(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    other = reader(tmp_path)
    folder = other.verified_folder("corpus", published.version, published.digest)
    assert folder == other.verified_folder("corpus", published.version, published.digest)
    assert folder.is_relative_to(tmp_path / "reader")
    (folder / "data.txt").write_text("hellO")
    with pytest.raises(InputRefused, match=f"data.txt has changed .*delete {re.escape(str(folder))} to have it copied"):
        other.verified_folder("corpus", published.version, published.digest)


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
    for output in (first.stdout, second.stdout):
        assert SECRET not in output
    leaks = [path for path in mine.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert leaks == []
