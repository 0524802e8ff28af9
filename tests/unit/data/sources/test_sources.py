"""Reading sources, above all bad ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard

from training.data.sources import bad_rows, readers
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import Document, read_source
from training.data.sources.source_state import source_state
from training.errors import SourceError
from training.specs.raw_corpus import Source


def source(**fields: Any) -> Source:
    return Source(name="s", **fields)


def read(base: Path, bad: BadRows | None = None, **fields: Any) -> list[Document]:
    with TemporaryDirectory() as folder:
        return list(
            read_source(source(**fields), bad or BadRows("fail", Path(folder, "skipped.jsonl")), Path(folder), base)
        )


def refusal(base: Path, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(base, **fields)
    return str(caught.value)


def left_out(base: Path, **fields: Any) -> dict[str, int]:
    left_out: Counter[str] = Counter()
    list(read_source(source(**fields), BadRows("fail", base.parent / "skipped.jsonl"), base.parent, base, left_out))
    return dict(left_out)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("format_", [".txt", ".text", ".md", ".markdown", ".rst", ".rst.txt", ".py", ".TXT"])
def test_a_plain_file_is_one_document(tmp_path: Path, packing: str, format_: str) -> None:
    text = "Grüße\nx = 1\n"
    (tmp_path / f"a{format_}{packing}").write_bytes(PACK[packing](text.encode()))
    assert read(tmp_path, path=".") == [Document(text, "s", f"a{format_}{packing}", None)]


@pytest.mark.parametrize("packing", PACK)
def test_each_line_of_jsonl_is_a_document(tmp_path: Path, packing: str) -> None:
    lines = "\n".join(json.dumps({"body": f"text {number}", "other": 1}) for number in range(3)) + "\n\n"
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACK[packing](lines.encode()))
    documents = read(tmp_path, path=f"a.jsonl{packing}", text_column="body")
    assert [(document.path, document.text) for document in documents] == [
        (f"a.jsonl{packing}#{number + 1}", f"text {number}") for number in range(3)
    ]


def test_zstd_frames_one_after_the_other(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(pack(b"one ") + pack(b"two " * 100_000) + pack(b"three"))
    assert read(tmp_path, path="a.txt.zst")[0].text == "one " + "two " * 100_000 + "three"


def test_rows_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(600)]}), tmp_path / "a.parquet")
    documents = read(tmp_path, path="a.parquet")
    assert len(documents) == 600
    assert documents[-1] == Document("row 599", "s", "a.parquet#600", None)


@pytest.mark.parametrize("packing", PACK)
def test_rows_of_csv(tmp_path: Path, packing: str) -> None:
    rows = b'\xef\xbb\xbfid,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,NA\r\n3,\r\n'
    (tmp_path / f"a.csv{packing}").write_bytes(PACK[packing](rows))
    assert [(document.path, document.text) for document in read(tmp_path, path=".")] == [
        (f"a.csv{packing}#1", 'two\r\nlines, "quoted"'),
        (f"a.csv{packing}#2", "NA"),
        (f"a.csv{packing}#3", ""),
    ]


def test_rows_of_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\tcommas, and a "quotation"\n')
    assert [document.text for document in read(tmp_path, path=".")] == ['commas, and a "quotation"']


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.jsonlines", "A.JSON", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_items_of_a_json_array(tmp_path: Path, name: str, indent: int | None) -> None:
    texts = [f"text {number} [{{,]" for number in range(20_000)]
    data = json.dumps([{"id": [number], "text": text} for number, text in enumerate(texts)], indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    documents = read(tmp_path, path=".")
    assert [document.text for document in documents] == texts
    assert documents[-1].path == f"{name}#20000"


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'{"text": "one"}', ["one"]),
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        (b'\xef\xbb\xbf \n[{"text": "one"}]', ["one"]),
        (b'{"text": "one"}{"text": "two"}', ["one", "two"]),
    ],
)
def test_objects_of_a_json_file(tmp_path: Path, data: bytes, texts: list[str]) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert [document.text for document in read(tmp_path, path=".")] == texts


def test_an_item_of_json_that_lies_across_the_parts_of_a_file(tmp_path: Path) -> None:
    texts = ["x" * 3_000_000, "y", "\u00e9" * 700_000]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False))
    assert [document.text for document in read(tmp_path, path=".")] == texts


def test_a_zstd_frame_with_a_long_window(tmp_path: Path) -> None:
    body = b"packed with zstd --long=31"
    header = bytes.fromhex("28B52FFD00") + b"\xa8"  # a window of 2^31 bytes
    (tmp_path / "a.txt.zst").write_bytes(header + (len(body) << 3 | 1).to_bytes(3, "little") + body)
    assert read(tmp_path, path="a.txt.zst")[0].text == body.decode()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([b"text"], pa.binary()),
        pa.array([b"text"], pa.large_binary()),
        pa.array([b"text"], pa.binary_view()),
        pa.array([b"text"], pa.binary(4)),
        pa.array(["text"], pa.string_view()),
        pa.array(["text"], pa.large_string()),
        pa.array(["text"]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_every_type_of_text_in_parquet(tmp_path: Path, array: pa.Array) -> None:
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path, path=".")] == ["text"]
    assert [document.text for document in read(tmp_path, dataset=".")] == ["text"]


def test_texts_of_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "text": ["one", "two"], "data": [{"text": "three"}, {"text": None}]})
    feather.write_feather(table, str(tmp_path / "a.feather"))
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    documents = read(tmp_path, path=".")
    assert [document.text for document in documents] == ["one", "two"] * 2
    assert documents[-1].path == "b.arrow#2"
    assert "b.arrow: row 2: 'data.text' is null" in refusal(tmp_path, path="b.arrow", text_column="data.text")
    assert "has no column 'body', only data.text, id, text" in refusal(tmp_path, path="b.arrow", text_column="body")


@pytest.mark.parametrize("damage", [b"ARROW1 no", b"no"])
def test_a_damaged_arrow_file(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(damage)
    assert "a.arrow: cannot be read" in refusal(tmp_path, path=".")


def test_an_arrow_file_with_offsets_beyond_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    batch = pa.RecordBatch.from_arrays([pa.array(["one", "two"])], ["text"])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    offsets = [b"".join(value.to_bytes(4, "little") for value in (0, 3, end)) for end in (6, 2**30)]
    data = path.read_bytes()
    assert data.count(offsets[0]) == 1
    path.write_bytes(data.replace(offsets[0], offsets[1]))
    assert "a.arrow: cannot be read" in refusal(tmp_path, path=".")


def test_a_field_of_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"data": {"text": "one"}, "data.text": "two"}\n{"data": {"text": "three"}}\n')
    pq.write_table(pa.table({"data": [{"text": "four", "id": 1}]}), tmp_path / "b.parquet")
    assert [document.text for document in read(tmp_path, path=".", text_column="data.text")] == ["two", "three", "four"]
    assert "a.jsonl:1: has no key 'text', only data.text" in refusal(tmp_path, path="a.jsonl")


@pytest.mark.parametrize("value", ["null", '{"text": null}'])
def test_an_object_that_is_not_there_is_no_text(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"data": {value}}}\n')
    pq.write_table(pa.table({"data": [json.loads(value), {"text": "x"}]}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert "'data.text' is null" in refusal(tmp_path, path=name, text_column="data.text")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"# -*- coding: iso-8859-1 -*-\n# caf\xe9\n", "# -*- coding: iso-8859-1 -*-\n# caf\u00e9\n"),
        (b"#!/usr/bin/python\n# coding: cp1252\n# \x80\n", "#!/usr/bin/python\n# coding: cp1252\n# \u20ac\n"),
        (b"# coding: utf-16\nx = 1\n", "# coding: utf-16\nx = 1\n"),
        (b"# coding: hex\nff\n", "# coding: hex\nff\n"),
        (b"# coding: unicode_escape\n\\u0041\n", "# coding: unicode_escape\n\\u0041\n"),
    ],
)
def test_the_encoding_that_a_python_file_declares(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.PY").write_bytes(data)
    assert [document.text for document in read(tmp_path, path=".")] == [text]


def test_files_that_give_no_document_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n")
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "d.txt").write_text("three")
    assert left_out(tmp_path, path=".") == {"without a row of text": 2}
    assert left_out(tmp_path, path=".", max_documents=1) == {"without a row of text": 2, "beyond max_documents": 1}


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
    documents = read(tmp_path, stdlib=True, include=("asyncio/*", "textwrap.py", "test/*", "idlelib/*"))
    paths = {document.path for document in documents}
    assert {"asyncio/queues.py", "textwrap.py", "idlelib/run.py"} <= paths
    assert not any(part in ("test", "tests", "idle_test") for path in paths for part in path.split("/"))
    assert {document.licence for document in documents} == {"PSF-2.0"}


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "y"}')
    assert [document.text for document in read(tmp_path, path=".")] == ["x", "y"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere does not exist; correct its path"),
        ("no*.txt", "no file matches"),
        ("picture.png", "has no format that can be read: .txt, .text, .md"),
        ("empty", "empty holds no file to read (there is none)"),
        (".", "holds no file to read (left out: 1 .png)"),
    ],
)
def test_nothing_to_read(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert message in refusal(tmp_path, path=path)


def test_globs_that_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "left out: 1 excluded" in refusal(tmp_path, path=".", include=("*.md",))


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.txt", b"good\nb\xffd", "a.txt: line 2 is not UTF-8 (byte 0xff)"),
    ("a.txt", b"a\0b", "a.txt: holds NUL"),
    ("a.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-10], "a.txt.gz: cannot be read"),
    ("a.txt.gz", b"not packed", "a.txt.gz: cannot be read"),
    ("a.txt.zst", zstandard.ZstdCompressor().compress(b"text " * 1000)[:-3], "ends in the middle of a frame"),
    ("a.txt.zst", b"not packed", "a.txt.zst: cannot be read"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: is not JSON"),
    ("a.jsonl", b'{"text": "x"}\n["y"]', "a.jsonl:2: is a JSON list"),
    ("a.jsonl", b'["x"]', "a.jsonl: item 1: is a JSON str"),
    ("a.jsonl", b'{"body": "x", "author": "y"}', "a.jsonl:1: has no key 'text', only author, body"),
    ("a.jsonl", b'{"text": null}', "a.jsonl:1: 'text' is null"),
    ("a.jsonl", b'{"text": 7}', "a.jsonl:1: 'text' is int"),
    ("a.jsonl", b'{"text": "a\\u0000b"}', "a.jsonl:1: holds NUL"),
    ("a.jsonl", b'{"text": "a\\ud800b"}', "a.jsonl:1: holds half of a surrogate pair"),
    ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: is not UTF-8"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl: item 1: is not JSON"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl:1: is not JSON"),
    ("a.json", b'[{"text": "x"}, {"text"', "a.json: item 2: is not JSON"),
    ("a.json", b'[{"text": "x"}', "a.json: item 2: is not JSON (the file ends within the array)"),
    ("a.json", b'[{"text": "x"} {"text": "y"}]', "item 2: is not JSON (expecting ',' or ']' after the item)"),
    ("a.json", b'[{"text": "x"}] x', "item 2: is not JSON (something follows the end of the array)"),
    ("a.json", b'[{"text": "caf\xe9"}]', "a.json: what follows item 0 is not UTF-8 (byte 0xe9)"),
    ("a.json", b'{"rows": [{"text": "x"}]}', "a.json: item 1: has no key 'text', only rows"),
    ("a.csv", b"id;text\n1;x\n", "a.csv: has no column 'text', only id;text"),
    ("a.csv", b"text,text\nx,y\n", "a.csv: has several columns 'text'"),
    ("a.csv", b"id,text\n1,a comma, unquoted\n", "a.csv:2: has 3 values, and the first line 2"),
    ("a.csv", b'id,text\n1,"never closed\n2,y\n', "a.csv:3: is not CSV (unexpected end of data)"),
    ("a.csv", "id,text\n1,x\n".encode("utf-16"), r"\udcff\udcfei\x00d\x00"),
    ("a.jsonl", b'{"\\u001b[2J": 1}', r"has no key 'text', only \x1b[2J"),
    ("a.csv", b"id,text\n1,caf\xe9\n", "a.csv:2: 'text' is not UTF-8"),
    ("a.csv", b"id,text\n1,a\0b\n", "a.csv:2: holds NUL"),
    ("a.txt.bz2", bz2.compress(b"good") + b"rubbish", "a.txt.bz2: cannot be read"),
    ("a.txt.bz2", bz2.compress(b"text " * 1000)[:-3], "ends in the middle of a frame"),
    ("a.txt.xz", lzma.compress(b"good") + b"rubbish", "a.txt.xz: cannot be read"),
    ("a.txt.xz", lzma.compress(b"text " * 1000)[:-3], "ends in the middle of a frame"),
    ("a.py", b"# coding: utf-16\nx = '\xe9'\n", "a.py: line 2 is not UTF-8"),
    ("a.parquet", b"PAR1 no", "a.parquet: cannot be read"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_bad_files_are_refused_or_skipped(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.txt").write_text("good")
    text = refusal(tmp_path, path=".")
    assert message in text
    assert "on_bad_row: skip" in text
    bad = BadRows("skip", tmp_path.parent / "skipped.jsonl")
    assert read(tmp_path, bad, path=".")[-1].text == "good"
    assert bad.count == 1
    assert message in bad.listed[0]
    assert len((tmp_path.parent / "skipped.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.table({"body": ["x"], "author": ["y"]}), "has no column 'text', only author, body"),
        (pa.table({"text": [1]}), "the column 'text' holds int64, not text"),
        (pa.table({"data": [{"text": "x"}]}), "has no column 'text', only data.text"),
        (pa.table({"text": [b"x", b"caf\xe9"]}), "a.parquet: row 2: 'text' is not UTF-8"),
        (pa.table({"text": ["x", None]}), "a.parquet: row 2: 'text' is null"),
        (pa.table({"text": ["x", "a\0"]}), "a.parquet: row 2: holds NUL"),
    ],
)
def test_bad_parquet(tmp_path: Path, column: pa.Table, message: str) -> None:
    pq.write_table(column, tmp_path / "a.parquet")
    assert message in refusal(tmp_path, path="a.parquet")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert f"{tmp_path}/a.txt: No such file" in refusal(tmp_path, path=".")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_too_long_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in (readers, bad_rows):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 2**20)
    data = b"x" * (2**20 + 1)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "more than 1 MB" in refusal(tmp_path, path=name)


def test_a_dataset_in_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), folder / "train.parquet")
    documents = read(tmp_path, dataset="set", licence="CC0-1.0", max_documents=2)
    assert documents == [
        Document("one", "s", "train.parquet#1", "CC0-1.0"),
        Document("two", "s", "train.parquet#2", "CC0-1.0"),
    ]
    assert "no column 'body', only text" in refusal(tmp_path, dataset="set", text_column="body")
    assert "has no split test, only train" in refusal(tmp_path, dataset="set", split="test")


def test_files_of_a_local_dataset_that_its_split_does_not_name_are_counted(tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / name)
    (tmp_path / "notes.pdf").write_bytes(b"x")
    assert left_out(tmp_path, dataset=".") == {".pdf": 1, "not of the split train": 1}


def test_links_of_a_download_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "blob")
    (snapshot / "train.parquet").symlink_to("../../blob")
    for fields in ({"path": "snapshots/1"}, {"path": "snapshots/1/*.parquet"}, {"dataset": "snapshots/1"}):
        assert "set follow_links: true" in refusal(tmp_path, **fields)
        assert [document.text for document in read(tmp_path, follow_links=True, **fields)] == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.html"])
def test_a_pointer_of_git_lfs_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n")
    assert f"{name}: is a pointer of Git LFS in place of the text; run git lfs pull" in refusal(tmp_path, path=".")


def test_links_of_dvc(tmp_path: Path) -> None:
    """`dvc checkout` with cache.type symlink: a link for each file, to a name without suffix in a hidden folder."""
    cached = tmp_path / ".dvc" / "cache" / "files" / "md5" / "0a" / "1b2c"
    cached.parent.mkdir(parents=True)
    cached.write_text('{"text": "one"}\n')
    cached.chmod(0o444)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.jsonl").symlink_to(cached)
    (tmp_path / "data" / "deep.dvc").write_text("outs: []")
    assert "set follow_links: true" in refusal(tmp_path, path="data")
    assert read(tmp_path, path="data", follow_links=True) == [Document("one", "s", "deep/a.jsonl#1", None)]
    assert left_out(tmp_path, path="data", follow_links=True) == {".dvc": 1}

    first = source_state([source(path="data", follow_links=True)], tmp_path)
    other = cached.with_name("3d4e")
    other.write_text('{"text": "two"}\n')
    (tmp_path / "data" / "deep" / "a.jsonl").unlink()
    (tmp_path / "data" / "deep" / "a.jsonl").symlink_to(other)
    assert source_state([source(path="data", follow_links=True)], tmp_path) != first
    cached.unlink()
    other.unlink()
    assert "a.jsonl: No such file or directory; repair it or exclude it" in refusal(
        tmp_path, path="data", follow_links=True
    )


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_a_dataset_of_the_hub_needs_a_commit(tmp_path: Path, revision: str | None) -> None:
    assert "revision must be the commit" in refusal(tmp_path, dataset="some/where", revision=revision)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')


def _overwrite(path: Path) -> None:
    """Same size, and the time of change is set back."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"one", b"eno"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    """Another file of the same size and time is moved to its place."""
    before, other = path.stat(), path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [_grow, _overwrite, _replace, Path.unlink])
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_a_file_that_changes_half_way_stops_the_job(
    tmp_path: Path, change: Callable[[Path], None], limit: int | None, on_bad_row: Literal["fail", "skip"]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 3)
    bad = BadRows(on_bad_row, tmp_path / "skipped")
    documents = read_source(source(path=str(path), max_documents=limit), bad, tmp_path)
    assert next(documents).text == "one"
    change(path)
    with pytest.raises(SourceError, match=r"a\.jsonl: .*while it was read; start again"):
        list(documents)


def test_a_file_that_goes_before_it_is_read_is_no_bad_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"text") if name.endswith("gz") else b"text")
    bad = BadRows("skip", tmp_path.parent / "skipped")
    documents = read_source(source(path=str(tmp_path)), bad, tmp_path)
    assert next(documents).text == "text"
    (tmp_path / "b.txt.gz").write_bytes(b"half")
    with pytest.raises(SourceError, match="it changed while it was read"):
        list(documents)
    assert bad.count <= 1
