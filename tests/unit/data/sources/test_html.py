"""Pages of HTML as documents: what is read, what is lost and counted, and that a page cannot take everything."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data.sources.test_sources import left_out, read, refusal
from training.data.sources import html_pages
from training.data.sources.bad_rows import BadRows
from training.data.sources.html_pages import HtmlPages
from training.data.sources.reading import read_source
from training.errors import GatehouseError
from training.specs.raw_corpus import RawCorpusSection, Source

SEA = "The ships sail on the sea for a day, and they come back in the evening."
HILL = "The road goes up the hill, where an old house looks over the fields."


def page(*paragraphs: str, head: str = "") -> str:
    body = "".join(f"<p>{paragraph}</p>\n" for paragraph in paragraphs)
    return f"<!DOCTYPE html><html><head><title>T</title>{head}</head><body><article>{body}</article></body></html>"


@pytest.fixture(scope="module")
def pages() -> HtmlPages:
    return HtmlPages()


@pytest.mark.parametrize("name", ["a.html", "a.htm", "A.HTML"])
def test_a_page_is_a_document_without_its_tags_and_menus(tmp_path: Path, name: str) -> None:
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/a'>About</a></li></ul></nav>"
    lines = [f"In the year {year}: {SEA} {HILL}" for year in range(1900, 1905)]
    (tmp_path / name).write_text(page(f"{SEA} <b>Always</b>.", *lines).replace("<article>", f"{menu}<article>"))
    (document,) = read(tmp_path, path=".", licence="CC0")
    assert document == ("\n".join([f"{SEA} Always.", *lines]), "s", name, "CC0")


def test_a_page_among_text_suffixes_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page(SEA))
    assert read(tmp_path, path=".", text_suffixes=(".html",))[0].text == page(SEA)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (page("Grüße " + SEA).encode(), "Grüße"),
        (page("Grüße " + SEA).encode("utf-8-sig"), "Grüße"),
        (page("Grüße " + SEA).encode("utf-16"), "Grüße"),
        (page("Grüße – " + SEA, head='<meta charset="ISO-8859-1">').encode("cp1252"), "Grüße –"),
        (
            page("мир " + SEA, head='<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">').encode(
                "koi8-r"
            ),
            "мир",
        ),
        (page("Grüße " + SEA, head='<meta charset="utf-16">').encode(), "Grüße"),
        (page("Grüße " + SEA, head='<meta charset="Unicode_Escape">').encode(), "Grüße"),
        (page("Grüße " + SEA, head="<meta charset=rot13>").encode(), "Grüße"),
    ],
    ids=["utf-8", "mark", "utf-16", "latin1", "koi8-r", "a name that cannot be true", "an escape", "no encoding"],
)
def test_a_page_is_read_in_the_encoding_that_it_names(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "a.html").write_bytes(data)
    assert read(tmp_path, path=".")[0].text.startswith(f"{text} The ships")


def test_a_page_in_another_encoding_than_it_says_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page("Grüße " + SEA, head='<meta charset="utf-8">').encode("cp1252"))
    assert "a.html: line 1 is not UTF-8 (byte 0xfc)" in refusal(tmp_path, path=".")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_column_of_html(tmp_path: Path, name: str) -> None:
    texts = [page(SEA), f"<p>{HILL}</p>", "<script>x()</script>", f"{SEA} It has no tag at all."]
    if name == "a.parquet":
        pq.write_table(pa.table({"body": texts}), tmp_path / name)
    elif name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    else:
        quoted = ('"' + text.replace('"', '""') + '"' for text in texts)
        (tmp_path / name).write_text("body\n" + "\n".join(quoted) + "\n")
    fields: dict[str, Any] = {"path": name, "text_column": "body", "text_format": "html"}
    assert [(document.path, document.text) for document in read(tmp_path, **fields)] == [
        (f"{name}#1", SEA),
        (f"{name}#2", HILL),
        (f"{name}#4", f"{SEA} It has no tag at all."),
    ]
    assert left_out(tmp_path, **fields) == {"HTML without text": 1}


@pytest.mark.parametrize(
    ("markup", "reason"),
    [
        ("<html><head><title>T</title></head><body><script>x()</script></body></html>", "HTML without text"),
        ("<div>" * 3000 + SEA + "</div>" * 3000, "HTML nested too deeply"),
        (page(SEA) + "<div>" * 300 + HILL, "HTML nested too deeply"),
        ("<html><body><footer>Privacy</footer></body></html>", "HTML with text that was not extracted"),
        ("<p>" + "x" * 20_000_000, "HTML over 20 MB"),
    ],
    ids=["empty", "all of it too deep", "a part of it too deep", "not extracted", "large"],
)  # fmt: skip
def test_a_page_that_gives_no_text_is_counted_by_its_reason(
    tmp_path: Path, markup: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.html").write_text(markup)
    (tmp_path / "b.html").write_text(page(SEA))
    counted, lost = Counter[str](), list[str]()
    documents = read_source(
        Source(name="s", path="."),
        BadRows("fail", tmp_path.parent / "skipped.jsonl"),
        tmp_path,
        counted,
        lambda path, why: lost.append(f"{path}: {why}"),
    )
    assert [document.path for document in documents] == ["b.html"]
    assert counted == {reason: 1}
    assert lost == [f"a.html: {reason}"]


def test_a_page_that_takes_too_long_is_ended_and_the_next_one_is_read() -> None:
    pages = HtmlPages(seconds=1)
    slow = "<html><body>" + "<p>" + "<b>a</b> " * 400_000 + "</body></html>"
    assert pages.extract(slow).reason == html_pages.TOO_SLOW
    assert pages.extract(page(SEA)).text == SEA


def test_a_page_that_takes_too_much_memory_is_counted_and_the_next_one_is_read() -> None:
    pages = HtmlPages(memory=8 * 2**20)
    large = page(*(f"{number} {SEA} " * 5_000 for number in range(10)))
    assert pages.extract(page(HILL)).text == HILL
    assert pages.extract(large).reason == html_pages.TOO_MUCH_MEMORY
    assert pages.extract(page(SEA)).text == SEA


def test_a_process_that_is_killed_costs_no_page(pages: HtmlPages) -> None:
    assert pages.extract(page(SEA)).text == SEA
    assert pages._process is not None
    pages._process.kill()
    assert pages.extract(page(HILL)).text == HILL


def test_a_page_that_kills_its_process_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    ready = """print('["ready", ""]', flush=True)\n"""
    worker.write_text(f"import os, sys\n{ready}sys.stdin.buffer.read(8)\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setattr(html_pages, "_WORKER", worker)
    assert HtmlPages().extract(page(SEA)).reason == html_pages.FAILED


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        ("import nothing_of_this_name", "it ended at once"),
        ("""print('["broken", "ModuleNotFoundError: x"]')""", "ModuleNotFoundError: x"),
    ],
)
def test_a_machine_that_can_read_no_page_loses_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worker: str, why: str
) -> None:
    (tmp_path / "worker.py").write_text(worker)
    (tmp_path / "a.html").write_text(page(SEA))
    monkeypatch.setattr(html_pages, "_WORKER", tmp_path / "worker.py")
    with pytest.raises(GatehouseError, match=f"the process that reads HTML does not start .{why}.;"):
        left_out(tmp_path, path="*.html")


def test_what_was_read_before_changes_no_text(pages: HtmlPages) -> None:
    several = [page(SEA, HILL), page(HILL, SEA, SEA), page(*(f"{SEA} {number}" for number in range(50)))]
    alone = [HtmlPages().extract(markup) for markup in several]
    assert [pages.extract(markup) for markup in [*several, *reversed(several)]] == [*alone, *reversed(alone)]


def test_what_is_kept_of_a_page(pages: HtmlPages) -> None:
    code = "<pre>def f(x):\n    return x\n</pre>"
    table = "<table><tr><td>sea</td><td>deep</td></tr></table>"
    text = pages.extract(page(f"{SEA} Call <code>f(x)</code>.").replace("</article>", f"{code}{table}</article>")).text
    assert "f(x)" in text
    assert "def f(x):\n    return x" in text
    assert "| sea | deep |" in text


def test_a_source_without_the_key_has_the_identity_of_before() -> None:
    section = RawCorpusSection(sources=(Source(name="s", path="x"),))
    assert "text_format" not in section.identity_fields()["sources"][0]
    section = RawCorpusSection(sources=(Source(name="s", path="x", text_format="html"),))
    assert section.identity_fields()["sources"][0]["text_format"] == "html"
    assert RawCorpusSection.model_validate(section.model_dump(mode="json")) == section


def test_what_is_known_to_be_lost_of_a_page(pages: HtmlPages) -> None:
    assert pages.extract(page(SEA, SEA)).text == SEA
    assert "E = mc2" in pages.extract(page(f"{SEA} E = mc<sup>2</sup> {HILL}")).text
