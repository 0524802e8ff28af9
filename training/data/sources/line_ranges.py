"""Cuts large files of JSON lines at line ends, so that several processes read one file.

Only a plain file can be read from its middle. The lines of all pieces are counted first, because a row is named by its
number in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from training.data.sources.bad_rows import MAX_BLANK_LINES, MAX_DOCUMENT_BYTES
from training.data.sources.file_names import format_in
from training.data.sources.file_state import state_of, unchanged
from training.data.sources.formats import JSON_LINES, compression_of
from training.data.sources.readers import begins_array, open_lines
from training.data.sources.source_files import LineRange, SourceFile
from training.job.parts import Part, Pool, report_bytes
from training.specs.origin import Origin

_CHUNK = 1 << 20


def cut_at_lines(files: Sequence[SourceFile], source: Origin, pool: Pool, most: int) -> list[SourceFile]:
    """The files in their order, large files of JSON lines as pieces of about `most` bytes.

    A file stays whole where its rows would not be the same in pieces: one that holds an array, or so many blank lines
    that the reader might stop at them.

    Raises:
        SourceError: A file changed since it was listed.
    """
    pieces = {file.name: _pieces(file, most) for file in files if _can_be_cut(file, source, most)}
    parts = [
        Part(f"{number:05d}-{piece.lines.start}", piece, piece.bytes, file.shown, state_of([piece]))
        for number, file in enumerate(files)
        for piece in pieces.get(file.name, ())
        if piece.lines is not None
    ]
    finished = pool.run(f"count lines {source.name}", count_lines, parts)
    counted = {
        (part.argument.name, part.argument.lines): done.result for part, done in zip(parts, finished, strict=True)
    }

    cut: list[SourceFile] = []
    for file in files:
        results = [counted[file.name, piece.lines] for piece in pieces.get(file.name, ())]
        blank_lines = sum(result["blank"] for result in results)
        is_array = next((result["array"] for result in results if result["blank"] < result["lines"]), False)
        if len(results) < 2 or is_array or blank_lines >= MAX_BLANK_LINES:
            cut.append(file)
        else:
            cut += _numbered(pieces[file.name], [result["lines"] for result in results])
    return cut


def _can_be_cut(file: SourceFile, source: Origin, most: int) -> bool:
    is_plain = format_in(file.name, source) == JSON_LINES and not compression_of(file.name)
    return is_plain and round(file.bytes / most) > 1


def _pieces(file: SourceFile, most: int) -> list[SourceFile]:
    """Pieces of a file that begin and end at line ends; their lines are not counted yet."""
    count = round(file.bytes / most)
    places = [0]
    with file.path.open("rb") as stream:
        for number in range(1, count):
            place = max(places[-1], file.bytes * number // count)
            places.append(min(_next_line(stream, place), file.bytes))
    places = sorted({*places, file.bytes})
    return [replace(file, lines=LineRange(start, end, 0)) for start, end in pairwise(places)]


def _next_line(stream: BinaryIO, place: int) -> int:
    """Where the first line begins at or after a place."""
    if place == 0:
        return 0
    stream.seek(place - 1)
    while (part := stream.readline(_CHUNK)) and not part.endswith(b"\n"):
        pass
    return stream.tell()


def count_lines(piece: SourceFile, _: Path) -> dict[str, Any]:
    """How many `lines` a piece has as its reader counts them, how many are `blank`, and whether an `array` begins.

    Raises:
        SourceError: The file changed since it was listed.
    """
    lines = blank = done = 0
    array = None
    with unchanged(piece), open_lines(piece) as stream:
        for line in iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""):
            lines, done = lines + 1, done + len(line)
            if line.isspace():
                blank += 1
                continue

            array = begins_array(line) if array is None else array
            if len(line) > MAX_DOCUMENT_BYTES:  # the reader skips the rest of it
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_DOCUMENT_BYTES + 1)
                    done += len(line)
            report_bytes(done)
    return {"lines": lines, "blank": blank, "array": bool(array)}


def _numbered(pieces: Sequence[SourceFile], counts: Sequence[int]) -> Iterator[SourceFile]:
    before = 0
    for piece, count in zip(pieces, counts, strict=True):
        assert piece.lines is not None
        yield replace(piece, lines=replace(piece.lines, before=before))
        before += count
