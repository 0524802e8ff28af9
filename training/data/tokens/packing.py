"""Best-fit packing of documents into rows of one context length, without losing a token.

Documents longer than the context are cut into whole rows and a remainder. Remainders and short documents are put,
longest first, into the row whose free room they fill best (best-fit decreasing: Johnson, 1974; for language models:
Ding et al., "Fewer Truncations Improve Language Modeling", 2024). Attention does not cross documents: `rows` gives
position ids that restart at every piece, from which transformers builds a block-diagonal mask.

In its row a piece takes one place more than it has tokens: the first place holds the token before the piece, which is
`<|endoftext|>` at the beginning of a document. So the first token of every piece is predicted from something, and all
tokens of the documents are learned. Evaluation cuts documents into windows in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from training.data.tokens.shards import Int64, TokenReader, ranges

IGNORE = -100


class Packing(Protocol):
    """A plan that rows are read by: one in memory, or one on disk (`training.data.tokens.plan_files`)."""

    @property
    def context(self) -> int:
        """Tokens per row."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def tokens(self) -> int:
        """Tokens of the pieces, without padding and without the tokens before the pieces."""

    @property
    def efficiency(self) -> float:
        """Share of the rows' places that hold a token; 1 for no rows."""

    def pieces(self, indices: Int64) -> Pieces:
        """The pieces of some rows, row by row.

        Args:
            indices: Row numbers, int64 [B], in any order.
        """


@dataclass(frozen=True)
class Pieces:
    """The pieces of some rows, row by row.

    Attributes:
        counts: Pieces of each row, int64 [B].
        document: Number of each piece's document, int64 [pieces].
        start: First token of each piece within its document, int64 [pieces].
        length: Tokens of each piece, int64 [pieces].
    """

    counts: Int64
    document: Int64
    start: Int64
    length: Int64


@dataclass(frozen=True)
class PackingPlan:
    """Which piece of which document lies in which row. Pieces are listed row by row.

    Attributes:
        context: Tokens per row.
        row_offsets: int64 [rows + 1]; row r holds the pieces `row_offsets[r] : row_offsets[r + 1]`.
        document: int64 [pieces], number of the document in its reader.
        start: int64 [pieces], first token of the piece within its document.
        length: int64 [pieces], tokens of the piece, 1 to `context` - 1; with the one before them they fill one place
            more.
    """

    context: int
    row_offsets: Int64
    document: Int64
    start: Int64
    length: Int64

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_offsets) - 1

    @property
    def tokens(self) -> int:
        """Tokens of the pieces, without padding and without the tokens before the pieces."""
        return int(self.length.sum())

    @property
    def used(self) -> int:
        """Places of the rows that hold a token, those before the pieces included."""
        return self.tokens + len(self.length)

    @property
    def efficiency(self) -> float:
        """Share of the rows' places that hold a token; 1 for no rows."""
        return self.used / (self.rows * self.context) if self.rows else 1.0

    def pieces(self, indices: Int64) -> Pieces:
        """As `Packing.pieces`."""
        first = self.row_offsets[indices]
        counts = self.row_offsets[indices + 1] - first
        places = ranges(first, counts)
        return Pieces(counts, self.document[places], self.start[places], self.length[places])


@dataclass(frozen=True)
class Size:
    """How large a plan would be.

    Attributes:
        rows: Number of rows.
        used: Places of the rows that hold a token, those before the pieces included.
    """

    rows: int
    used: int


@dataclass(frozen=True)
class Spans:
    """Parts of documents.

    Attributes:
        document: int64 [spans], number of the document in its reader.
        start: int64 [spans], first token of the part within its document.
        length: int64 [spans], tokens of the part; empty ones take no place.
    """

    document: Int64
    start: Int64
    length: Int64


def whole(lengths: Int64, documents: Int64 | None = None) -> Spans:
    """Whole documents as spans.

    Args:
        lengths: Tokens of every document, int64 [documents].
        documents: Numbers of the documents that are meant, int64 [spans]; None for all.
    """
    chosen = np.arange(len(lengths), dtype=np.int64) if documents is None else np.asarray(documents, np.int64)
    return Spans(chosen, np.zeros(len(chosen), np.int64), np.asarray(lengths, np.int64)[chosen])


def plan(spans: Spans, context: int, alone: bool = False) -> PackingPlan:
    """Pack parts of documents into rows.

    Args:
        spans: What to pack.
        context: Tokens per row, at least 2.
        alone: One piece a row, for models in which the documents of a row would see each other.

    Returns:
        A plan that holds every token of the spans exactly once. The same input gives the same plan.

    Raises:
        ValueError: The context is too short.
    """
    from training.data.tokens.best_fit import best_fit_compiled  # compiling takes a second: only who packs does

    room = _room(context)
    sizes = np.ascontiguousarray(spans.length, np.int64)
    full, rest = sizes // room, sizes % room
    cut_document = np.repeat(spans.document, full)
    cut_start = np.repeat(spans.start, full) + ranges(np.zeros(len(full), np.int64), full) * room

    # Longest first; a stable sort gives the same plan everywhere.
    partial = np.flatnonzero(rest)
    order = partial[np.argsort(-rest[partial], kind="stable")]
    row = np.arange(len(order), dtype=np.int64) if alone else best_fit_compiled(rest[order] + 1, context)
    order = order[np.argsort(row, kind="stable")]
    in_row = np.bincount(row) if len(row) else np.empty(0, np.int64)

    pieces_per_row = np.concatenate([np.ones(len(cut_document), np.int64), in_row])
    return PackingPlan(
        context,
        np.concatenate([[0], np.cumsum(pieces_per_row)]).astype(np.int64),
        np.concatenate([cut_document, spans.document[order]]),
        np.concatenate([cut_start, spans.start[order] + full[order] * room]),
        np.concatenate([np.full(len(cut_document), room, np.int64), rest[order]]),
    )


def _room(context: int) -> int:
    """Most tokens of a piece: one place of its row is for the token before it."""
    if context < 2:
        raise ValueError(f"context must be at least 2, not {context}")
    return context - 1


def size_of_plan(lengths: Int64, context: int, alone: bool = False) -> Size:
    """What `plan` would come to, without making it: best fit needs only how many pieces of each size there are.

    Args:
        lengths: Tokens of every span, int64 [spans].
        context: Tokens per row, at least 2.
        alone: One piece a row.

    Raises:
        ValueError: The context is too short.
    """
    from training.data.tokens.best_fit import count_rows_compiled  # compiling takes a second: only who packs does

    room = _room(context)
    full, rest = np.divmod(np.asarray(lengths, np.int64), room)
    whole_rows, pieces_of_size = int(full.sum()), np.bincount(rest, minlength=room)
    pieces_of_size[0] = 0
    partial = int(pieces_of_size.sum())
    rows_of_partial = partial if alone else int(count_rows_compiled(pieces_of_size.astype(np.int64), context))
    return Size(whole_rows + rows_of_partial, int(lengths.sum()) + whole_rows + partial)


def rows(packing: Packing, tokens: TokenReader, indices: Int64, pad: int) -> dict[str, Int64]:
    """Rows of a plan as a batch.

    Labels are not shifted: the model does that. They are -100 at padding, at the token before every piece, so that no
    prediction crosses documents, and where the reader's mask is off. Position ids restart at the token before every
    piece; the padding is one run of its own.

    Args:
        packing: The plan, made from `tokens.lengths`.
        tokens: The documents.
        indices: Row numbers, int64 [B], in any order.
        pad: Token id at unused places.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [B, context] each.
    """
    indices = np.asarray(indices, np.int64)
    context = packing.context
    pieces = packing.pieces(indices)
    counts, document, start, length = pieces.counts, pieces.document, pieces.start, pieces.length
    size = length + 1

    # Where each piece begins in the batch, as one long row.
    ends = np.cumsum(size)
    row_ends = np.concatenate([[0], ends])[np.cumsum(counts)]
    used = np.diff(row_ends, prepend=0)
    row_of_piece = np.repeat(np.arange(len(indices)), counts)
    place = row_of_piece * context + (ends - size) - np.repeat(row_ends - used, counts)
    learned = ranges(place + 1, length)

    shape = (len(indices), context)
    input_ids = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    position_ids = np.arange(context, dtype=np.int64)[None, :] - used[:, None]

    piece_tokens, mask = tokens.gather(document, start, length)
    input_ids.reshape(-1)[learned] = piece_tokens
    input_ids.reshape(-1)[place] = tokens.before(document, start)
    labels.reshape(-1)[learned] = piece_tokens if mask is None else np.where(mask, piece_tokens, IGNORE)
    position_ids.reshape(-1)[ranges(place, size)] = ranges(np.zeros(len(size), np.int64), size)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
