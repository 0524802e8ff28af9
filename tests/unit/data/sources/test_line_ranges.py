"""A large file of JSON lines in pieces gives what it gives as a whole."""

from __future__ import annotations

import codecs
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data.sources import bad_rows, line_ranges, readers
from training.data.sources.bad_rows import BadRows, read_skipped
from training.data.sources.line_ranges import cut_at_lines
from training.data.sources.reading import Document, read_files
from training.data.sources.source_files import SourceFile, list_source
from training.errors import SourceError
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.execution import Execution
from training.specs.raw_corpus import Source

MOST = 2_000
RANDOM = random.Random(0)
ROWS = [
    json.dumps({"text": f"ä {number} " * RANDOM.randrange(40)}, ensure_ascii=False).encode() for number in range(300)
]


@pytest.fixture(autouse=True)
def _few_blank_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (readers, line_ranges):
        monkeypatch.setattr(module, "MAX_BLANK_LINES", 20)
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 5_000)
    monkeypatch.setattr(bad_rows, "MAX_DOCUMENT_BYTES", 5_000)


def pieces_of(path: Path, source: Source) -> list[SourceFile]:
    pool = Pool(path.parent / "work", Execution(threads=1), EventWriter(None))
    return cut_at_lines(list_source(source).files, source, pool, MOST)


def read(files: Sequence[SourceFile], source: Source, folder: Path) -> tuple[list[Document], list[str]]:
    """Documents, and messages of bad rows."""
    bad = BadRows("skip", folder / "skipped")
    documents = list(read_files(source, files, bad, folder, Counter()))
    return documents, list(read_skipped(folder / "skipped"))


FILES = {
    "plain": b"\n".join(ROWS) + b"\n",
    "no last line end": b"\n".join(ROWS),
    "carriage returns": b"\r\n".join(ROWS),
    "byte order mark": codecs.BOM_UTF8 + b"\n".join(ROWS),
    "bad rows": b"\n".join([*ROWS[:90], b"{", *ROWS[90:200], b'{"text": "\xff"}', b'{"text": 5}', *ROWS[200:]]),
    "some blank lines": b"\n\n".join(ROWS[:15]) + b"\n" + b"\n".join(ROWS),
    "long lines": b"\n".join([*ROWS[:50], b'{"text": "' + b"x" * 30_000 + b'"}', *ROWS[50:], b"y" * 9_000]),
    "long blank lines": b"\n".join([b" " * 9_000, *ROWS[:50], b" " * 12_001, b" " * 7_000 + ROWS[0], *ROWS]),
    "two rows": b'{"text": "' + b"x" * 4_000 + b'"}\n{"text": "' + b"y" * 4_000 + b'"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_pieces_give_what_the_file_gives(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILES[name])
    source = Source(name="s", path=str(path))
    pieces = pieces_of(path, source)
    assert len(pieces) > 1
    assert [piece.lines.start for piece in pieces[1:] if piece.lines] == [
        piece.lines.end for piece in pieces[:-1] if piece.lines
    ]
    assert sum(piece.bytes for piece in pieces) == path.stat().st_size
    assert read(pieces, source, tmp_path) == read(list_source(source).files, source, tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"[" + b",\n".join(ROWS) + b"]"),
        ("a.jsonl", b" " * 9_000 + b"\n" + codecs.BOM_UTF8 + b" [" + b",\n".join(ROWS) + b"]"),
        ("a.jsonl", b"\n".join(ROWS) + b"\n" * 25 + b"\n".join(ROWS)),
        ("a.jsonl", b"\n".join(ROWS[:12])),
        ("a.jsonl", b'{"text": "' + b"x" * 20_000 + b'"}\n'),
        ("a.json", b"\n".join(ROWS)),
        ("a.txt", b"\n".join(ROWS)),
    ],
)
def test_what_cannot_be_cut_stays_whole(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    source = Source(name="s", path=str(path))
    assert pieces_of(path, source) == list_source(source).files


def test_a_row_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*ROWS[:250], b'{"text": 5}', *ROWS[250:]]))
    source = Source(name="s", path=str(path))
    documents, messages = read(pieces_of(path, source), source, tmp_path)
    assert [message.partition(": ")[0] for message in messages] == [f"{path}:251"]
    assert documents[-1].path == "a.jsonl#301"


def test_a_file_that_changes_between_counting_and_reading_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(ROWS))
    source = Source(name="s", path=str(path))
    pieces, before = pieces_of(path, source), path.stat()
    path.write_bytes(b"\n".join(reversed(ROWS)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SourceError, match="it changed while it was read"):
        read(pieces[1:2], source, tmp_path)


def test_files_keep_their_order(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.jsonl", "d.jsonl"):
        (tmp_path / name).write_bytes(b"\n".join(ROWS[:5] if name == "c.jsonl" else ROWS))
    source = Source(name="s", path=str(tmp_path))
    names = [piece.name for piece in pieces_of(tmp_path / "a", source)]
    assert names == sorted(names) and len(set(names)) == 4 and len(names) > 6
