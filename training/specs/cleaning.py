"""Recipe section `corpus.rules`: which documents are good enough, by rules that published corpora were made with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from training.specs.base import FunctionName, Spec


class Gopher(Spec):
    """Quality rules of MassiveText (Rae et al., "Scaling Language Models", 2021, table A1)."""

    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, gt=0)
    min_word_length: float = Field(3, ge=0, description="Mean characters of a word.")
    max_word_length: float = Field(10, gt=0)
    max_symbols: float = Field(0.1, ge=0, description="Hashes, and ellipses, for each word.")
    max_bullet_lines: float = Field(0.9, ge=0, le=1, description="Share of the lines that begin with a bullet.")
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1, description="Share of the lines that end with an ellipsis.")
    min_alphabetic: float = Field(0.8, ge=0, le=1, description="Share of the words that hold a letter.")
    min_stop_words: int = Field(2, ge=0, description="Of `stop_words`, at least so many different ones occur.")
    stop_words: tuple[str, ...] = Field(
        ("the", "be", "to", "of", "and", "that", "have", "with"), description="Another language needs its own."
    )


class Repetition(Spec):
    """Repetition rules of MassiveText (Rae et al., 2021, table A1); each is the largest share that is kept."""

    duplicate_lines: float = Field(0.3, ge=0, le=1)
    duplicate_paragraphs: float = Field(0.3, ge=0, le=1)
    duplicate_line_characters: float = Field(0.2, ge=0, le=1)
    duplicate_paragraph_characters: float = Field(0.2, ge=0, le=1)
    top_ngrams: dict[int, float] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="Words to the share of characters in the commonest n-gram."
    )
    duplicate_ngrams: dict[int, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="Words to the share of characters in n-grams that occurred before.",
    )


class C4(Spec):
    """Rules of C4 (Raffel et al., "Exploring the Limits of Transfer Learning", 2020, section 2.2).

    Lines are dropped, and then documents that are left with too little.
    """

    terminal_punctuation: bool = Field(True, description="Drop lines that do not end like a sentence.")
    min_line_words: int = Field(3, ge=0)
    min_sentences: int = Field(5, ge=0)


class FineWeb(Spec):
    """Rules of FineWeb (Penedo et al., "The FineWeb Datasets", 2024, section 3.6)."""

    min_punctuated_lines: float = Field(0.12, ge=0, le=1, description="Share of the lines that end like a sentence.")
    max_short_lines: float = Field(0.67, ge=0, le=1, description="Share of the lines of at most 30 characters.")
    max_duplicate_characters: float = Field(0.01, ge=0, le=1, description="Share of characters in lines seen before.")
    max_lines_per_word: float = Field(0.3, ge=0)


class Languages(Spec):
    """Language identification by fastText's lid.176."""

    keep: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = Field(
        min_length=1, description="ISO 639-1 codes in small letters, such as en."
    )
    confidence: float = Field(0.65, gt=0, le=1, description="Below it a document's language is unknown.")
    unknown: Literal["keep", "drop"] = "drop"


class Rules(Spec):
    """Rules that a document of prose has to pass; a rule that is not named is not applied, `{}` takes its defaults."""

    gopher: Gopher | None = None
    repetition: Repetition | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None
    languages: Languages | None = None
    blocklist: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(
        (), description="Words; a document that holds one of them is dropped."
    )
    licences: tuple[str, ...] = Field(
        (), description="Only documents of these licences are kept, code too; by default all."
    )
    filters: tuple[FunctionName, ...] = Field(
        (),
        description="Functions of the recipe's `code` that say which documents stay; asked in this order, after the "
        "other rules, of documents of every kind.",
    )
    sources: tuple[str, ...] = Field(
        (), description="Sources of prose. By default all; Python files are code, and only `licences` asks them."
    )

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not set is not written: a key that nobody uses is no part of a version's identity."""
        return {name: value for name, value in handler(self).items() if name != "filters" or value}
