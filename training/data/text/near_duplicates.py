"""Near-duplicate removal.

MinHash (Broder, "On the Resemblance and Containment of Documents", 1997) and banding (Leskovec et al., "Mining of
Massive Datasets", section 3.4) find the candidates. The exact similarity of `training.data.text.similarity` decides.
"""

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

    Documents are looked at in the order of their ids, so the result does not depend on the order of rows. A document is
    removed if it is a near-duplicate of one that was kept; a removed one removes no other. Only documents that share a
    band of MinHashes with another one are compared.

    Args:
        documents: Columns `id` (unique, a digest of the text) and `text`.
        spec: Permutations, words per shingle and threshold.

    Returns:
        Removed id to a kept id that it is a near-duplicate of.
    """
    ids, keys = _band_keys_of(documents, spec)
    is_candidate = _shares_a_band(keys)
    keys = keys[is_candidate]
    places = {ids[row]: place for place, row in enumerate(np.flatnonzero(is_candidate))}

    # The texts are read a second time: all shingles at once would not fit into memory.
    kept = _Kept()
    removed: dict[str, str] = {}
    candidates = ((id_, text) for id_, text in _texts(documents) if id_ in places)
    for id_, shingles in _sets(candidates, spec):
        twin = kept.twin(keys[places[id_]], shingles, spec.threshold)
        if twin is None:
            kept.add(id_, keys[places[id_]], shingles)
        else:
            removed[id_] = twin
    return removed


def twins_across(heldout: daft.DataFrame, train: daft.DataFrame, spec: MinHash) -> dict[str, str]:
    """Held-out documents that are near-duplicates of a training document, compared exactly.

    Bands miss a few pairs of a very large corpus. A pair on one side of the split does no harm; a pair across it would
    let a model be tested on what it has read.

    Args:
        heldout: Columns `id` and `text`.
        train: The same.
        spec: Words per shingle and threshold.

    Returns:
        Held-out id to a training id.
    """
    queries = dict(_sets(_texts(heldout), spec))
    train_ids: list[str] = []

    def stream() -> Iterator[Shingles]:
        for id_, shingles in _sets(_texts(train), spec):
            train_ids.append(id_)
            yield shingles

    matches = similar_documents(list(queries.values()), [-1] * len(queries), stream(), spec.threshold)
    heldout_ids = list(queries)
    return {heldout_ids[query]: train_ids[match.row] for query, match in matches.items()}


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
        sets: Shingles of the documents, uint64 [shingles] each; none is empty.
        spec: Its rows and bands.

    Returns:
        uint64 [documents, bands].
    """
    rows, bands = spec.rows_and_bands
    coefficients = np.frombuffer(hashlib.shake_128(b"minhash").digest(16 * rows * bands), "<u8").reshape(-1, 2)
    shingles = np.concatenate(sets)
    starts = np.cumsum([0, *map(len, sets[:-1])])

    keys = np.zeros((len(sets), bands), np.uint64)
    for number, (factor, offset) in enumerate(coefficients):
        lowest = np.minimum.reduceat(shingles * (factor | np.uint64(1)) + offset, starts)
        keys[:, number // rows] = keys[:, number // rows] * _FACTOR + lowest
    return keys


def _band_keys_of(documents: daft.DataFrame, spec: MinHash) -> tuple[list[str], BandKeys]:
    """Ids in their order, and the band keys of each, uint64 [documents, bands]."""
    _, bands = spec.rows_and_bands
    ids: list[str] = []
    keys = [np.empty((0, bands), np.uint64)]

    batch: list[Shingles] = []
    size = 0
    for id_, shingles in _sets(_texts(documents), spec):
        ids.append(id_)
        batch.append(shingles)
        size += len(shingles)
        if size >= _BATCH_SHINGLES:
            keys.append(band_keys(batch, spec))
            batch, size = [], 0
    if batch:
        keys.append(band_keys(batch, spec))
    return ids, np.concatenate(keys)


def _shares_a_band(keys: BandKeys) -> npt.NDArray[np.bool_]:
    """Which documents share a band with another one, bool [documents]."""
    shares = np.zeros(len(keys), np.bool_)
    for band in keys.T:
        _, places, counts = np.unique(band, return_inverse=True, return_counts=True)
        shares |= counts[places] > 1
    return shares


def _texts(documents: daft.DataFrame) -> Iterator[tuple[str, str]]:
    for batch in documents.select("id", "text").sort("id").to_arrow_iter():
        for row in batch.to_pylist():
            yield row["id"], row["text"]


def _sets(texts: Iterator[tuple[str, str]], spec: MinHash) -> Iterator[tuple[str, Shingles]]:
    """The shingles of every text, with its id."""
    ids: list[str] = []

    def texts_alone() -> Iterator[str]:
        for id_, text in texts:
            ids.append(id_)
            yield text

    # `shingle_sets` takes one text for each set that it gives, so the last id is the set's.
    for shingles in shingle_sets(texts_alone(), spec.ngram):
        yield ids.pop(), shingles
