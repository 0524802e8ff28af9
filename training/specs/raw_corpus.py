"""Recipe section of `raw_corpus`: which texts, from where."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from training.specs.base import FunctionName, Spec
from training.specs.imports import Imported
from training.specs.origin import Origin

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_SUFFIX = re.compile(r"(\.[a-z0-9_+-]{1,16})?")
_UNSET: dict[str, Any] = {"text_format": "text", "function": None, "input_ids": None}


class Source(Origin):
    """One body of text: a local folder or glob, the Python standard library, or a Hugging Face dataset.

    Exactly one of `path`, `stdlib`, `dataset` and `function` is given, but that a function may read the files of a
    path.
    """

    stdlib: bool = Field(False, description="Use the standard library of the running interpreter.")
    domains: dict[str, tuple[str, ...]] = Field(
        {},
        description="Name of a domain to globs of this source's paths. "
        "Documents that match belong to it, the others are `general`.",
    )
    text_column: str = Field(
        "text",
        min_length=1,
        description="Column or key of the text in files of rows and in "
        "datasets; `data.text` is the key `text` in the object `data`.",
    )
    input_ids: str | None = Field(
        None,
        min_length=1,
        description="The documents are token ids of the recipe's imported tokenizer: those in this column of Parquet "
        "and Arrow files, and in .npy files, which have no column, with an end of text between documents.",
    )
    function: FunctionName | None = Field(
        None,
        description="A function of the recipe's `code` that yields the documents: of each file where there is a "
        "`path`, else all of them.",
    )
    text_format: Literal["text", "html"] = Field(
        "text", description="What that column holds: text, or HTML whose text is extracted as that of .html files."
    )
    text_suffixes: tuple[str, ...] = Field(
        (),
        description="Suffixes of further files that are one text each, such as "
        "`.c`; `''` stands for files without a suffix.",
    )
    max_documents: int | None = Field(None, gt=0, description="Stop after this many documents.")

    @field_validator("text_suffixes")
    @classmethod
    def _suffixes(cls, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        lower = tuple(suffix.lower() for suffix in suffixes)
        for suffix in lower:
            if not _SUFFIX.fullmatch(suffix) or suffix in COMPRESSIONS:
                raise ValueError(
                    f"{suffix!r} is no suffix of a text; write it with its dot and without that of its "
                    "compression, such as .c"
                )
        return lower

    @field_validator("domains")
    @classmethod
    def _named_domains(cls, domains: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, globs in domains.items():
            if not name.strip():
                raise ValueError('a domain has no name; write one, such as `network: ["http/*"]`')
            if not all(glob.strip() for glob in globs) or not globs:
                raise ValueError(
                    f"the domain {name} has no glob, or an empty one; list globs of this source's paths, "
                    'such as ["http/*"]'
                )
        return domains

    @model_validator(mode="after")
    def _ids_or_texts(self) -> Self:
        if self.input_ids is not None:
            others = ("stdlib", "text_column", "text_format", "text_suffixes", "function")
            given = [name for name in others if getattr(self, name) != type(self).model_fields[name].default]
            if given:
                raise ValueError(f"input_ids: a source of token ids has no {given[0]}; leave one of them out")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not set is not written: a key that nobody uses is no part of a version's identity."""
        unset = {name for name, value in _UNSET.items() if getattr(self, name) == value}
        return {name: value for name, value in handler(self).items() if name not in unset}

    @property
    def limit(self) -> int | None:
        """The most documents that are read; None for all of them."""
        return self.max_documents

    @property
    def other_origins(self) -> tuple[str, ...]:
        """The standard library needs no path, and a function can do without."""
        return ("stdlib", "function") if self.path is None else ("stdlib",)


class RawCorpusOptions(Spec):
    """How the sources are gathered."""

    shard_megabytes: int = Field(64, gt=0, description="Uncompressed text per parquet shard.")
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="A malformed row stops the job, or is counted and listed in the card."
    )


class RawCorpusSection(RawCorpusOptions):
    """Everything that decides the content of `raw_corpus`."""

    sources: tuple[Source, ...] = Field(min_length=1)
    tokenizer: Imported | None = Field(
        None, description="Filled in where a source holds token ids: the tokenizer that they are of."
    )

    def identity_fields(self) -> dict[str, Any]:
        """All fields; of the tokenizer what its section says of it, since its place decides nothing."""
        own = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.identity_fields()}
        return super().identity_fields() | own

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "tokenizer" or value is not None}
