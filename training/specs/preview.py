"""Rows as a model will see them, between the process that encodes them and whoever shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from training.specs.base import Spec
from training.specs.conversations import ConversationSource, PreferenceSource
from training.specs.imports import Imported
from training.specs.post_training import TooLong
from training.specs.raw_corpus import Source

PREVIEW_FILE = "preview.svg"
"""In the report of an evaluation: the first rows as a picture, for an asset's page."""

PREVIEW_PAGE = "preview.html"
"""The same as a page by itself."""


class PreviewRequest(Spec):
    """Which rows to show.

    Attributes:
        asset: Whose rows: of the kind `instruction_data`, `adapter_data`, `preference_data` or `packed_shards`.
        data: The version's folder.
        tokenizer: The tokenizer's folder.
        context: Tokens of a row.
        packed: Show rows as they are packed, and not one conversation after the other.
        find: Show only the row at this place, such as `chats.jsonl:7`; where there is none, those that hold the text.
        seed: Of the packing's order.
        weights: Of the sources that the base model reads more or less often.
        mixture: Their shares in what it reads, where the recipe gives those.
        too_long: The rule of the recipe for what is longer than the context.
        page: Write them as a page to this file, too.
    """

    asset: str
    data: Path
    tokenizer: Path
    context: int = Field(gt=0)
    first: int = Field(0, ge=0)
    count: int = Field(5, gt=0)
    packed: bool = False
    find: str = ""
    seed: int = 0
    weights: dict[str, float] = {}
    mixture: dict[str, float] = {}
    too_long: TooLong = "turns"
    page: Path | None = None


class SourcePreviewRequest(Spec):
    """Of which source of a recipe to show the first documents or rows, before anything is built.

    Attributes:
        text: A source of texts.
        rows: A source of conversations or of judged answers. One of the two is given.
        code: The recipe's own code, where the source is a function of it.
        tokenizer: Where the source holds token ids, the one that they are of.
        characters: Of a document that are shown.
    """

    text: Source | None = None
    rows: ConversationSource | PreferenceSource | None = None
    code: Path | None = None
    tokenizer: Imported | None = None
    count: int = Field(gt=0)
    characters: int = Field(gt=0)


class Piece(Spec):
    """Consecutive tokens of one kind, as text.

    Attributes:
        kind: `learned`, `given` (seen and not learned), `padding`, or `border`: a document begins. `text` is text that
            was not encoded.
        text: What the tokens say; of padding and borders nothing.
        tokens: Number of tokens.
    """

    kind: Literal["learned", "given", "padding", "border", "text"]
    text: str = ""
    tokens: int = 0


class Column(Spec):
    """One sequence of tokens: a conversation, one side of a pair, or a packed row.

    Attributes:
        name: `chosen` or `rejected` of a pair.
    """

    name: str = ""
    pieces: tuple[Piece, ...]

    def count(self, kind: str) -> int:
        """Tokens of one kind."""
        return sum(piece.tokens for piece in self.pieces if piece.kind == kind)


class PreviewRow(Spec):
    """One row.

    Attributes:
        title: File and row, or what else names it.
        columns: One, or the two sides of a pair.
    """

    title: str
    columns: tuple[Column, ...]


class Preview(Spec):
    """Rows, and how many there are.

    Attributes:
        of: Rows to choose from; None where they were not counted.
        notes: What else there is to know, a sentence each.
    """

    rows: tuple[PreviewRow, ...]
    of: int | None = None
    notes: tuple[str, ...] = ()
