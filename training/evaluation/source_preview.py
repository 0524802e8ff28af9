"""The first documents or rows of a recipe's source, read as a job would read them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from training.data.custom_code import CustomCode
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import READING_MEMORY, read_source
from training.data.sources.rows import read_rows_of
from training.data.sources.source_files import shown_reasons
from training.job.bounded_memory import bounded_memory
from training.specs.preview import Column, Piece, Preview, PreviewRow, SourcePreviewRequest


def preview_source(request: SourcePreviewRequest) -> Preview:
    """The rows that a request asks for; what was left out or could not be read on the way is in the notes.

    Raises:
        SourceError: Nothing is there to read.
        RecipeError: A function of the recipe's own code fails.
    """
    left_out = Counter[str]()
    with TemporaryDirectory() as folder, bounded_memory(READING_MEMORY):
        bad = BadRows("skip", Path(folder) / "skipped.jsonl")
        read = itertools.islice(_texts(request, bad, left_out), request.count)
        rows = tuple(_row(title, text, request.characters) for title, text in read)

    notes = [f"cannot be read: {message}" for message in bad.listed]
    notes += [f"left out: {shown_reasons(left_out)}"] if left_out else []
    return Preview(rows=rows, notes=tuple(notes))


def _texts(request: SourcePreviewRequest, bad: BadRows, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Titles and texts."""
    if request.text is not None:
        code = None if request.code is None else CustomCode.read(request.code)
        for document in read_source(request.text, bad, left_out=left_out, code=code):
            yield document.path + (f", {document.licence}" if document.licence else ""), document.text
    elif request.rows is not None:
        for row in read_rows_of(request.rows, bad, left_out=left_out):
            yield row.place, json.dumps(row.value, ensure_ascii=False, indent=1)


def _row(title: str, text: str, characters: int) -> PreviewRow:
    shown = text if len(text) <= characters else f"{text[:characters]} [... {len(text) - characters:,} more]"
    return PreviewRow(
        title=f"{title}, {len(text):,} characters", columns=(Column(pieces=(Piece(kind="text", text=shown),)),)
    )
