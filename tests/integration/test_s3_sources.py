"""Sources in an S3 bucket, over S3's own protocol."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.object_store import BUCKET, SECRET, ObjectServer
from training.data.sources import fetching
from training.data.sources.bad_rows import BadRows
from training.data.sources.fetching import fetched
from training.data.sources.reading import read_source
from training.data.sources.source_files import SourceListing, list_source
from training.data.sources.source_state import source_state
from training.errors import SourceError
from training.specs.raw_corpus import Source

pytestmark = pytest.mark.s3
pytest_plugins = ["tests.integration.object_store_fixtures"]
LINES = b'{"text": "one"}\n{"text": "two"}\n'
WRITE = f"import s3fs; s3fs.S3FileSystem().pipe_file('{BUCKET}/texts/b.jsonl', b'new')"


@pytest.fixture
def texts(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fetching, "_WAITS", (0.0, 0.0))
    bucket.pipe_file(f"{BUCKET}/texts/a.jsonl", LINES)
    bucket.pipe_file(f"{BUCKET}/texts/deep/b.txt", b"text")
    bucket.pipe_file(f"{BUCKET}/texts/c.pdf", b"text")
    bucket.pipe_file(f"{BUCKET}/texts/.hidden.txt", b"text")
    bucket.pipe_file(f"{BUCKET}/texts/empty.txt", b"")
    bucket.pipe_file(f"{BUCKET}/texts2/other.txt", b"text")
    return bucket


def source(path: str | tuple[str, ...], **fields: Any) -> Source:
    return Source(name="s", path=path, **fields)


def names(listing: SourceListing) -> list[str]:
    return [file.name for file in listing.remote]


def refusal(path: str, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(read_source(source(path), BadRows("fail", folder / "skipped.jsonl"), folder))
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_folders_files_globs_and_lists(texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "texts")
    for path in (f"s3://{BUCKET}/texts", f"s3://{BUCKET}/${{FOLDER}}/"):
        listing = list_source(source(path))
        assert names(listing) == ["a.jsonl", "deep/b.txt"]
        assert listing.left_out == {".pdf": 1, "hidden": 1, "empty": 1}
    assert names(list_source(source(f"s3://{BUCKET}/texts/a.jsonl"))) == ["a.jsonl"]
    assert names(list_source(source(f"s3://{BUCKET}/*/*.jsonl"))) == ["texts/a.jsonl"]
    assert names(list_source(source(f"s3://{BUCKET}/texts/**/*.txt"))) == ["deep/b.txt"]
    both = (f"s3://{BUCKET}/texts/*.jsonl", f"s3://{BUCKET}/texts2")
    assert names(list_source(source(both))) == [f"{BUCKET}/texts/a.jsonl", f"{BUCKET}/texts2/other.txt"]
    assert names(list_source(source(f"s3://{BUCKET}/texts", exclude=("deep/*",)))) == ["a.jsonl"]


def test_documents_and_what_is_recorded(texts: Any, tmp_path: Path) -> None:
    origin = source(f"s3://{BUCKET}/texts/*.jsonl", licence="MIT")
    documents = list(read_source(origin, BadRows("fail", tmp_path / "skipped.jsonl"), tmp_path))
    assert [tuple(document) for document in documents] == [
        ("one", "s", "a.jsonl#1", "MIT"),
        ("two", "s", "a.jsonl#2", "MIT"),
    ]
    (record,) = fetching.provenance(list_source(origin).remote, origin, tmp_path)
    assert (record["address"], record["bytes"], record["licence"]) == (f"s3://{BUCKET}/texts/a.jsonl", 32, "MIT")
    assert record["etag"] and record["modified"]


def test_every_look_sees_what_another_process_wrote(texts: Any, credentials: dict[str, str]) -> None:
    origin = source(f"s3://{BUCKET}/texts")
    before = source_state([origin])
    assert source_state([origin]) == before
    subprocess.run([sys.executable, "-c", WRITE], env={**os.environ, **credentials}, check=True)
    assert names(list_source(origin)) == ["a.jsonl", "b.jsonl", "deep/b.txt"]
    states = {before, source_state([origin])}
    for content in (b"wen", b"newer"):
        texts.pipe_file(f"{BUCKET}/texts/b.jsonl", content)
        states.add(source_state([origin]))
    texts.rm(f"{BUCKET}/texts/b.jsonl")
    states.add(source_state([origin]))
    assert len(states) == 4


def test_an_object_that_changes_is_refused(texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.sources.s3_files._CHUNK", 1 << 20)
    data = random.Random(0).randbytes(5 << 20)
    texts.pipe_file(f"{BUCKET}/texts/a.txt", data)
    (file,) = list_source(source(f"s3://{BUCKET}/texts/a.txt")).remote

    def overwrite(done: int) -> None:
        if done == 2 << 20:
            texts.pipe_file(f"{BUCKET}/texts/a.txt", data[::-1])

    with pytest.raises(SourceError, match=r"a\.txt changed since it was listed"):
        fetched(file, "s", tmp_path, overwrite)
    with pytest.raises(SourceError, match=r"a\.txt changed since it was listed"):
        fetched(file, "s", tmp_path)
    (file,) = list_source(source(f"s3://{BUCKET}/texts/a.txt")).remote
    assert fetched(file, "s", tmp_path).path.read_bytes() == data[::-1]


def test_an_object_continues_where_it_ended(
    texts: Any, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.sources.s3_files._CHUNK", 1 << 20)
    data = random.Random(0).randbytes(5 << 20)
    texts.pipe_file(f"{BUCKET}/texts/a.txt", data)
    (file,) = list_source(source(f"s3://{BUCKET}/texts/a.txt")).remote

    def expire(done: int) -> None:
        if done == 2 << 20:
            object_server.refuse = lambda method, path: True

    with pytest.raises(SourceError, match=r"the server refuses access \(.*renew the credentials"):
        fetched(file, "s", tmp_path, expire)
    object_server.reset()
    done: list[int] = []
    assert fetched(file, "s", tmp_path, done.append).path.read_bytes() == data
    assert done == [3 << 20, 4 << 20, 5 << 20]


def test_what_cannot_be_read(
    texts: Any, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "holds no file to read (there is none)" in refusal(f"s3://{BUCKET}/nothing", tmp_path)
    assert "does not exist" in refusal("s3://no-such-bucket/texts", tmp_path)
    object_server.refuse = lambda method, path: True
    assert "source s: s3://models/texts: the server refuses access" in refusal(f"s3://{BUCKET}/texts", tmp_path)
    object_server.reset()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "there are no credentials; set AWS_ACCESS_KEY_ID" in refusal(f"s3://{BUCKET}/texts", tmp_path)
