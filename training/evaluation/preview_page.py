"""A preview as a page, and as a picture for places that show no pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

from training.specs.preview import PREVIEW_FILE, PREVIEW_PAGE, Column, Piece, Preview

_STYLE = """
body, .preview { font: 13px/1.45 system-ui, sans-serif; color: #1b1f24; background: #ffffff; }
.row { border: 1px solid #d0d7de; border-radius: 6px; margin: 0 0 12px; padding: 8px 12px; }
.title { color: #57606a; font-size: 12px; margin-bottom: 6px; }
.columns { display: flex; gap: 16px; }
.column { flex: 1; min-width: 0; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 12px; }
.learned { background: #c6f0cf; color: #0a5c24; }
.given { color: #57606a; }
.padding { background: #eaeef2; color: #8c959f; }
.border { display: block; border-top: 2px dashed #8250df; margin: 6px 0; }
"""
_LEGEND = (
    '<span class="learned">learned</span> <span class="given">given, not learned</span> '
    '<span class="padding">padding</span> A dashed line: a document begins.'
)
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PICTURE_ROWS, _PICTURE_CHARACTERS = 4, 1_600
_WIDTH, _LINE_HEIGHT, _CHARACTER_WIDTH = 860, 18, 7.3


def write_preview(report: Path, title: str, preview: Preview) -> None:
    """Write `preview.html` with all rows, and `preview.svg` with as many as a picture shows."""
    (report / PREVIEW_PAGE).write_text(page(title, preview), encoding="utf-8")
    (report / PREVIEW_FILE).write_text(_picture(preview), encoding="utf-8")


def page(title: str, preview: Preview) -> str:
    """A page by itself, without scripts."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in preview.notes)
    rows = "".join(_rows(preview))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><p>{_LEGEND}</p>{notes}{rows}</body></html>\n"
    )


def _rows(preview: Preview) -> Iterator[str]:
    for row in preview.rows:
        columns = "".join(map(_column, row.columns))
        yield f'<div class="row"><div class="title">{escape(row.title)}</div><div class="columns">{columns}</div></div>'


def _column(column: Column) -> str:
    named = f"{column.name}: " if column.name else ""
    counts = f"{named}{column.count('learned')} of {sum(piece.tokens for piece in column.pieces)} tokens are learned"
    pieces = "".join(map(_piece, column.pieces))
    return f'<div class="column"><div class="title">{counts}</div><div class="tokens">{pieces}</div></div>'


def _piece(piece: Piece) -> str:
    if piece.kind == "border":
        return '<span class="border"></span>'
    text = f"{piece.tokens} tokens of padding" if piece.kind == "padding" else piece.text
    return f'<span class="{piece.kind}">{escape(_printable(text))}</span>'


def _printable(text: str) -> str:
    """A text without characters that XML has no room for."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _picture(preview: Preview) -> str:
    """An SVG that holds the page's rows: markdown shows pictures and no HTML."""
    rows = [row.model_copy(update={"columns": tuple(map(_shortened, row.columns))}) for row in preview.rows]
    shown = preview.model_copy(update={"rows": tuple(rows[:_PICTURE_ROWS])})
    height = 60 + sum(60 + max(_height(column, len(row.columns)) for column in row.columns) for row in shown.rows)
    body = f"<p>{_LEGEND}</p>{''.join(_rows(shown))}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}">'
        f'<rect width="100%" height="100%" fill="#ffffff"/><foreignObject width="100%" height="100%">'
        f'<div xmlns="http://www.w3.org/1999/xhtml" class="preview"><style>{_STYLE}</style>{body}</div>'
        "</foreignObject></svg>\n"
    )


def _shortened(column: Column) -> Column:
    """A column with as much text as a picture shows."""
    pieces: list[Piece] = []
    room = _PICTURE_CHARACTERS
    for piece in column.pieces:  # each stays, because its tokens are counted
        text = piece.text if len(piece.text) <= room else f"{piece.text[:room]} ..." if room else ""
        pieces.append(piece.model_copy(update={"text": text}))
        room = max(0, room - len(piece.text))
    return Column(name=column.name, pieces=tuple(pieces))


def _height(column: Column, of: int) -> int:
    """Pixels of one of several columns side by side, of monospaced text with wrapped lines."""
    width = int(_WIDTH / of / _CHARACTER_WIDTH) - 8
    text = "".join("\n" if piece.kind == "border" else piece.text for piece in column.pieces)
    return _LINE_HEIGHT * sum(len(textwrap.wrap(line, width)) or 1 for line in text.split("\n"))
