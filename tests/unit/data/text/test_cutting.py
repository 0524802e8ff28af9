"""Cutting of long texts, and what puts the parts together again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.sources.provenance import group_of, part_of, part_path
from training.data.tables import text_id
from training.data.text.cutting import cut
from training.data.text.documents import Selection, Split
from training.errors import InputRefused


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


Join = Callable[..., dict[str, str]]


@pytest.fixture(params=[1, 2, 100], ids="{} rows a file".format)
def joined(tmp_path: Path, request: pytest.FixtureRequest) -> Join:
    """Path to text of the documents that rows become, from files of so many rows."""

    def join(*rows: dict[str, str]) -> dict[str, str]:
        write_split(tmp_path, list(rows), request.param)
        selection = Selection(Split(tmp_path))
        documents = list(selection)
        assert [document.id for document in documents] == sorted(text_id(document.text) for document in documents)
        assert selection.count == len(documents)
        return {document.path: document.text for document in documents}

    return join


def write_split(folder: Path, rows: list[dict[str, str]], rows_a_file: int) -> None:
    rows = sorted(rows, key=lambda row: row["id"])
    for number, first in enumerate(range(0, len(rows), rows_a_file)):
        some = [{**row, "bytes": len(row["text"].encode())} for row in rows[first : first + rows_a_file]]
        part = pa.Table.from_pylist(some)
        pq.write_table(part, folder / f"part-{number:05d}.parquet")


def test_parts_that_follow_each_other_are_one_document(joined: Join) -> None:
    book = rows(*((part_path("book.txt#3", number), f"part {number} ") for number in range(1, 13)))
    random.Random(0).shuffle(book)
    assert joined(*book, *rows(("a.txt", "whole"))) == {
        "book.txt#3": "".join(f"part {number} " for number in range(1, 13)),
        "a.txt": "whole",
    }


def test_parts_with_a_gap_or_of_two_sources_are_not(joined: Join) -> None:
    book = rows(*((part_path("b", number), f"part {number}") for number in (1, 2, 4)))
    other = rows((part_path("b", 3), "part 3"), source="other")
    assert joined(*book, *other) == {"b": "part 1part 2", part_path("b", 4): "part 4", part_path("b", 3): "part 3"}


def test_a_split_without_parts_stays_as_it_is(joined: Join) -> None:
    assert joined(*rows(("a", "one"), ("b", "two"))) == {"a": "one", "b": "two"}


def test_the_number_of_a_part() -> None:
    assert [part_of(path) for path in ("a.txt", "a.jsonl#7", part_path("a.jsonl#7", 12))] == [0, 0, 12]
    assert group_of(part_path("a.jsonl#7", 12)) == "a.jsonl#7"


def test_chosen_rows_alone_are_read_and_joined(tmp_path: Path) -> None:
    book = rows(*((part_path("b", number), f"part {number}") for number in (1, 2, 3)))
    write_split(tmp_path, [*book, *rows(("a", "one"), ("c", "two"))], 2)
    split = Split(tmp_path)
    paths = split.table(["path"])["path"].to_pylist()
    chosen = np.array([path not in ("c", part_path("b", 1)) for path in paths])

    assert {document.path: document.text for document in Selection(split, chosen)} == {"a": "one", "b": "part 2part 3"}
    assert [document.path for document in Selection(split, chosen).put_together()] == ["b"]
    assert Selection(split, chosen).count == 2


def test_texts_end_with_the_document_that_reaches_the_limit(tmp_path: Path) -> None:
    texts = [f"{number:03}" * 10 for number in range(20)]
    write_split(tmp_path, rows(*((str(number), text) for number, text in enumerate(texts))), 3)
    read = [text for batch in Split(tmp_path).texts(100) for text in batch]
    assert read == sorted(texts, key=text_id)[:4]
    assert len([text for batch in Split(tmp_path).texts() for text in batch]) == 20


def test_files_that_are_not_in_order_are_refused(tmp_path: Path) -> None:
    """Reading them one after the other would give another order of documents, and so other shards."""
    first, second = sorted(rows(("a", "one"), ("b", "two")), key=lambda row: row["id"])
    for number, row in enumerate((second, first)):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"part-{number}.parquet")
    with pytest.raises(InputRefused, match=r"part-1.parquet: its documents do not follow those of the file before"):
        Split(tmp_path).table(["id"])


def test_a_split_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="holds no parquet file; materialize the corpus again"):
        Split(tmp_path)
