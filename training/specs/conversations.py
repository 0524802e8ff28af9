"""Recipe sections of `conversations` and `preferences`: which chats and judged answers of a user's own come in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from training.specs.base import Spec
from training.specs.origin import Origin

ConversationFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "plain_text"
]
PreferenceFormat = Literal["auto", "prompted", "implicit_prompt", "transcripts", "ranked", "labelled"]
PLAIN_TEXT = "plain_text"
CONVERSATION_COLUMNS = (
    "messages", "conversations", "tools", "system", "instruction", "input", "output", "history", "prompt", "completion",
    "question", "answer", "text",
)  # fmt: skip
PREFERENCE_COLUMNS = ("prompt", "system", "chosen", "rejected", "ranked", "responses", "scores", "completion", "label")


def _words(labels: Any) -> Any:
    """Keys as words: YAML reads `1` and `true` as a number and a truth value, and a label is either."""
    return {label_word(key): value for key, value in labels.items()} if isinstance(labels, dict) else labels


def label_word(label: object) -> str:
    """A label as the word that `labels` names: `true` for True, `1` for 1 and 1.0, `good` for " Good "."""
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip().casefold()


def _known_columns(columns: dict[str, str], known: Iterable[str]) -> dict[str, str]:
    names = list(known)
    for ours, theirs in columns.items():
        if ours not in names:
            close = difflib.get_close_matches(ours, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it may name {', '.join(names)}"
            raise ValueError(f"columns has no key {ours}; {hint}")
        if not theirs.strip():
            raise ValueError(f"columns.{ours} names no column; write the rows' own name")
    return columns


class ConversationSource(Origin):
    """One body of conversations: a local folder, file or glob, a Hugging Face dataset, or the recipe's own corpus.

    Exactly one of `path`, `dataset` and `from_corpus` is given.
    """

    from_corpus: bool = Field(
        False,
        description="Conversations that are generated from the corpus, `instruction_data.max_conversations` of them; "
        "with `name` alone.",
    )
    format: ConversationFormat = Field(
        "auto",
        description="How a row holds its conversation. `auto` looks at each row. Files of plain text, such as .txt, "
        "are read with `plain_text` alone.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Gatehouse's name of a column to the rows' own name; `data.text` is `text` in the object `data`.",
    )
    max_rows: int | None = Field(None, gt=0, description="Stop after this many rows.")

    @property
    def limit(self) -> int | None:
        """The most rows that are read; None for all of them."""
        return self.max_rows

    @property
    def other_origins(self) -> tuple[str, ...]:
        """The recipe's own corpus needs no path."""
        return ("from_corpus",)

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _known_columns(columns, CONVERSATION_COLUMNS)

    @model_validator(mode="after")
    def _nothing_beside_from_corpus(self) -> Self:
        others = sorted(self.model_fields_set - {"name", "from_corpus"}) if self.from_corpus else []
        if others:
            raise ValueError(
                f"from_corpus: true reads no rows, so remove {', '.join(others)}; instruction_data.max_conversations "
                "says how many there are at most"
            )
        return self


class PreferenceSource(Origin):
    """One body of judged answers: pairs, ranked lists, or single answers with a label.

    Exactly one of `path` and `dataset` is given.
    """

    format: PreferenceFormat = Field("auto", description="How a row holds its answers. `auto` looks at each row.")
    columns: dict[str, str] = Field(
        {},
        description="Gatehouse's name of a column to the rows' own name; `data.text` is `text` in the object `data`.",
    )
    labels: Annotated[dict[str, bool], BeforeValidator(_words)] = Field(
        {},
        description="Word of a single answer's label to whether the answer is good, such as `{good: true, bad: false}`."
        " Without it a label is true, false, 1 or 0.",
    )
    max_rows: int | None = Field(None, gt=0, description="Stop after this many rows.")

    @property
    def limit(self) -> int | None:
        """The most rows that are read; None for all of them."""
        return self.max_rows

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        return _known_columns(columns, PREFERENCE_COLUMNS)


RolesRule = Literal["refuse", "merge", "drop"]
_ROLES = (
    "What to do with roles that repeat and conversations that begin with the assistant. `refuse`: the row is a bad row."
    " `drop`: the row is dropped and counted. `merge`: turns of one role become one, joined by a blank line, and turns "
    "of the assistant before the first question are removed."
)


class ConversationsOptions(Spec):
    """How conversations are gathered."""

    heldout: float = Field(
        0.05, ge=0, lt=1, description="Share of the prompts that is held out, chosen by digest of the prompt."
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="A malformed row stops the job, or is counted and listed in the card."
    )
    roles: RolesRule = Field("refuse", description=_ROLES)
    train: Literal["all", "last"] = Field(
        "all",
        description="Which turns of the assistant are learned. A message's own `train` or `weight` counts more.",
    )
    empty_answers: Literal["drop", "refuse"] = Field(
        "drop", description="A row with an answer of nothing but blanks is dropped and counted, or is a bad row."
    )
    duplicates: Literal["prompt", "conversation", "keep"] = Field(
        "prompt",
        description="Which later rows are dropped and counted: those with the turns before the last answer of an "
        "earlier row, those with the whole conversation of one, or none.",
    )


class ConversationsSection(ConversationsOptions):
    """Everything that decides the content of `conversations`."""

    sources: tuple[ConversationSource, ...] = Field(min_length=1)

    @property
    def files(self) -> tuple[ConversationSource, ...]:
        """The sources with rows to read: all but those from the corpus."""
        return tuple(source for source in self.sources if not source.from_corpus)

    def identity_fields(self) -> dict[str, Any]:
        """All fields, without the sources from the corpus: `conversations` reads nothing of them."""
        return {**super().identity_fields(), "sources": [source.model_dump(mode="json") for source in self.files]}

    @model_validator(mode="after")
    def _names(self) -> Self:
        _distinct_names(self.sources)
        return self


class PreferencesOptions(Spec):
    """How judged answers are gathered."""

    heldout: float = Field(
        0.05, ge=0, lt=1, description="Share of the prompts that is held out, chosen by digest of the prompt."
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="A malformed row stops the job, or is counted and listed in the card."
    )
    roles: RolesRule = Field("refuse", description=_ROLES)
    contradictions: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Opposite judgements of the same two answers to one prompt stop the job, or all of them are "
        "dropped and counted.",
    )
    max_identical: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Pairs whose answers are the same, blanks aside, are dropped and counted. A source with a "
        "greater share of them is refused.",
    )


class PreferencesSection(PreferencesOptions):
    """Everything that decides the content of `preferences`."""

    sources: tuple[PreferenceSource, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Self:
        _distinct_names(self.sources)
        return self


def _distinct_names(sources: Iterable[Origin]) -> None:
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two sources have one name, {twice[0]}; rename one of them")
