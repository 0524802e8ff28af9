"""Recipe section of `corpus`: cleaning, de-duplication, domains and the held-out split."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Self

from pydantic import Field, model_validator

from training.specs.base import Spec

GENERAL = "general"  # the domain of documents that no source's globs name
RECALL = 0.999  # probability with which a pair at the threshold becomes a candidate
DROPPED = "dropped.jsonl"
TOO_SHORT, FEW_LETTERS, LONG_LINE = "too short", "few letters", "long line"
EXACT, NEAR = "exact duplicate", "near-duplicate"
# Reason to the key of the section that decides it.
DROP_REASONS = {
    TOO_SHORT: "min_characters",
    FEW_LETTERS: "min_letters",
    LONG_LINE: "max_line",
    EXACT: "",
    NEAR: "near_duplicates.threshold",
}


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
    domains: dict[str, tuple[str, ...]] = Field(
        {}, description="Filled in from the sources' domains: name to globs of `source/path`."
    )

    def domain_of(self, source: str, path: str) -> str:
        """The domain of a document: the first, by name, whose globs match `source/path`, else `general`."""
        for name, globs in sorted(self.domains.items()):
            if any(fnmatchcase(f"{source}/{path}", glob) for glob in globs):
                return name
        return GENERAL
