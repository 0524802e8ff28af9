"""The first documents or rows of a recipe's source, read as a job would read them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from training.data.custom_code import CustomCode
from training.data.sources.bad_rows import BadRows
from training.data.sources.dataset_files import files_of
from training.data.sources.fetching import FETCHED
from training.data.sources.reading import READING_MEMORY, read_source
from training.data.sources.rows import read_rows_of
from training.data.sources.source_files import shown_reasons
from training.data.sources.source_state import with_commit
from training.data.tokens.given_ids import GivenIds, write_tokenizer
from training.job.bounded_memory import bounded_memory
from training.specs.preview import Column, Piece, Preview, PreviewRow, SourcePreviewRequest


def preview_source(request: SourcePreviewRequest) -> Preview:
    """The rows that a request asks for; what was left out or could not be read on the way is in the notes.

    Raises:
        SourceError: Nothing is there to read.
        RecipeError: A function of the recipe's own code fails.
    """
    left_out = Counter[str]()
    with TemporaryDirectory(prefix="gatehouse-") as temporary, bounded_memory(READING_MEMORY):
        folder = Path(temporary)
        bad = BadRows("skip", folder / "skipped.jsonl")
        with closing(_texts(request, bad, folder / FETCHED, left_out)) as texts:
            read = itertools.islice(texts, request.count)
            rows = tuple(_row(title, text, request.characters) for title, text in read)

    notes = [f"cannot be read: {message}" for message in bad.listed]
    notes += [f"left out: {shown_reasons(left_out)}"] if left_out else []
    return Preview(rows=rows, notes=tuple(notes))


def _texts(
    request: SourcePreviewRequest, bad: BadRows, folder: Path, left_out: Counter[str]
) -> Generator[tuple[str, str]]:
    """Titles and texts."""
    if request.text is not None:
        code = None if request.code is None else CustomCode.read(request.code)
        source = with_commit(request.text)
        decoder = None
        if request.tokenizer is not None:
            decoder = GivenIds(write_tokenizer(request.tokenizer, folder.with_name("tokenizer")))
        read = read_source(source, bad, folder, left_out=left_out, code=code, decoder=decoder)
        with closing(read) as documents:
            for document in documents:
                yield document.path + (f", {document.licence}" if document.licence else ""), document.text
    elif request.rows is not None:
        rows = with_commit(request.rows)
        with closing(read_rows_of(rows, files_of(rows, left_out), bad, folder, left_out)) as source_rows:
            for row in source_rows:
                yield row.place, json.dumps(row.value, ensure_ascii=False, indent=1)


def _row(title: str, text: str, characters: int) -> PreviewRow:
    shown = text if len(text) <= characters else f"{text[:characters]} [... {len(text) - characters:,} more]"
    return PreviewRow(
        title=f"{title}, {len(text):,} characters", columns=(Column(pieces=(Piece(kind="text", text=shown),)),)
    )
