"""Which files of a source are read, and what is left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.data.sources.formats import CSV, JSON_LINES, PARQUET, TEXT, format_of
from training.data.sources.source_files import SourceListing, list_source, matches, shown_reasons
from training.errors import SourceError
from training.specs.conversations import ConversationSource
from training.specs.raw_corpus import Source

NFC, NFD = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))


def listing(base: Path, **fields: Any) -> SourceListing:
    return list_source(Source(name="s", **{"path": "."} | fields), base)  # type: ignore[arg-type]


def names(base: Path, **fields: Any) -> list[str]:
    return [file.name for file in listing(base, **fields).files]


def write(base: Path, *paths: str, text: str = "x") -> None:
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(text)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.jsonl.gz", JSON_LINES),
        ("A.NDJSON.Xz", JSON_LINES),
        ("a.b.TXT", TEXT),
        ("a.py.zst", TEXT),
        ("a.rst.txt", TEXT),
        ("a.csv.bz2", CSV),
        ("a.PARQUET", PARQUET),
        ("a.parquet.gz", None),
        ("a.tar.gz", None),
        ("a.pdf", None),
        ("a", None),
        ("a.gz", None),
    ],
)
def test_formats(name: str, format_: str | None) -> None:
    assert format_of(name) == format_


def test_formats_of_a_recipe_s_own(tmp_path: Path) -> None:
    write(tmp_path, "a.c", "b.H", "c.c.gz", "README", "d.pdf", "Mr. Smith")
    listed = listing(tmp_path, text_suffixes=(".C", ".h", ""))
    assert [file.name for file in listed.files] == ["Mr. Smith", "README", "a.c", "b.H", "c.c.gz"]
    assert listed.left_out == {".pdf": 1}


@pytest.mark.parametrize("suffix", ["c", ".gz", "*.c", ". c", "a.c"])
def test_a_suffix_that_no_file_can_have(suffix: str) -> None:
    with pytest.raises(ValueError, match="is no suffix of a text"):
        Source(name="s", path="x", text_suffixes=(suffix,))


@pytest.mark.parametrize(
    ("name", "glob", "expected"),
    [
        ("a/b/c.py", "a/*", True),
        ("b/a.py", "a/*", False),
        ("x.py", "**/x.py", True),
        ("a/x.py", "**/x.py", True),
        ("X.py", "x.py", False),
        (f"{NFD}.txt", f"{NFC[0]}*", True),
        (f"{NFC}.txt", f"{NFD}.*", True),
    ],
)
def test_globs(name: str, glob: str, expected: bool) -> None:
    assert matches(name, [glob]) is expected


def test_every_file_is_read_or_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.txt",
        "b.TXT",
        "c.pdf",
        "d.PDF",
        "e.tar.gz",
        "LICENSE",
        "Mr. Smith",
        ".hidden.txt",
        ".git/x.txt",
        "__pycache__/x.txt",
        "drafts/f.txt",
        "drafts/g.md",
    )
    write(tmp_path, "empty.txt", text="")

    listed = listing(tmp_path, exclude=("*/f.txt",))
    assert [file.name for file in listed.files] == ["a.txt", "b.TXT", "drafts/g.md"]
    assert listed.left_out == {
        ".pdf": 2,
        ".tar.gz": 1,
        "without a suffix": 2,
        "hidden": 1,
        "hidden folder": 1,
        "__pycache__ folder": 1,
        "excluded": 1,
        "empty": 1,
    }


def test_what_a_glob_matches_is_read_or_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.pdf", "sub/c.txt")
    listed = listing(tmp_path, path="*")
    assert [file.name for file in listed.files] == ["a.txt"]
    assert listed.left_out == {".pdf": 1, "folder": 1}
    assert listing(tmp_path, path="**/*").left_out == {".pdf": 1}


def test_counts_for_people() -> None:
    assert shown_reasons(Counter({".pdf": 3, "hidden": 1200, "linked folder": 1, "hidden folder": 2})) == (
        "1,200 hidden, 3 .pdf, 2 hidden folders, 1 linked folder"
    )
    assert shown_reasons(Counter({f".{letter}": 1 for letter in "abcdefghijklmn"})).endswith("1 .l, 2 others")


def test_linked_folders(tmp_path: Path) -> None:
    write(tmp_path, "notes/a.txt", "else/b.txt")
    (tmp_path / "notes" / "books").symlink_to(tmp_path / "else")
    (tmp_path / "notes" / "same").symlink_to(tmp_path / "notes")
    (tmp_path / "else" / "back").symlink_to(tmp_path / "notes")
    listed = listing(tmp_path, path="notes")
    assert ([file.name for file in listed.files], listed.left_out) == (["a.txt"], {"linked folder": 1})
    listed = listing(tmp_path, path="notes", follow_links=True)
    assert ([file.name for file in listed.files], listed.left_out) == (["a.txt", "books/b.txt"], {})


def test_links_that_are_followed_lead_to_files_only(tmp_path: Path) -> None:
    write(tmp_path, "notes/a.txt")
    (tmp_path / "notes" / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(SourceError, match=r"zero\.txt: it is a pipe, a socket or a device"):
        listing(tmp_path, path="notes", follow_links=True)


@pytest.mark.parametrize("stored", [NFC, NFD])
@pytest.mark.parametrize("typed", [NFC, NFD])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, stored: str, typed: str) -> None:
    write(tmp_path, f"{stored}/{stored}.txt", "o.txt")
    assert names(tmp_path, exclude=(f"{typed}/*",)) == ["o.txt"]
    assert names(tmp_path, include=(f"*/{typed}.txt",)) == [f"{NFC}/{NFC}.txt"]
    assert names(tmp_path, path=typed) == names(tmp_path, path=f"{typed}/{typed}*") == [f"{NFC}.txt"]
    assert names(tmp_path, path=f"{typed}/{typed}.txt") == [f"{NFC}.txt"]


def test_names_that_differ_in_their_unicode_form_alone(tmp_path: Path) -> None:
    write(tmp_path, f"{NFC}.txt", f"{NFD}.txt")
    assert sorted(names(tmp_path)) == sorted([f"{NFC}.txt", f"{NFD}.txt"])


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"": ("a/*",)}, "a domain has no name"),
        ({" ": ("a/*",)}, "a domain has no name"),
        ({"network": ()}, "network has no glob"),
        ({"network": ("a/*", "")}, "network has no glob, or an empty one"),
    ],
)
def test_a_domain_has_a_name_and_globs(domains: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source(name="s", path="x", domains=domains)


def test_a_source_of_conversations_leaves_pages_of_html_out(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>x</p>")
    (tmp_path / "b.jsonl").write_text("{}\n")
    for fields in ({}, {"format": "plain_text"}):
        source = ConversationSource.model_validate({"name": "s", "path": str(tmp_path)} | fields)
        files = list_source(source)
        assert ([file.name for file in files.files], files.left_out) == (["b.jsonl"], {".html": 1})
