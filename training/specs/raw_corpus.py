"""Recipe section of `raw_corpus`: which texts, from where."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from training.specs.base import Spec

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_SUFFIX = re.compile(r"(\.[a-z0-9_+-]{1,16})?")


class Source(Spec):
    """One body of text: a local folder or glob, the Python standard library, or a Hugging Face dataset.

    Exactly one of `path`, `stdlib` and `dataset` is given.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="Short name; it appears in every statistic.")
    path: str | None = Field(
        None,
        description="A folder, file or glob. `~` and environment variables are expanded; "
        "a relative path starts at the folder of the recipe file that writes it.",
    )
    stdlib: bool = Field(False, description="Use the standard library of the running interpreter.")
    dataset: str | None = Field(None, description="A dataset's name on the Hugging Face hub.")
    config: str | None = Field(None, description="The dataset's configuration.")
    revision: str | None = Field(None, description="The dataset's commit; pin it, it is part of the identity.")
    split: str = Field("train", description="The dataset's split.")
    include: tuple[str, ...] = Field((), description="Keep only paths that match one of these globs.")
    exclude: tuple[str, ...] = Field((), description="Drop paths that match one of these globs.")
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
    text_suffixes: tuple[str, ...] = Field(
        (),
        description="Suffixes of further files that are one text each, such as "
        "`.c`; `''` stands for files without a suffix.",
    )
    follow_links: bool = Field(
        False,
        description="Read links to files and folders outside of the source's folder, "
        "such as those of a download cache.",
    )
    licence: str | None = Field(None, description="Licence of the texts, recorded as provenance.")
    weight: float = Field(
        1.0, gt=0, description="Share of the training tokens relative to the other sources' weights times their sizes."
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
    def _one_origin(self) -> Self:
        given = [name for name in ("path", "dataset") if getattr(self, name)] + (["stdlib"] if self.stdlib else [])
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, stdlib and dataset (given: {', '.join(given) or 'none'})")
        return self


class RawCorpusOptions(Spec):
    """How the sources are gathered."""

    shard_megabytes: int = Field(64, gt=0, description="Uncompressed text per parquet shard.")
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="A malformed row stops the job, or is counted and listed in the card."
    )


class RawCorpusSection(RawCorpusOptions):
    """Everything that decides the content of `raw_corpus`."""

    sources: tuple[Source, ...] = Field(min_length=1)
