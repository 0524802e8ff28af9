"""How well near-duplicates were found, by comparing exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

from training.data.text.similarity import Shingles, shingle_sets, similar_documents

_THRESHOLD, _NGRAM = 0.8, 5


def recall_and_precision(corpus: Path, kept: set[int]) -> dict[str, float]:
    """Judge which documents were kept.

    Args:
        corpus: JSON lines with `text`; a document's number is its line's.
        kept: Numbers of the documents that were kept.

    Returns:
        `recall`, the share of documents with a near-duplicate before them that were removed or lost it; `precision`,
        the share of removed documents that are near-duplicates of a kept one; `left`, kept documents that are
        near-duplicates of another kept one.
    """
    sets: list[Shingles] = list(shingle_sets(_texts(corpus), _NGRAM))
    removed = [number for number in range(len(sets)) if number not in kept]
    of_kept = [number for number in range(len(sets)) if number in kept]
    right = similar_documents([sets[number] for number in removed], [-1] * len(removed), _at(sets, of_kept), _THRESHOLD)

    places = range(len(of_kept))
    left = similar_documents([sets[number] for number in of_kept], list(places), _at(sets, of_kept), _THRESHOLD)
    precision = len(right) / len(removed) if removed else math.nan
    found = len(right) / max(1, len(right) + len(left) / 2)
    return {"removed": len(removed), "recall": round(found, 4), "precision": round(precision, 4), "left": len(left)}


def _at(sets: list[Shingles], numbers: list[int]) -> list[Shingles]:
    return [sets[number] for number in numbers]


def _texts(corpus: Path) -> list[str]:
    with corpus.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
