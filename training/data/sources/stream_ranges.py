"""Cuts large streams of token ids at ends of text, so that several processes read one file.

The documents of all pieces are counted first, because a document is named by its number in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.data.sources.file_names import format_in
from training.data.sources.file_state import state_of, unchanged
from training.data.sources.formats import NPY
from training.data.sources.source_files import LineRange, SourceFile
from training.data.sources.token_ids import Ids, ends_in, open_stream, range_of
from training.job.parts import Part, Pool
from training.specs.origin import Origin


def cut_at_ends(files: Sequence[SourceFile], source: Origin, pool: Pool, most: int, end: int) -> list[SourceFile]:
    """The files in their order, large .npy files as pieces of about `most` bytes.

    Args:
        files: The files of the source.
        source: Whose files they are.
        pool: Counts the documents.
        most: Bytes.
        end: Id of the end of text.

    Raises:
        SourceError: A file changed since it was listed.
    """
    pieces = {file.name: _pieces(file, most, end) for file in files if _can_be_cut(file, source, most)}
    parts = [
        Part(f"{number:05d}-{piece.lines.start}", (piece, end), piece.bytes, file.shown, state_of([piece]) + f"-{end}")
        for number, file in enumerate(files)
        for piece in pieces.get(file.name, ())
        if piece.lines is not None
    ]
    finished = pool.run(f"count documents {source.name}", count_ends, parts)
    counted = iter([done.result["ends"] for done in finished])

    cut: list[SourceFile] = []
    for file in files:
        before = 0
        for piece in pieces.get(file.name, [file]):
            if piece.lines is None:
                cut.append(piece)
                continue
            cut.append(replace(piece, lines=replace(piece.lines, before=before)))
            before += next(counted)
    return cut


def _can_be_cut(file: SourceFile, source: Origin, most: int) -> bool:
    return format_in(file.name, source) == NPY and round(file.bytes / most) > 1


def _pieces(file: SourceFile, most: int, end: int) -> list[SourceFile]:
    """Pieces of a stream that begin after an end of text; the whole file where it is no stream, or has one piece."""
    try:
        ids = open_stream(file)
    except ValueError:  # its reader says what is wrong with it
        return [file]
    count = round(file.bytes / most)
    places = {_after_end(ids, end, len(ids) * number // count) for number in range(1, count)}
    if len(places := {0, len(ids), *places}) < 3:
        return [file]
    header = file.status.st_size - ids.nbytes
    begins = [header + place * ids.itemsize for place in sorted(places)]
    return [replace(file, lines=LineRange(start, stop, 0)) for start, stop in pairwise(begins)]


def _after_end(ids: Ids, end: int, place: int) -> int:
    """The place after the first end of text that is not before a place."""
    return next((int(places[0]) + 1 for places in ends_in(ids, end, place, len(ids)) if len(places)), len(ids))


def count_ends(argument: tuple[SourceFile, int], _: Path) -> dict[str, Any]:
    """How many `ends` of text a piece has.

    Raises:
        SourceError: The file changed since it was listed.
    """
    piece, end = argument
    with unchanged(piece):
        ids = open_stream(piece)
        return {"ends": sum(len(places) for places in ends_in(ids, end, *range_of(piece, ids)))}
