"""Datasets of the hub by file, read from a local server that answers as the hub does."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from tests.hub_server import COMMIT, DATASET, LARGE, NEXT, HubServer, serving
from training.data.sources.bad_rows import BadRows
from training.data.sources.dataset_files import files_of
from training.data.sources.fetching import fetched, provenance
from training.data.sources.reading import read_source
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_state import describe_source, source_state, with_commits
from training.errors import SourceError
from training.specs.raw_corpus import RawCorpusSection, Source


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: "data/part-*"}
  - {split: test, path: "other/*"}
---
"""
FILES = {
    "README.md": CARD,
    ".gitattributes": b"x",
    "data/part-0.parquet": parquet("one", "two" * 1000, *map(str, range(LARGE))),
    "data/part-1.parquet": parquet("three"),
    "other/test.parquet": parquet("held out"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving({COMMIT: dict(FILES), NEXT: {"train.jsonl": lines("newer")}}) as server:
        server.connect(monkeypatch, tmp_path / "cache")
        yield server


def source(**fields: Any) -> Source:
    return Source(**{"name": "s", "dataset": DATASET, "revision": COMMIT, **fields})


def listed(origin: Source, left_out: Counter[str] | None = None) -> list[RemoteFile]:
    files = files_of(origin, Counter() if left_out is None else left_out)
    return [file for file in files if isinstance(file, RemoteFile)]


def read(folder: Path, **fields: Any) -> list[tuple[str, str]]:
    documents = read_source(source(**fields), BadRows("fail", folder / "skipped.jsonl"), folder)
    return [(document.path, document.text) for document in documents]


def refusal(folder: Path, **fields: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, **fields)
    return str(caught.value)


def test_each_file_of_the_split_is_a_part(hub: HubServer, tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    files = listed(source(), left_out)
    assert [file.name for file in files] == ["data/part-0.parquet", "data/part-1.parquet"]
    assert left_out == {"not of the split train": 2, "hidden": 1}
    assert not [path for method, path in hub.asked if "/resolve/" in path and "README" not in path]
    assert read(tmp_path) == [
        ("data/part-0.parquet#1", "one"),
        ("data/part-0.parquet#2", "two" * 1000),
        *((f"data/part-0.parquet#{number + 3}", str(number)) for number in range(LARGE)),
        ("data/part-1.parquet#1", "three"),
    ]
    assert read(tmp_path, split="test") == [("other/test.parquet#1", "held out")]
    assert read(tmp_path, exclude=("*-0.parquet",)) == [("data/part-1.parquet#1", "three")]


def test_what_is_recorded(hub: HubServer, tmp_path: Path) -> None:
    origin = source(licence="CC0-1.0")
    files = listed(origin)
    here = fetched(files[1], "s", tmp_path)
    (record,) = provenance(files, origin, tmp_path)
    assert record["address"] == f"hf://datasets/{DATASET}@{COMMIT}/data/part-1.parquet"
    assert (record["bytes"], record["licence"], record["etag"]) == (here.bytes, "CC0-1.0", files[1].etag)


def test_a_limit_fetches_the_first_files_alone(hub: HubServer, tmp_path: Path) -> None:
    assert read(tmp_path, max_documents=1) == [("data/part-0.parquet#1", "one")]
    assert not [path for _, path in hub.asked if path.endswith("part-1.parquet")]


def test_what_was_read_once_is_read_without_a_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    before = read(tmp_path / "a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert read(tmp_path / "b") == before
    assert "the hub does not give" in refusal(tmp_path, revision=NEXT)
    assert hub.asked == []


def test_an_incomplete_cache_is_no_dataset(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(listed(source())[0], "s", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(tmp_path)
    assert f"the hub does not give hf://datasets/{DATASET}@{COMMIT}/data/part-1.parquet" in message


@pytest.mark.parametrize("name", ["data/part-0.parquet", "data/part-1.parquet"])
def test_bytes_that_the_hub_does_not_list_are_refused(hub: HubServer, tmp_path: Path, name: str) -> None:
    files = {file.name: file for file in listed(source())}
    data = hub.files[COMMIT][name]
    hub.files[COMMIT][name] = data[:20] + bytes([data[20] ^ 1]) + data[21:]
    with pytest.raises(SourceError, match="does not hold the bytes that the hub lists for data/part"):
        fetched(files[name], "s", tmp_path)


def test_a_name_that_can_move_is_looked_up_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = source(revision="main")
    section = RawCorpusSection(sources=(origin, Source(name="t", path="texts")))
    states = [source_state([origin])]
    assert states[0] == source_state([source()]) and describe_source(origin).endswith(f"at {COMMIT[:12]}")
    pinned = with_commits(section)
    assert [getattr(source, "revision", None) for source in pinned.sources] == [COMMIT, None]

    hub.main = NEXT
    assert source_state([origin]) != states[0]
    asked = len(hub.asked)
    assert with_commits(pinned) == pinned and len(hub.asked) == asked
    assert "revision must be the commit" in refusal(tmp_path, revision="main")  # a job is given a commit

    hub.status = 401
    with pytest.raises(SourceError, match=r"the hub does not give the revision main .*401\); check its name"):
        source_state([origin])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="revision must be the commit"):
        source_state([origin])
    reference = tmp_path / "cache" / "datasets--somebody--texts" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    assert source_state([origin]) == states[0]


def test_what_is_no_table_of_text(hub: HubServer, tmp_path: Path) -> None:
    hub.files["a" * 40] = {"train.png": b"x"}
    assert "holds imagefolder files, and Gatehouse reads parquet" in refusal(tmp_path, revision="a" * 40)
    hub.files["b" * 40] = {"README.md": CARD.replace(b"data/part-*", b"/etc/passwd")}
    assert "cannot be read" in refusal(tmp_path, revision="b" * 40)
    card = CARD.replace(b"  data_files", b'  sep: ";"\n  skiprows: 1\n  data_files')
    csv = {"data/part-0.csv": b"text\none\n", "other/a.csv": b"text\ntwo\n"}
    hub.files["d" * 40] = {"README.md": card, **csv}
    assert "sets sep, skiprows, and its files are read without it" in refusal(tmp_path, revision="d" * 40)
    hub.files["e" * 40] = {"README.md": CARD, **csv}
    assert read(tmp_path, revision="e" * 40) == [("data/part-0.csv#1", "one")]
    hub.files["c" * 40] = {"../train.jsonl": lines("x")}
    assert "the hub lists the file '../train.jsonl'" in refusal(tmp_path, revision="c" * 40)
    assert "has no split dev, only test, train" in refusal(tmp_path, split="dev")
