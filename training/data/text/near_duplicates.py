"""Near-duplicate removal: MinHash (Broder 1997) and banding (Leskovec et al., Mining of Massive Datasets, 3.4) find the
candidates, and the exact similarity of `training.data.text.similarity` decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from training.data.text.quiet_daft import daft
from training.data.text.similarity import Shingles, jaccard, shingle_sets, similar_documents
from training.specs.corpus import MinHash

BandKeys = npt.NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BATCH_SHINGLES = 2**19  # 4 MB for each array of one permutation
col = daft.col


def near_duplicates(documents: daft.DataFrame, spec: MinHash) -> dict[str, str]:
    """The documents to remove so that no two near-duplicates remain.

    In the order of ids, a document is removed if it is a near-duplicate of one that was kept, so the result does not
    depend on the order of rows, and in a chain of twins nothing is removed for the sake of one that was removed itself.
    Only documents that share a band of MinHashes with another one are compared.

    Args:
        documents: Columns `id` (unique, a digest of the text) and `text`.
        spec: Permutations, words per shingle and threshold.

    Returns:
        Removed id to a kept id that it is a near-duplicate of.
    """
    ids, keys = _band_keys_of(documents, spec)
    crowded = _crowded(keys)
    keys = keys[crowded]
    at = {ids[row]: number for number, row in enumerate(np.flatnonzero(crowded))}

    kept = _Kept()
    removed: dict[str, str] = {}
    texts = ((id_, text) for id_, text in _texts(documents) if id_ in at)
    for id_, shingles in _sets(texts, spec):
        twin = kept.twin(keys[at[id_]], shingles, spec.threshold)
        if twin is None:
            kept.add(id_, keys[at[id_]], shingles)
        else:
            removed[id_] = twin
    return removed


def twins_across(heldout: daft.DataFrame, train: daft.DataFrame, spec: MinHash) -> dict[str, str]:
    """Held-out documents that are near-duplicates of a training document, compared exactly.

    Bands miss a few pairs of a very large corpus. Two that lie on the same side do no harm; held-out text must not be
    among them.

    Args:
        heldout: Columns `id` and `text`.
        train: The same.
        spec: Words per shingle and threshold.

    Returns:
        Held-out id to a training id.
    """
    queries = dict(_sets(_texts(heldout), spec))
    rows: list[str] = []

    def stream() -> Iterator[Shingles]:
        for id_, shingles in _sets(_texts(train), spec):
            rows.append(id_)
            yield shingles

    found = similar_documents(list(queries.values()), [-1] * len(queries), stream(), spec.threshold)
    ids = list(queries)
    return {ids[query]: rows[match.row] for query, match in found.items()}


class _Kept:
    """Documents that stay, by the bands of their MinHashes.

    Only these enter the bands, so a band stays small however many copies of one text there are.
    """

    def __init__(self) -> None:
        self._documents: list[tuple[str, Shingles]] = []
        self._bands: dict[tuple[int, int], list[int]] = {}

    def twin(self, keys: BandKeys, shingles: Shingles, threshold: float) -> str | None:
        """A kept document that is at least as similar as the threshold; those with most bands in common come first."""
        shared = Counter[int]()
        for key in enumerate(keys.tolist()):
            shared.update(self._bands.get(key, ()))
        for number, _ in sorted(shared.items(), key=lambda pair: (-pair[1], pair[0])):
            id_, other = self._documents[number]
            if jaccard(shingles, other, threshold) >= threshold:
                return id_
        return None

    def add(self, id_: str, keys: BandKeys, shingles: Shingles) -> None:
        """Keep a document."""
        for key in enumerate(keys.tolist()):
            self._bands.setdefault(key, []).append(len(self._documents))
        self._documents.append((id_, shingles))


def band_keys(sets: list[Shingles], spec: MinHash) -> BandKeys:
    """A hash of the MinHashes of every band of every document.

    The permutations are x -> a x + b modulo 2**64 with odd a; shingles are hashes already.

    Args:
        sets: Shingles of the documents; none is empty.

    Returns:
        Shape (documents, bands).
    """
    rows, bands = spec.rows_and_bands
    coefficients = np.frombuffer(hashlib.shake_128(b"minhash").digest(16 * rows * bands), "<u8").reshape(-1, 2)
    shingles = np.concatenate(sets)
    starts = np.cumsum([0, *(len(one) for one in sets[:-1])])

    keys = np.zeros((len(sets), bands), np.uint64)
    for number, (factor, offset) in enumerate(coefficients):
        lowest = np.minimum.reduceat(shingles * (factor | np.uint64(1)) + offset, starts)
        keys[:, number // rows] = keys[:, number // rows] * _FACTOR + lowest
    return keys


def _band_keys_of(documents: daft.DataFrame, spec: MinHash) -> tuple[list[str], BandKeys]:
    """Ids in their order, and the band keys of each."""
    _, bands = spec.rows_and_bands
    ids: list[str] = []
    found = [np.empty((0, bands), np.uint64)]
    batch: list[Shingles] = []
    size = 0
    for id_, shingles in _sets(_texts(documents), spec):
        ids.append(id_)
        batch.append(shingles)
        size += len(shingles)
        if size >= _BATCH_SHINGLES:
            found.append(band_keys(batch, spec))
            batch, size = [], 0
    if batch:
        found.append(band_keys(batch, spec))
    return ids, np.concatenate(found)


def _crowded(keys: BandKeys) -> npt.NDArray[np.bool_]:
    """Which documents share a band with another one."""
    crowded = np.zeros(len(keys), np.bool_)
    for band in keys.T:
        _, places, counts = np.unique(band, return_inverse=True, return_counts=True)
        crowded |= counts[places] > 1
    return crowded


def _texts(documents: daft.DataFrame) -> Iterator[tuple[str, str]]:
    for batch in documents.select("id", "text").sort("id").to_arrow_iter():
        for row in batch.to_pylist():
            yield row["id"], row["text"]


def _sets(texts: Iterator[tuple[str, str]], spec: MinHash) -> Iterator[tuple[str, Shingles]]:
    ids: list[str] = []

    def remembered() -> Iterator[str]:
        for id_, text in texts:
            ids.append(id_)
            yield text

    for shingles in shingle_sets(remembered(), spec.ngram):  # takes one text for each set that it gives
        yield ids.pop(), shingles
