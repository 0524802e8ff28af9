"""Recipe section of `corpus`: cleaning, de-duplication, domains and the held-out split."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from training.specs.base import Spec
from training.specs.cleaning import Rules

GENERAL = "general"  # the domain of documents that no source's globs name
RECALL = 0.999  # probability with which a pair at the threshold becomes a candidate
DROPPED = "dropped.jsonl"
FUNNEL = "funnel.json"  # in the report
TOO_SHORT, FEW_LETTERS, LONG_LINE = "too short", "few letters", "long line"
EXACT, NEAR = "exact duplicate", "near-duplicate"
LICENCE, LANGUAGE, LOW_QUALITY = "licence", "language", "low quality"
# Reason to the key of the section that decides it.
DROP_REASONS = {
    LICENCE: "rules.licences",
    LANGUAGE: "rules.languages",
    LOW_QUALITY: "rules",
    TOO_SHORT: "min_characters",
    FEW_LETTERS: "min_letters",
    LONG_LINE: "max_line",
    EXACT: "",
    NEAR: "near_duplicates.threshold",
}


def filter_reason(name: str) -> str:
    """The reason for which a filter of the recipe's own code drops documents."""
    return f"filter {name}"


def dropped_metric(reason: str) -> str:
    """Name of the corpus's metric that counts the documents dropped for a reason."""
    return f"dropped_{reason.replace(' ', '_').replace('-', '_')}"


class MinHash(Spec):
    """Near-duplicate removal by MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4).

    Each MinHash of two documents with similarity s agrees with probability s. So the two share at least one of b bands
    of r MinHashes with probability 1 - (1 - s**r)**b. Candidates are compared exactly: one more band costs time and
    never a document.
    """

    permutations: int = Field(
        128, gt=0, description="MinHashes per document; with more of them fewer documents that differ are compared."
    )
    ngram: int = Field(5, gt=0, description="Words per shingle.")
    threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of the sets of shingles from which two documents are the same."
    )

    @property
    def rows_and_bands(self) -> tuple[int, int]:
        """MinHashes per band, and bands: the longest bands that find a pair at the threshold with probability 0.999.

        Raises:
            ValueError: There are too few MinHashes for that.
        """
        for rows in range(self.permutations, 0, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= RECALL:
                return rows, bands

        needed = math.ceil(math.log(1 - RECALL) / math.log(1 - self.threshold))
        raise ValueError(
            f"permutations {self.permutations} miss near-duplicates at the threshold {self.threshold:g}; "
            f"it needs at least {needed}"
        )

    @model_validator(mode="after")
    def _finds_what_it_removes(self) -> Self:
        assert self.rows_and_bands
        return self


class CorpusSection(Spec):
    """Everything that decides the content of `corpus`."""

    min_characters: int = Field(200, ge=0)
    max_characters: int = Field(200_000, gt=0, description="Longer documents are cut into pieces of this size.")
    min_letters: float = Field(0.25, ge=0, le=1, description="Least share of letters among the characters.")
    max_line: int = Field(
        2_000,
        gt=0,
        description="A document is dropped as generated data for a longer line "
        "of code, or one that is no prose: without spaces, or full of digits and punctuation.",
    )
    near_duplicates: MinHash = MinHash()
    heldout: float = Field(
        0.05, gt=0, lt=1, description="Share of documents held out, chosen by the digest of their text."
    )
    rules: Rules | None = Field(None, description="What documents of prose have to be like.")
    scrub: tuple[Literal["email", "ip", "phone", "key"], ...] = Field(
        (), description="Personal data and secrets to replace by words such as <email>."
    )
    domains: dict[str, tuple[str, ...]] = Field(
        {}, description="Filled in from the sources' domains: name to globs of `source/path`."
    )

    @property
    def drop_reasons(self) -> dict[str, str]:
        """Reasons for which this section drops documents, in the order of its rules, and the key of each."""
        rules, asked = self.rules, set(DROP_REASONS) - {LICENCE, LANGUAGE, LOW_QUALITY}
        if rules is not None:
            others = (rules.gopher, rules.repetition, rules.c4, rules.fineweb, rules.blocklist or None)
            asked |= {LICENCE} if rules.licences else set()
            asked |= {LANGUAGE} if rules.languages else set()
            asked |= {LOW_QUALITY} if any(rule is not None for rule in others) else set()
        reasons: dict[str, str] = {}
        for reason, key in DROP_REASONS.items():
            if reason in asked:
                reasons[reason] = key
            if reason == LOW_QUALITY and rules is not None:
                reasons |= {filter_reason(name): "rules.filters" for name in rules.filters}
        return reasons

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not set is not written: a rule that nobody asked for is no part of a corpus's identity."""
        unset = {name for name, value in (("rules", None), ("scrub", ())) if getattr(self, name) == value}
        return {name: value for name, value in handler(self).items() if name not in unset}

    def domain_of(self, source: str, path: str) -> str:
        """The domain of a document: the first, by name, whose globs match `source/path`, else `general`."""
        for name, globs in sorted(self.domains.items()):
            if any(fnmatchcase(f"{source}/{path}", glob) for glob in globs):
                return name
        return GENERAL
