"""Reading sources, above all bad ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from training.data import sources
from training.data.sources import BadRows, Document, read_source
from training.errors import SourceError
from training.specs.raw_corpus import Source


def source(**fields: Any) -> Source:
    return Source(name="s", **fields)


def read(base: Path, bad: BadRows | None = None, **fields: Any) -> list[Document]:
    with TemporaryDirectory() as folder:
        return list(read_source(source(**fields), bad or BadRows("fail", Path(folder, "skipped.jsonl")), base))


def refusal(base: Path, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(base, **fields)
    return str(caught.value)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("format_", [".txt", ".md", ".py"])
def test_a_plain_file_is_one_document(tmp_path: Path, packing: str, format_: str) -> None:
    text = "Grüße\nx = 1\n"
    (tmp_path / f"a{format_}{packing}").write_bytes(PACK[packing](text.encode()))
    assert read(tmp_path, path=".") == [Document(text, "s", f"a{format_}{packing}", None)]


@pytest.mark.parametrize("packing", PACK)
def test_each_line_of_jsonl_is_a_document(tmp_path: Path, packing: str) -> None:
    lines = "\n".join(json.dumps({"body": f"text {number}", "other": 1}) for number in range(3)) + "\n\n"
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACK[packing](lines.encode()))
    found = read(tmp_path, path=f"a.jsonl{packing}", text_column="body")
    assert [(document.path, document.text) for document in found] == [
        (f"a.jsonl{packing}#{number + 1}", f"text {number}") for number in range(3)]


def test_zstd_frames_one_after_the_other(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(pack(b"one ") + pack(b"two " * 100_000) + pack(b"three"))
    assert read(tmp_path, path="a.txt.zst")[0].text == "one " + "two " * 100_000 + "three"


def test_rows_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(600)]}), tmp_path / "a.parquet")
    found = read(tmp_path, path="a.parquet")
    assert len(found) == 600
    assert found[-1] == Document("row 599", "s", "a.parquet#600", None)


def test_files_come_in_the_order_of_names_and_hidden_ones_never(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", ".git/x.txt", "a/.hidden.txt", "c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [document.path for document in read(tmp_path, path=".")] == ["a/z.txt", "b.txt"]


def test_globs_and_the_limit(tmp_path: Path) -> None:
    for name in ("a/one.txt", "a/two.txt", "b/one.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [document.path for document in read(tmp_path, path=".", include=("a/*",))] == ["a/one.txt", "a/two.txt"]
    assert [document.path for document in read(tmp_path, path=".", exclude=("**/one.txt",))] == ["a/two.txt"]
    assert [document.path for document in read(tmp_path, path="*/one.txt")] == ["a/one.txt", "b/one.txt"]
    assert len(read(tmp_path, path=".", max_documents=2)) == 2


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEXTS", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    assert read(elsewhere, path="~/a.txt") == read(elsewhere, path="$TEXTS/a.txt")
    monkeypatch.delenv("TEXTS")
    assert "environment variable TEXTS is not set" in refusal(elsewhere, path="${TEXTS}/a.txt")


def test_the_standard_library_without_its_tests(tmp_path: Path) -> None:
    found = read(tmp_path, stdlib=True, include=("asyncio/*", "textwrap.py", "test/*", "idlelib/*"))
    paths = {document.path for document in found}
    assert {"asyncio/queues.py", "textwrap.py", "idlelib/run.py"} <= paths
    assert not any(part in ("test", "tests", "idle_test") for path in paths for part in path.split("/"))
    assert {document.licence for document in found} == {"PSF-2.0"}


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "y"}')
    assert [document.text for document in read(tmp_path, path=".")] == ["x", "y"]


@pytest.mark.parametrize(("path", "message"), [
    ("nowhere", "nowhere does not exist; correct its path"),
    ("no*.txt", "no file matches"),
    ("picture.png", "has no format that can be read: .txt, .md, .py, .jsonl, .parquet"),
    ("empty", "holds no file to read"),
])
def test_nothing_to_read(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert message in refusal(tmp_path, path=path)


def test_globs_that_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "include/exclude left none" in refusal(tmp_path, path=".", include=("*.md",))


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.txt", b"good\nb\xffd", "a.txt: line 2 is not UTF-8 (byte 0xff)"),
    ("a.txt", b"a\0b", "a.txt: holds NUL"),
    ("a.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-10], "a.txt.gz: cannot be read"),
    ("a.txt.gz", b"not packed", "a.txt.gz: cannot be read"),
    ("a.txt.zst", zstandard.ZstdCompressor().compress(b"text " * 1000)[:-3], "ends in the middle of a zstd frame"),
    ("a.txt.zst", b"not packed", "a.txt.zst: cannot be read"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: is not JSON"),
    ("a.jsonl", b'["x"]', "a.jsonl:1: is a JSON list"),
    ("a.jsonl", b'{"body": "x", "author": "y"}', "a.jsonl:1: has no key 'text', only author, body"),
    ("a.jsonl", b'{"text": null}', "a.jsonl:1: 'text' is null"),
    ("a.jsonl", b'{"text": 7}', "a.jsonl:1: 'text' is int"),
    ("a.jsonl", b'{"text": "a\\u0000b"}', "a.jsonl:1: holds NUL"),
    ("a.jsonl", b'{"text": "a\\ud800b"}', "a.jsonl:1: holds half of a surrogate pair"),
    ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: is not UTF-8"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is not JSON"),
    ("a.parquet", b"PAR1 no", "a.parquet: cannot be read"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_bad_files_are_refused_or_skipped(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.txt").write_text("good")
    found = refusal(tmp_path, path=".")
    assert message in found
    assert "on_bad_row: skip" in found
    bad = BadRows("skip", tmp_path.parent / "skipped.jsonl")
    assert read(tmp_path, bad, path=".")[-1].text == "good"
    assert bad.count == 1
    assert message in bad.listed[0]
    assert len((tmp_path.parent / "skipped.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("column", "message"), [
    (pa.table({"body": ["x"], "author": ["y"]}), "has no column 'text', only author, body"),
    (pa.table({"text": [1]}), "the column 'text' holds int64, not text"),
    (pa.table({"text": ["x", None]}), "a.parquet: row 2: 'text' is null"),
    (pa.table({"text": ["x", "a\0"]}), "a.parquet: row 2: holds NUL"),
])
def test_bad_parquet(tmp_path: Path, column: pa.Table, message: str) -> None:
    pq.write_table(column, tmp_path / "a.parquet")
    assert message in refusal(tmp_path, path="a.parquet")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert f"{tmp_path}/a.txt: No such file" in refusal(tmp_path, path=".")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_too_long_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 2**20)
    data = b"x" * (2**20 + 1)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "more than 1 MB" in refusal(tmp_path, path=name)


def test_a_dataset_in_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), folder / "train.parquet")
    found = read(tmp_path, dataset="set", licence="CC0-1.0", max_documents=2)
    assert found == [Document("one", "s", "train#1", "CC0-1.0"), Document("two", "s", "train#2", "CC0-1.0")]
    assert "no column 'body', only text" in refusal(tmp_path, dataset="set", text_column="body")
    assert "cannot be read" in refusal(tmp_path, dataset="set", split="test")


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_a_dataset_of_the_hub_needs_a_commit(tmp_path: Path, revision: str | None) -> None:
    assert "revision must be the commit" in refusal(tmp_path, dataset="some/where", revision=revision)
