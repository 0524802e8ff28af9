"""The last step of the corpus: a range of ids as parquet files, and what was dropped of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.tables import CORPUS_SCHEMA, ShardWriter
from training.data.text.cleaned_parts import EXAMPLES, EXCERPT, CleanedPart, Example, example_of, first_examples
from training.data.text.digest_order import Range
from training.data.text.heldout import HELDOUT, KEPT
from training.specs.corpus import EXACT, NEAR
from training.specs.statistics import length_bin

SPLITS = {"train": KEPT, "heldout": HELDOUT}


@dataclass(frozen=True)
class WrittenRange:
    """A range of ids to write.

    Attributes:
        unique: File with its texts; see `training.data.text.digest_order.UNIQUE`.
        sides: File with the side of every text of the corpus: 0 for a near-duplicate, `KEPT` or `HELDOUT`, uint8.
        first_number: Number of the range's first text.
    """

    range: Range
    unique: Path
    sides: Path
    first_number: int


def write_range(written: WrittenRange, folder: Path) -> dict[str, Any]:
    """Write both splits of a range, in the order of ids.

    Returns:
        For each split `documents` and `bytes` by domain, and by source as `..._of_sources`, `lengths` by
        bin, and `samples`; `dropped` by reason with `examples`.
    """
    texts = written.range.texts()
    unique = np.load(written.unique)
    sides = np.load(written.sides, mmap_mode="r")[written.first_number : written.first_number + len(unique)]
    ids = _ids(written.range)

    result: dict[str, Any] = {}
    for split, side in SPLITS.items():
        rows = unique["row"][sides == side]
        result[split] = _write_split(folder / split, texts, ids, rows)

    is_copy = np.ones(texts.num_rows, np.bool_)
    is_copy[unique["row"]] = False
    dropped = {EXACT: np.flatnonzero(is_copy), NEAR: unique["row"][sides == 0]}
    examples = [
        example for reason, rows in dropped.items() for example in _examples(texts, ids, np.asarray(rows), reason)
    ]
    return {**result, "dropped": {reason: len(rows) for reason, rows in dropped.items()}, "examples": examples}


def _ids(range_: Range) -> list[str]:
    """Ids (hex) of all pieces of a range, in the order of its texts."""
    ids: list[str] = []
    for part in map(CleanedPart, range_.cleaned.folders):
        digests = np.asarray(part.rows[part.rows_of(range_.number)]["id"]).tobytes()
        ids += [digests[at : at + 32].hex() for at in range(0, len(digests), 32)]
    return ids


def _write_split(folder: Path, texts: pa.Table, ids: list[str], rows: npt.NDArray[Any]) -> dict[str, Any]:
    documents, sizes, lengths = Counter[str](), Counter[str](), Counter[int]()
    of_sources, bytes_of_sources = Counter[str](), Counter[str]()
    samples: list[dict[str, Any]] = []
    with ShardWriter(folder, CORPUS_SCHEMA) as writer:
        for some in np.array_split(rows, max(1, len(rows) // 512)):
            for place, values in zip(some.tolist(), texts.take(pa.array(some)).to_pylist(), strict=True):
                text, domain = values["text"], values["domain"]
                row = {"id": ids[place], **values, "bytes": len(text.encode())}
                writer.add(row, row["bytes"])
                documents[domain] += 1
                sizes[domain] += row["bytes"]
                of_sources[values["source"]] += 1
                bytes_of_sources[values["source"]] += row["bytes"]
                lengths[length_bin(len(text))] += 1
                if len(samples) < EXAMPLES // 2:
                    sample = {name: row[name] for name in ("path", "domain", "bytes")}
                    samples.append({**sample, "excerpt": text[:EXCERPT]})
    return {
        "documents": documents,
        "bytes": sizes,
        "documents_of_sources": of_sources,
        "bytes_of_sources": bytes_of_sources,
        "lengths": lengths,
        "samples": samples,
    }


def _examples(texts: pa.Table, ids: list[str], rows: npt.NDArray[Any], reason: str) -> list[Example]:
    first = sorted(rows.tolist(), key=ids.__getitem__)[: 50 * EXAMPLES]
    values = texts.take(pa.array(first, pa.int64())).to_pylist()
    return first_examples(
        [
            example_of(ids[place], row["text"], row["source"], row["path"], reason)
            for place, row in zip(first, values, strict=True)
        ]
    )
