"""Stages whose sources lie on a web server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.file_server import FileServer, serving
from tests.unit.data.tokens.parts import context_of
from training.data.sources import fetching
from training.data.tables import read_rows
from training.errors import SourceError
from training.job import parts
from training.specs.conversations import ConversationsSection
from training.specs.execution import Execution
from training.specs.raw_corpus import RawCorpusSection
from training.stages import conversations, raw_corpus

LINES = "".join(json.dumps({"text": f"document {number} " * 50}) + "\n" for number in range(2_000)).encode()
FEW = b"".join(LINES.splitlines(keepends=True)[:7])
CHATS = "".join(
    json.dumps({"prompt": f"question {number}", "completion": "yes"}) + "\n" for number in range(5)
).encode()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({"/a.jsonl": LINES, "/b.jsonl": FEW, "/c.jsonl": CHATS}) as server:
        yield server


def build(out: Path, path: Any, work: Path | None = None, threads: int = 1, **options: Any) -> dict[str, float]:
    source = {"name": "web", "path": path, "licence": "MIT", **options}
    section = RawCorpusSection.model_validate({"sources": (source,)})
    context = context_of(out, "raw_corpus", section, {})
    return dict(raw_corpus.run(replace(context, work=work or out, execution=Execution(threads=threads))).metrics)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("documents/*.parquet")) for row in read_rows(path)]


def test_a_corpus_of_the_web_is_that_of_the_same_files(server: FileServer, tmp_path: Path) -> None:
    address = f"{server.address}/a.jsonl"
    assert build(tmp_path / "web", address)["documents"] == 2_000
    (tmp_path / "a.jsonl").write_bytes(LINES)
    build(tmp_path / "here", str(tmp_path / "a.jsonl"))
    for path in (tmp_path / "here" / "documents").iterdir():
        assert path.read_bytes() == (tmp_path / "web" / "documents" / path.name).read_bytes()

    (record,) = map(json.loads, (tmp_path / "web" / "report" / "remote_files.jsonl").read_text().splitlines())
    assert record == {
        "source": "web",
        "licence": "MIT",
        "name": "a.jsonl",
        "address": address,
        "etag": server.etag("/a.jsonl"),
        "modified": "",
        "bytes": len(LINES),
        "sha256": hashlib.sha256(LINES).hexdigest(),
    }
    card = (tmp_path / "web" / "report" / "card.md").read_text()
    assert "Fetched: **1** files" in card and f"| web | {address} | {len(LINES)} |" in card and "| MIT |" in card
    assert not (tmp_path / "here" / "report" / "remote_files.jsonl").exists()


def test_a_job_that_starts_again_fetches_nothing_twice(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_WAITS", ())
    addresses = (f"{server.address}/a.jsonl", f"{server.address}/b.jsonl")
    monkeypatch.setattr(fetching, "grouped", lambda files: ([file] for file in files))
    server.answers = [lambda request: request.whole(), lambda request: request.whole(5)]
    with pytest.raises(SourceError, match=r"b.jsonl: 0 tries brought nothing new"):
        build(tmp_path / "web", addresses)
    asked = len(server.requests)
    assert build(tmp_path / "again", addresses, tmp_path / "web")["documents"] == 2_007
    assert [(path, ranged) for path, ranged, _ in server.requests[asked:]] == [
        ("/a.jsonl", "bytes=0-0"),
        ("/b.jsonl", "bytes=0-0"),
        ("/b.jsonl", "bytes=5-"),
    ]


def test_a_large_file_of_lines_is_several_parts(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{server.address}/a.jsonl"
    build(tmp_path / "whole", address)
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 300_000)
    monkeypatch.setattr(parts, "_WORTH_A_POOL", 0)
    for threads in (1, 2):
        assert build(tmp_path / f"cut-{threads}", address, threads=threads)["documents"] == 2_000
    assert rows(tmp_path / "cut-1") == rows(tmp_path / "whole")
    assert len((tmp_path / "cut-1" / "report" / "remote_files.jsonl").read_text().splitlines()) == 1

    steps = [path.name for path in sorted((tmp_path / "cut-1" / "parts").iterdir())]
    assert steps == ["count_lines_web", "fetch_web", "read_web", "shared"]
    files = [sorted((tmp_path / f"cut-{threads}" / "documents").iterdir()) for threads in (1, 2)]
    assert len(files[0]) == len(files[1]) == 5
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_of_a_source_with_a_limit_only_what_is_read_is_fetched(server: FileServer, tmp_path: Path) -> None:
    addresses = (f"{server.address}/a.jsonl", f"{server.address}/b.jsonl")
    metrics = build(tmp_path / "web", addresses, max_documents=5)
    assert (metrics["documents"], metrics["left_out_files"]) == (5, 1)
    assert [path for path, ranged, _ in server.requests if not ranged] == ["/a.jsonl"]
    assert len((tmp_path / "web" / "report" / "remote_files.jsonl").read_text().splitlines()) == 1


def test_conversations_of_the_web(server: FileServer, tmp_path: Path) -> None:
    source = {"name": "web", "path": f"{server.address}/c.jsonl", "licence": "MIT"}
    section = ConversationsSection.model_validate({"sources": (source,), "heldout": 0.0})
    conversations.run(context_of(tmp_path / "out", "conversations", section, {}))
    assert len(list(read_rows(tmp_path / "out" / "train.parquet"))) == 5
    assert json.loads((tmp_path / "out" / "report" / "remote_files.jsonl").read_text())["source"] == "web"
    assert "Fetched: **1** files" in (tmp_path / "out" / "report" / "card.md").read_text()
