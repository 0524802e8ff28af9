"""Cutting of long texts, and what puts the parts together again."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from training.data.sources.provenance import group_of, part_of, part_path
from training.data.tables import text_id
from training.data.text.cutting import cut
from training.data.text.documents import join_parts

COLUMNS = ("id", "text", "source", "path")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "line\n" * 1000,
        "no line end " * 500,
        "a" * 99 + "\n" + "b" * 300,
        "\n" * 1000,
        "\u6c49\u5b57\u3002" * 300,
        "x" * 1000,
    ],
)
def test_cut_loses_nothing_and_keeps_the_limit(text: str) -> None:
    parts = cut(text, 100)
    assert "".join(parts) == text
    assert all(len(part) <= 100 for part in parts)


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("Two lines of one\nparagraph. End.\n\n", "\n\n"),
        ("123456789\n", "\n"),
        ("A short sentence. And a question? ", (". ", "? ")),
        ("words without an end ", " "),
        ("\u4eca\u5929\u5f00\u4f1a\u3002", "\u3002"),
        ("\u0930\u093e\u092e \u0918\u0930 \u0917\u092f\u093e\u0964 ", "\u0964 "),
    ],
)
def test_cut_ends_a_part_where_a_text_pauses(unit: str, end: str | tuple[str, ...]) -> None:
    parts = cut(unit * 50, 100 + len(unit))
    assert len(parts) > 2
    assert all(part.endswith(end) for part in parts)


def test_parts_are_about_equal() -> None:
    parts = cut("123456789\n" * 21, 100)
    assert len(parts) == 3
    assert max(map(len, parts)) - min(map(len, parts)) <= 20


def rows(*paths_and_texts: tuple[str, str], source: str = "s") -> list[dict[str, str]]:
    return [{"id": text_id(text), "text": text, "source": source, "path": path} for path, text in paths_and_texts]


def joined(*documents: dict[str, str]) -> dict[str, str]:
    table = join_parts(pa.Table.from_pylist(list(documents)).select(COLUMNS))
    assert table["id"].to_pylist() == sorted(map(text_id, table["text"].to_pylist()))
    return dict(zip(table["path"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_parts_that_follow_each_other_are_one_document() -> None:
    book = rows(*((part_path("book.txt#3", number), f"part {number} ") for number in range(1, 13)))
    random.Random(0).shuffle(book)
    assert joined(*book, *rows(("a.txt", "whole"))) == {
        "book.txt#3": "".join(f"part {number} " for number in range(1, 13)),
        "a.txt": "whole",
    }


def test_parts_with_a_gap_or_of_two_sources_are_not() -> None:
    book = rows(*((part_path("b", number), f"part {number}") for number in (1, 2, 4)))
    other = rows((part_path("b", 3), "part 3"), source="other")
    assert joined(*book, *other) == {"b": "part 1part 2", part_path("b", 4): "part 4", part_path("b", 3): "part 3"}


def test_a_table_without_parts_stays_as_it_is() -> None:
    assert joined(*rows(("a", "one"), ("b", "two"))) == {"a": "one", "b": "two"}


def test_the_number_of_a_part() -> None:
    assert [part_of(path) for path in ("a.txt", "a.jsonl#7", part_path("a.jsonl#7", 12))] == [0, 0, 12]
    assert group_of(part_path("a.jsonl#7", 12)) == "a.jsonl#7"
