"""Pages of HTML, and functions of a recipe's own code, over files that lie on a web server."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.file_server import FileServer, serving
from tests.unit.data.tokens.parts import context_of
from training.data.custom_code import CustomCode
from training.data.sources import reading
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import read_source
from training.data.sources.source_state import describe_source, source_state
from training.data.tables import read_rows
from training.errors import RecipeError
from training.job import parts
from training.specs.execution import Execution
from training.specs.raw_corpus import RawCorpusSection, Source
from training.stages import raw_corpus

SEA = "The ships sail on the sea for a day, and they come back in the evening."
TICKETS = b"<all><ticket licence='MIT'>first</ticket><ticket>second</ticket></all>"
CODE = b"""
import xml.etree.ElementTree as ElementTree

from training.custom import Document, document_source


@document_source
def tickets(path):
    assert path.suffix == ".xml"
    for ticket in ElementTree.parse(path).iter("ticket"):
        yield Document(ticket.text, licence=ticket.get("licence"))


@document_source
def alone():
    yield "from nowhere"
"""


def page(text: str, charset: str = "utf-8") -> bytes:
    markup = f"<html><head><meta charset='{charset}'></head><body><article><p>{text}</p></article></body></html>"
    return markup.encode(charset)


PAGES = "".join(json.dumps({"body": page(f"{SEA} {number}").decode()}) + "\n" for number in range(40)).encode()
FILES = {
    "/web/a.html": page(f"Grüße. {SEA}", "cp1252"),
    "/web/b.html": b"<footer>Privacy</footer>",
    "/pages.jsonl": PAGES,
    "/tickets.xml": TICKETS,
    "/broken.xml": b"<all>",
}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(dict(FILES)) as server:
        yield server


def build(root: Path, sources: list[dict[str, Any]], threads: int = 1) -> dict[str, float]:
    (root.parent / "mine.py").write_bytes(CODE)
    context = context_of(root, "raw_corpus", RawCorpusSection.model_validate({"sources": sources}), {})
    files = {"code": root.parent / "mine.py"}
    return dict(raw_corpus.run(replace(context, files=files, execution=Execution(threads=threads))).metrics)


def documents(root: Path) -> list[tuple[str, str, str, str]]:
    return [
        (row["source"], row["path"], row["text"], row["licence"])
        for path in sorted(root.glob("documents/*.parquet"))
        for row in read_rows(path)
    ]


def test_pages_and_own_code_over_files_of_the_web(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_corpus, "_PART_BYTES", 3_000)
    monkeypatch.setattr(parts, "_WORTH_A_POOL", 0)
    web = server.address
    sources: list[dict[str, Any]] = [
        {"name": "web", "path": [f"{web}/web/a.html", f"{web}/web/b.html"]},
        {"name": "rows", "path": f"{web}/pages.jsonl", "text_column": "body", "text_format": "html"},
        {"name": "tickets", "path": f"{web}/tickets.xml", "function": "tickets", "licence": "CC0-1.0"},
        {"name": "alone", "function": "alone"},
    ]
    metrics = build(tmp_path / "out", sources, threads=2)
    host = web.removeprefix("http://")
    assert documents(tmp_path / "out") == [
        ("web", f"{host}/web/a.html", f"Grüße. {SEA}", None),
        *(("rows", f"pages.jsonl#{number + 1}", f"{SEA} {number}", None) for number in range(40)),
        ("tickets", "tickets.xml#1", "first", "MIT"),
        ("tickets", "tickets.xml#2", "second", "CC0-1.0"),
        ("alone", "alone#1", "from nowhere", None),
    ]
    assert metrics["left_out_files"] == 1
    card = (tmp_path / "out" / "report" / "card.md").read_text()
    assert f"- web/{host}/web/b.html: HTML with text that was not extracted" in card and "Fetched: **4** files" in card


def test_a_function_that_fails_is_named_with_the_name_of_the_source(server: FileServer, tmp_path: Path) -> None:
    sources = [{"name": "tickets", "path": f"{server.address}/broken.xml", "function": "tickets"}]
    with pytest.raises(RecipeError, match=r"mine\.py:10: tickets raised ParseError at tickets/broken\.xml#1: no elem"):
        build(tmp_path / "out", sources)


def test_the_state_of_a_function_follows_the_files_that_it_gets(server: FileServer) -> None:
    sources = [
        Source(name="tickets", path=f"{server.address}/tickets.xml", function="tickets"),
        Source(name="alone", function="alone"),
    ]
    first = source_state(sources)
    assert source_state(sources) == first
    server.files["/tickets.xml"] = TICKETS.replace(b"first", b"FIRST")
    assert source_state(sources) != first
    assert describe_source(sources[0]) == "tickets: 1 file, 0.1 kB"
    assert describe_source(sources[1]) == "alone: what a function yields; what it reads is not watched"


def test_a_disk_that_is_full_is_no_bad_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reading, "fetched", full)
    bad, left_out = BadRows("skip", tmp_path / "skipped.jsonl"), Counter[str]()
    source = Source(name="t", path=f"{server.address}/tickets.xml", function="tickets", max_documents=1)
    with pytest.raises(OSError, match="No space left"):
        list(read_source(source, bad, tmp_path, left_out=left_out, code=CustomCode("mine.py", CODE)))
    assert not bad.count and not left_out
