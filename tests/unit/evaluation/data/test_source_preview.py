"""Previews of sources whose files have to be fetched first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import hub_server
from tests.file_server import FileServer, serving
from tests.hub_server import COMMIT, DATASET
from training.evaluation.source_preview import preview_source
from training.specs.conversations import ConversationSource
from training.specs.preview import SourcePreviewRequest
from training.specs.raw_corpus import Source

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

SEA = "The ships sail on the sea for a day, and they come back in the evening."
PAGE = f"<html><body><article><p>{SEA}</p></article></body></html>"
CODE = b"""
from training.custom import document_source


@document_source
def lines(path):
    yield from path.read_text().splitlines()
"""
FILES = {
    "/a.html": PAGE.encode(),
    "/b.html": PAGE.encode(),
    "/log.x": b"one\ntwo\nthree",
    "/chats.jsonl": b'{"prompt": "a", "completion": "b"}\n' * 3,
}


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a preview fetched stays."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(dict(FILES)) as server:
        yield server


def shown(count: int = 1, **request: Any) -> list[tuple[str, str]]:
    preview = preview_source(SourcePreviewRequest(count=count, characters=1_000, **request))
    assert not preview.notes
    return [(row.title.partition(", ")[0], row.columns[0].pieces[0].text) for row in preview.rows]


def test_pages_of_the_web_of_which_only_the_first_is_fetched(server: FileServer) -> None:
    host = server.address.removeprefix("http://")
    source = Source(name="web", path=(f"{server.address}/a.html", f"{server.address}/b.html"))
    assert shown(text=source) == [(f"{host}/a.html", SEA)]
    assert [path for path, asked, _ in server.requests if not asked] == ["/a.html"]


def test_own_code_over_a_file_of_the_web(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(CODE)
    source = Source(name="log", path=f"{server.address}/log.x", function="lines")
    assert shown(2, text=source, code=tmp_path / "mine.py") == [("log.x#1", "one"), ("log.x#2", "two")]


def test_conversations_of_the_web(server: FileServer) -> None:
    source = ConversationSource(name="chats", path=f"{server.address}/chats.jsonl")
    ((title, text),) = shown(rows=source)
    assert (title, json.loads(text)) == ("chats.jsonl:1", {"prompt": "a", "completion": "b"})


def test_pages_in_a_dataset_of_the_hub_at_a_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.dumps({"text": PAGE}) + "\n" + json.dumps({"text": "<p>" + SEA}) + "\n"
    with hub_server.serving({COMMIT: {"train.jsonl": rows.encode()}}) as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        source = Source(name="s", dataset=DATASET, revision="main", text_format="html")
        assert shown(2, text=source) == [("train.jsonl#1", SEA), ("train.jsonl#2", SEA)]
