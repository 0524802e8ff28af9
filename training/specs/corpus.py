"""Recipe section of `corpus`: cleaning, de-duplication, domains and the held-out split."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Self

from pydantic import Field, model_validator

from training.specs.base import Spec

GENERAL = "general"


class MinHash(Spec):
    """Near-duplicate removal by MinHash and banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4)."""

    permutations: int = Field(128, gt=0)
    bands: int = Field(16, gt=0, description="`permutations` must be divisible by it.")
    ngram: int = Field(5, gt=0, description="Words per shingle.")
    threshold: float = Field(0.8, gt=0, le=1, description="Estimated Jaccard similarity from which two documents "
                             "are the same.")

    @model_validator(mode="after")
    def _bands_divide(self) -> Self:
        if self.permutations % self.bands:
            raise ValueError(f"permutations {self.permutations} cannot be divided into {self.bands} bands")
        return self


class CorpusSection(Spec):
    """Everything that decides the content of `corpus`."""

    min_characters: int = Field(200, ge=0)
    max_characters: int = Field(200_000, gt=0, description="Longer documents are cut into pieces of this size.")
    min_letters: float = Field(0.25, ge=0, le=1, description="Least share of letters among the characters.")
    max_line: int = Field(2_000, gt=0, description="A document with a longer line is dropped as generated data.")
    near_duplicates: MinHash = MinHash()
    heldout: float = Field(0.05, gt=0, lt=1, description="Share of documents held out, chosen by their digest.")
    domains: dict[str, tuple[str, ...]] = Field({}, description="Filled in from the sources' domains: name to globs "
                                                "of `source/path`.")

    def domain_of(self, source: str, path: str) -> str:
        """The domain of a document: the first, by name, whose globs match `source/path`, else `general`."""
        for name, globs in sorted(self.domains.items()):
            if any(fnmatchcase(f"{source}/{path}", glob) for glob in globs):
                return name
        return GENERAL
