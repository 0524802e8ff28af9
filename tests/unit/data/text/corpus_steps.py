"""The steps of the corpus on small tables, as its stage runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.tables import RAW_SCHEMA, text_id, write_table
from training.data.text.cleaned_parts import Cleaned, CleanedPart, RawPart, clean_part
from training.data.text.digest_order import DigestOrder
from training.data.text.heldout import HELDOUT, KEPT, twins_across
from training.data.text.near_duplicates import near_duplicates
from training.job.events import EventWriter
from training.job.parts import Part, Pool
from training.specs.corpus import GENERAL, CorpusSection, MinHash
from training.specs.execution import Execution


def raw_rows(*texts: str, paths: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a raw corpus."""
    names = paths or [f"{number}.txt" for number in range(len(texts))]
    return [
        {"id": text_id(text), "text": text, "source": "s", "path": path, "licence": None, "bytes": len(text.encode())}
        for text, path in zip(texts, names, strict=True)
    ]


class Steps:
    """Cleans rows and numbers their texts.

    Args:
        folder: An empty one.
        rows: Of a raw corpus.
        section: Keys of the recipe's `corpus`; by default no text is too short.
        parts: Number of files of the raw corpus.
        ranges: Number of ranges of ids.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Mapping[str, Any]], *, parts: int = 1, ranges: int = 1, **section: Any
    ) -> None:
        self.section = CorpusSection(**{"min_characters": 0, "min_letters": 0, "max_line": 10**9} | section)
        folder.mkdir(exist_ok=True)
        self.pool = Pool(folder, Execution(threads=1), EventWriter(None))
        domains = tuple(sorted({GENERAL, *self.section.domains}))
        raw_parts = []
        for number, some in enumerate(np.array_split(np.arange(len(rows)), parts)):
            path = folder / f"part-{number:05d}.parquet"
            write_table(path, [rows[row] for row in some], RAW_SCHEMA)
            raw_parts.append(Part(path.stem, RawPart(path, self.section, domains, ranges), 1))
        self.cleaned = Cleaned.of(self.pool.run("clean", clean_part, raw_parts), self.pool.shared / "numbers.npy")
        self.order = DigestOrder(self.pool, self.cleaned, ranges)
        self.ids = self._ids()

    def _ids(self) -> list[str]:
        ids = [""] * self.order.count
        for part, folder in enumerate(self.cleaned.folders):
            digests = CleanedPart(folder).rows["id"]
            for number, digest in zip(self.cleaned.numbers(part).tolist(), digests.tolist(), strict=True):
                if number < self.order.count:
                    ids[number] = digest.ljust(32, b"\0").hex()
        return ids

    def near_duplicates(self) -> dict[str, str]:
        """Removed id to a kept one."""
        removed = near_duplicates(self.pool, self.cleaned, self.order, self.section.near_duplicates)
        return {self.ids[number]: self.ids[twin] for number, twin in removed.tolist()}

    def twins_across(self, heldout: Sequence[str]) -> set[str]:
        """Ids of those of the held-out texts that resemble one of the others."""
        ids = {text_id(text) for text in heldout}
        sides = np.array([HELDOUT if id_ in ids else KEPT for id_ in self.ids], np.uint8)
        twins = twins_across(self.pool, self.cleaned, sides, self.section.near_duplicates)
        return {self.ids[number] for number in twins}


def removed_of(folder: Path, texts: Sequence[str], spec: MinHash | None = None, **cut: int) -> dict[str, str]:
    """The near-duplicates of some texts: removed id to a kept one."""
    steps = Steps(folder, raw_rows(*texts), near_duplicates=spec or MinHash(), **cut)
    return steps.near_duplicates()
