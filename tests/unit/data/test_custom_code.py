"""A recipe's own code: sources and filters that a person wrote, right and wrong ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.conftest import Pipeline
from tests.unit.data.test_stages import lines, rows
from training.custom import Document
from training.data.custom_code import CustomCode
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import read_source
from training.errors import RecipeError
from training.evaluation.corpora import measure_corpus, measure_raw_corpus
from training.job.context import InputArtifact
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.corpus import CorpusSection
from training.specs.execution import Execution
from training.specs.raw_corpus import RawCorpusSection, Source

HEAD = "from training.custom import Document, document_filter, document_source\n"
PROSE = "The ships sail on the sea for a day, and they come back in the evening with what they caught. " * 4
CODE = (
    HEAD
    + """
import os

@document_source
def paragraphs(path):
    for paragraph in path.read_text().split("\\n\\n"):
        yield Document(paragraph, licence="CC0-1.0" if "free" in paragraph else None)


@document_source
def numbers():
    for number in range(3):
        yield f"number {number} " * 30


@document_filter
def no_seven(document):
    return "number 7" not in document.text


@document_filter
def not_of_b(document):
    assert (document.source, document.licence) != ("s", "")
    return not document.path.startswith("b.")
"""
)


def code(text: str) -> CustomCode:
    return CustomCode("mine.py", (HEAD + text).encode())


def source_error(text: str, name: str = "f", *arguments: object) -> str:
    with pytest.raises(RecipeError) as caught:
        list(code(text).documents(name, "s/a.txt", *arguments))
    return str(caught.value)


def filter_error(text: str, name: str = "f") -> str:
    with pytest.raises(RecipeError) as caught:
        code(text).filters([name])[0].keeps(Document("text", None, "s", "a.jsonl#17"))
    return str(caught.value)


def test_a_source_that_reads_files(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n\ntwo is free")
    (tmp_path / "b.txt").write_text("three")
    source = Source(name="s", path=".", function="paragraphs", licence="MIT")
    bad = BadRows("fail", tmp_path.parent / "skipped.jsonl")
    own = CustomCode("mine.py", CODE.encode())
    assert list(read_source(source, bad, tmp_path, code=own)) == [
        ("one", "s", "a.log#1", "MIT"),
        ("two is free", "s", "a.log#2", "CC0-1.0"),
        ("three", "s", "b.txt#1", "MIT"),
    ]


def test_a_source_that_gets_no_files(tmp_path: Path) -> None:
    own, bad = CustomCode("mine.py", CODE.encode()), BadRows("fail", tmp_path / "skipped.jsonl")
    documents = list(read_source(Source(name="s", function="numbers"), bad, code=own))
    assert [document.path for document in documents] == ["numbers#1", "numbers#2", "numbers#3"]
    limited = Source(name="s", function="numbers", max_documents=2)
    assert len(list(read_source(limited, bad, code=own))) == 2


def test_a_text_that_no_file_may_hold_is_a_bad_row(tmp_path: Path) -> None:
    own = code("@document_source\ndef f():\n    yield 'a'\n    yield 'b\\0'\n    yield '\\ud800'\n    yield 'c'\n")
    bad = BadRows("skip", tmp_path / "skipped.jsonl")
    documents = read_source(Source(name="s", function="f"), bad, code=own)
    assert [document.path for document in documents] == ["f#1", "f#4"]
    assert [message.split(":")[0] for message in bad.listed] == ["s/f#2", "s/f#3"]


def test_a_file_that_gives_no_document_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.x").write_text("x")
    own = code("@document_source\ndef f(path):\n    return []\n")
    left_out, bad = Counter[str](), BadRows("fail", tmp_path.parent / "skipped.jsonl")
    assert not list(read_source(Source(name="s", path=".", function="f"), bad, tmp_path, left_out, code=own))
    assert left_out == {"without a row of text": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    yield 'a'\n    raise ValueError('no such row')",
            "mine.py:5: f raised ValueError at s/a.txt#2: no such row",
        ),
        ("    yield open('/nowhere/x').read()", "mine.py:4: f raised FileNotFoundError at s/a.txt#1: [Errno 2]"),
        ("    import sys\n    sys.exit(3)\n    yield ''", "mine.py:5: f raised SystemExit at s/a.txt#1: 3"),
        ("    yield 'a'\n    yield 5", "mine.py: f yielded a value of type int at s/a.txt#2; yield a text"),
        ("    yield None", "f yielded None at s/a.txt#1"),
        ("    yield Document(b'x')", "f yielded a value of type bytes for the text at s/a.txt#1; yield a str"),
        ("    yield Document('x', 5)", "f yielded a value of type int for the licence at s/a.txt#1"),
        ("    yield Document('x', path='y')", "yielded a document with a source or a path at s/a.txt#1"),
        ("    return 'a text'", "f returned a value of type str at s/a.txt; yield the documents"),
        ("    pass", "f raised TypeError at s/a.txt: 'NoneType' object is not iterable"),
    ],
)
def test_a_source_that_fails_is_named_with_its_row(body: str, message: str) -> None:
    assert message in source_error(f"@document_source\ndef f():\n{body}\n")


def test_a_source_with_other_arguments_than_it_gets() -> None:
    assert "f raised TypeError at s/a.txt: f() takes 0 positional" in source_error(
        "@document_source\ndef f():\n    yield ''\n", "f", Path("a.txt")
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return document.txt", "mine.py:4: f raised AttributeError at s/a.jsonl#17: 'Document' object has no"),
        ("    pass", "mine.py: f returned None at s/a.jsonl#17; return True for a document that stays, and False"),
        ("    return 1", "f returned a value of type int at s/a.jsonl#17"),
        ("    raise SystemExit", "f raised SystemExit at s/a.jsonl#17: without a message"),
    ],
)
def test_a_filter_that_fails_is_named_with_its_row(body: str, message: str) -> None:
    assert message in filter_error(f"@document_filter\ndef f(document):\n{body}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(document):\n    return True\n", "mine.py: there is no function f decorated with @document_filter"),
        (
            "@document_source\ndef f(document):\n    return True\n",
            "there is no function f decorated with @document_filt",
        ),
        ("f = 5\n", "there is no function f"),
        ("\nimport nothing_of_this_name\n", "mine.py:3: importing it raised ModuleNotFoundError: No module named"),
        ("def f(:\n", "mine.py:2: importing it raised SyntaxError"),
    ],
)
def test_code_without_the_function_is_refused(text: str, message: str) -> None:
    assert message in filter_error(text)


def test_the_bytes_that_were_read_are_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "@document_filter\ndef f(document):\n    return True\n")
    own = CustomCode.read(path)
    path.write_text("raise ValueError")
    assert own.filters(["f"])[0].keeps(Document("x"))
    assert not list(tmp_path.glob("**/*.pyc"))


def built(pipeline: Pipeline, execution: Execution, **rules: Any) -> tuple[Path, Path]:
    """Folders of a raw corpus of own sources and of a corpus with own filters."""
    folder = pipeline.root / "texts"
    if not folder.exists():
        folder.mkdir()
        for name, first in (("a", 0), ("b", 40), ("c", 80)):
            texts = "\n\n".join(f"number {number} free: {PROSE} {number}" * 3 for number in range(first, first + 40))
            (folder / f"{name}.log").write_text(texts)
        (folder / "d.html").write_text("<footer>Privacy</footer>")
        (pipeline.root / "mine.py").write_text(CODE)
    pipeline.execution = execution
    files = {"code": pipeline.root / "mine.py"}
    sources = [
        {"name": "s", "path": str(folder / "*.log"), "function": "paragraphs"},
        {"name": "n", "function": "numbers"},
        {"name": "web", "path": str(folder / "*.html")},
    ]
    raw = pipeline.run("raw_corpus", {"sources": sources}, files=files)
    section = {"heldout": 0.2, "near_duplicates": {"threshold": 1.0}, "rules": {"filters": ["no_seven", "not_of_b"]}}
    return raw, pipeline.run("corpus", section, ("raw_corpus",), files)


def test_what_own_code_drops_is_in_the_funnel_and_everything_adds_up(pipeline: Pipeline) -> None:
    raw, corpus = built(pipeline, Execution(threads=1))
    assert len(rows(raw / "documents")) == 123
    funnel = json.loads((corpus / "report" / "funnel.json").read_text())
    assert funnel["dropped"]["filter no_seven"] == 11  # 7, and 70 to 79, which lie in b
    assert funnel["dropped"]["filter not_of_b"] == 30
    assert funnel["documents"] == 123 == funnel["train"] + funnel["heldout"] + sum(funnel["dropped"].values())
    assert pipeline.promoted("corpus").metrics["dropped_filter_not_of_b"] == 30
    examples = {row["reason"]: row["path"] for row in lines(corpus / "dropped.jsonl")}
    assert examples["filter not_of_b"].startswith("b.log#")
    assert "without: filter no_seven" in (corpus / "report" / "card.md").read_text()

    scratch = pipeline.root / "measured"
    scratch.mkdir()
    pool = Pool(scratch, Execution(threads=1), EventWriter(None))
    of_raw = measure_raw_corpus(InputArtifact(raw, pipeline.promoted("raw_corpus")), pool)
    assert of_raw.report.metrics["left_out_files"] == 1
    assert [item["reason"] for item in of_raw.items if item["metric"] == "left_out_files"] == [
        "HTML with text that was not extracted"
    ]
    assert "web/d.html: HTML with text that was not extracted" in (raw / "report" / "card.md").read_text()
    of_corpus = measure_corpus(InputArtifact(corpus, pipeline.promoted("corpus")), pool)
    assert of_corpus.report.metrics["unaccounted_documents"] == 0
    uncounted = json.dumps(funnel | {"dropped": funnel["dropped"] | {"filter not_of_b": 0}})
    (corpus / "report" / "funnel.json").write_text(uncounted)
    without = measure_corpus(InputArtifact(corpus, pipeline.promoted("corpus")), pool)
    assert without.report.metrics["unaccounted_documents"] == 30
    assert "30 of them as filter not_of_b (corpus.rules.filters), such as s/b.log#" in of_corpus.causes["documents"]


def test_the_bytes_are_the_same_for_any_number_of_processes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.job.parts._WORTH_A_POOL", 0)
    monkeypatch.setattr("training.stages.raw_corpus._PART_BYTES", 1)
    assert built(pipeline, Execution(threads=1)) != built(pipeline, Execution(threads=2))
    for asset in ("raw_corpus", "corpus"):
        first, second = (pipeline.store.manifest(asset, version) for version in pipeline.store.versions(asset))
        assert first.digest == second.digest


def test_keys_that_nobody_uses_leave_an_identity_as_it_was() -> None:
    section = RawCorpusSection(sources=(Source(name="s", path="x"),))
    assert "function" not in section.identity_fields()["sources"][0]
    corpus = CorpusSection.model_validate({"rules": {"gopher": {}}})
    assert "filters" not in corpus.identity_fields()["rules"]
    corpus = CorpusSection.model_validate({"rules": {"filters": ["f"]}})
    assert CorpusSection.model_validate(corpus.model_dump(mode="json")) == corpus
    assert list(corpus.drop_reasons) == [
        "filter f", "too short", "few letters", "long line", "exact duplicate", "near-duplicate",
    ]  # fmt: skip
