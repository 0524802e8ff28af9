"""Near-duplicate removal on disk, for a corpus of any size.

Documents that share a band of MinHashes become candidates; the exact similarity of `training.data.text.similarity`
decides. The steps are those of datatrove (Penedo et al., 2024): signatures for each file, equal bands by ranges of
their hashes, clusters by union-find. What follows differs. A cluster is a chain of candidates, whose ends need not
resemble each other. So in each cluster the documents are looked at in the order of their ids, and one is removed only
if it is a near-duplicate of one that was kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from training.data.text.cleaned_parts import BAND, NO_NUMBER, Cleaned, CleanedPart, Numbers
from training.data.text.digest_order import DigestOrder
from training.data.text.similarity import Shingles, jaccard
from training.job.parts import Part, Pool
from training.specs.corpus import MinHash

_BAND_BYTES = 256 * 2**20  # of the entries that are sorted together
_BUCKET_BYTES = 64 * 2**20  # of the candidates' text; their shingles take twice as much
_MEMBERS, _BORDERS, _BUCKETS = "members.npy", "borders.npy", "buckets.npy"
_NUMBERS, _STARTS, _SHINGLES, _REMOVED = "numbers.npy", "starts.npy", "shingles.npy", "removed.npy"


def near_duplicates(pool: Pool, cleaned: Cleaned, order: DigestOrder, spec: MinHash) -> npt.NDArray[Any]:
    """The texts to remove so that no two near-duplicates remain.

    Args:
        pool: Does the work.
        cleaned: The cleaned parts.
        order: The numbers of all texts.
        spec: Words per shingle and threshold.

    Returns:
        Number of each removed text, and of a kept one that it is a near-duplicate of, uint32 [removed, 2].
    """
    entries = sum(len(CleanedPart(folder).bands) for folder in cleaned.folders)
    ranges = max(1, -(-entries * BAND.itemsize // _BAND_BYTES))
    size = sum(cleaned.sizes)
    groups = pool.run(
        "compare bands",
        _find_groups,
        [Part(f"{number:05d}", _HashRange(cleaned, number, ranges), size // ranges) for number in range(ranges)],
    )

    candidates, bucket_of, count = _clusters([finished.folder for finished in groups], order)
    shared = pool.shared
    np.save(shared / "candidates.npy", candidates)
    np.save(shared / "bucket_of.npy", bucket_of)
    by_bucket = pool.run(
        "cluster candidates",
        _sort_groups,
        [Part(finished.folder.name, _Groups(finished.folder, shared, count), size // ranges) for finished in groups],
    )
    shingles = pool.run(
        "read candidates",
        _write_shingles,
        [
            Part(f"{number:05d}", _Candidates(cleaned, number, shared, count, spec.ngram), part_size)
            for number, part_size in enumerate(cleaned.sizes)
        ],
    )
    sources = tuple(tuple(finished.folder for finished in step) for step in (by_bucket, shingles))
    compared = pool.run(
        "remove near-duplicates",
        _remove,
        [
            Part(f"{number:05d}", _Bucket(sources[0], sources[1], number, spec.threshold), size // max(count, 1))
            for number in range(count)
        ],
    )
    return np.concatenate([np.empty((0, 2), np.uint32), *(np.load(done.folder / _REMOVED) for done in compared)])


@dataclass(frozen=True)
class _HashRange:
    """A range of the hashes of bands; `count` ranges are all."""

    cleaned: Cleaned
    number: int
    count: int


def _find_groups(hashes: _HashRange, folder: Path) -> dict[str, Any]:
    """Write the texts that share a band: their numbers, group after group, and where each group begins."""
    keys, numbers = [], []
    low, high = (
        np.uint64(min(border * 2**64 // hashes.count, 2**64 - 1)) for border in (hashes.number, hashes.number + 1)
    )
    for part, path in enumerate(hashes.cleaned.folders):
        bands = CleanedPart(path).bands
        end = len(bands) if hashes.number + 1 == hashes.count else int(np.searchsorted(bands["hash"], high))
        some = np.asarray(bands[int(np.searchsorted(bands["hash"], low)) : end])
        number = hashes.cleaned.numbers(part)[some["row"]]
        keys.append(some["hash"][number != NO_NUMBER])
        numbers.append(number[number != NO_NUMBER])

    key, member = np.concatenate(keys), np.concatenate(numbers)
    order = np.lexsort((member, key))
    key, member = key[order], member[order]
    borders = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1], [True]])) if len(key) else np.zeros(1, int)
    sizes = np.diff(borders)
    np.save(folder / _MEMBERS, member[np.repeat(sizes > 1, sizes)])
    np.save(folder / _BORDERS, np.concatenate([[0], np.cumsum(sizes[sizes > 1])]))
    return {"groups": int((sizes > 1).sum())}


def _clusters(groups: Sequence[Path], order: DigestOrder) -> tuple[Numbers, npt.NDArray[np.uint32], int]:
    """Candidates, joined where they share a band, in buckets that are compared at once.

    Returns:
        The numbers of all candidates, in their order, uint32 [candidates]; the bucket of each, uint32 [candidates];
        and how many buckets there are. A cluster lies in one bucket, and no bucket is larger than one cluster has to
        be.
    """
    candidates = np.empty(0, np.uint32)
    for folder in groups:
        candidates = np.union1d(candidates, np.load(folder / _MEMBERS, mmap_mode="r"))
    if not len(candidates):
        return candidates, candidates, 0

    pairs = [_neighbours(folder) for folder in groups]
    left, right = (np.searchsorted(candidates, np.concatenate([pair[side] for pair in pairs])) for side in (0, 1))
    matrix = coo_matrix((np.ones(len(left), np.bool_), (left, right)), shape=(len(candidates),) * 2)
    clusters, cluster_of = connected_components(matrix, directed=False)

    sizes = np.bincount(cluster_of, order.column("bytes")[candidates], minlength=clusters)
    first_member = np.full(clusters, len(candidates))
    np.minimum.at(first_member, cluster_of, np.arange(len(candidates)))
    in_order = np.argsort(first_member)
    filled = np.cumsum(sizes[in_order])
    bucket = np.empty(clusters, np.uint32)
    bucket[in_order] = (filled - sizes[in_order]) // _BUCKET_BYTES
    _, bucket_of = np.unique(bucket[cluster_of], return_inverse=True)
    return candidates, bucket_of.astype(np.uint32), int(bucket_of.max()) + 1


def _neighbours(folder: Path) -> tuple[Numbers, Numbers]:
    """Every member of a group but the last, and the one after it."""
    members, borders = np.load(folder / _MEMBERS, mmap_mode="r"), np.load(folder / _BORDERS)
    is_last = np.zeros(len(members), np.bool_)
    is_last[borders[1:] - 1] = True
    left = np.flatnonzero(~is_last)
    return members[left], members[left + 1]


@dataclass(frozen=True)
class _Groups:
    """What `_find_groups` wrote for one range of hashes; `count` is the number of buckets."""

    folder: Path
    shared: Path
    count: int


def _sort_groups(groups: _Groups, folder: Path) -> dict[str, Any]:
    """Write groups in the order of their buckets, and where each bucket begins."""
    members, borders = np.load(groups.folder / _MEMBERS), np.load(groups.folder / _BORDERS)
    bucket = _buckets_of(groups.shared, members[borders[:-1]])
    order = np.argsort(bucket, kind="stable")
    sizes = np.diff(borders)[order]
    borders_then = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(borders_then[-1]) + np.repeat(borders[:-1][order] - borders_then[:-1], sizes)
    np.save(folder / _MEMBERS, members[places])
    np.save(folder / _BORDERS, borders_then)
    np.save(folder / _BUCKETS, np.searchsorted(bucket[order], np.arange(groups.count + 1)))
    return {}


def _buckets_of(shared: Path, numbers: Numbers) -> npt.NDArray[np.uint32]:
    """The bucket of each of some candidates."""
    candidates = np.load(shared / "candidates.npy", mmap_mode="r")
    buckets: npt.NDArray[np.uint32] = np.load(shared / "bucket_of.npy", mmap_mode="r")
    return np.asarray(buckets[np.searchsorted(candidates, numbers)])


@dataclass(frozen=True)
class _Candidates:
    """The candidates of one cleaned part; `count` is the number of buckets."""

    cleaned: Cleaned
    part: int
    shared: Path
    count: int
    ngram: int


def _write_shingles(candidates: _Candidates, folder: Path) -> dict[str, Any]:
    """Write the shingles of a part's candidates in the order of their buckets, and where each bucket begins."""
    part = CleanedPart(candidates.cleaned.folders[candidates.part])
    numbers = candidates.cleaned.numbers(candidates.part)
    all_candidates = np.load(candidates.shared / "candidates.npy", mmap_mode="r")
    is_candidate = np.isin(numbers, all_candidates)

    sets = [shingles for _, shingles in part.shingles(is_candidate, candidates.ngram)]
    own = numbers[is_candidate]
    bucket = _buckets_of(candidates.shared, own)
    order = np.argsort(bucket, kind="stable")
    in_order = [sets[place] for place in order]
    np.save(folder / _NUMBERS, own[order])
    np.save(folder / _STARTS, np.cumsum([0, *map(len, in_order)]))
    np.save(folder / _SHINGLES, np.concatenate([np.empty(0, np.uint64), *in_order]))
    np.save(folder / _BUCKETS, np.searchsorted(bucket[order], np.arange(candidates.count + 1)))
    return {}


@dataclass(frozen=True)
class _Bucket:
    """Clusters of candidates: folders with their groups, and with their shingles."""

    groups: tuple[Path, ...]
    shingles: tuple[Path, ...]
    number: int
    threshold: float


def _remove(bucket: _Bucket, folder: Path) -> dict[str, Any]:
    """Write the numbers of near-duplicates, each with a kept text that it is like."""
    sets: dict[int, Shingles] = {}
    for path in bucket.shingles:
        first, end = np.load(path / _BUCKETS)[bucket.number : bucket.number + 2].tolist()
        numbers, starts = np.load(path / _NUMBERS), np.load(path / _STARTS)
        shingles = np.load(path / _SHINGLES, mmap_mode="r")
        for place in range(first, end):
            sets[int(numbers[place])] = shingles[starts[place] : starts[place + 1]]

    groups_of: dict[int, list[int]] = {}
    count = 0
    for path in bucket.groups:
        first, end = np.load(path / _BUCKETS)[bucket.number : bucket.number + 2].tolist()
        borders, members = np.load(path / _BORDERS), np.load(path / _MEMBERS, mmap_mode="r")
        for group in range(first, end):
            for number in members[borders[group] : borders[group + 1]].tolist():
                groups_of.setdefault(number, []).append(count)
            count += 1

    kept = _Kept(sets, groups_of, bucket.threshold)
    removed = [(number, twin) for number in sorted(groups_of) if (twin := kept.twin_or_keep(number)) is not None]
    np.save(folder / _REMOVED, np.array(removed, np.uint32).reshape(-1, 2))
    return {"removed": len(removed)}


class _Kept:
    """Texts that stay, by the groups that share a band.

    Only these enter the groups, so a group stays small however many copies of one text there are.
    """

    def __init__(self, sets: dict[int, Shingles], groups_of: dict[int, list[int]], threshold: float) -> None:
        self._sets, self._groups_of, self._threshold = sets, groups_of, threshold
        self._kept: dict[int, list[int]] = {}

    def twin_or_keep(self, number: int) -> int | None:
        """A kept text that is as similar as the threshold, those with most bands in common first; None keeps this one.

        Args:
            number: Greater than those before.
        """
        groups = self._groups_of[number]
        shared = Counter[int]()
        for group in groups:
            shared.update(self._kept.get(group, ()))

        shingles = self._sets[number]
        for other, _ in sorted(shared.items(), key=lambda pair: (-pair[1], pair[0])):
            if jaccard(shingles, self._sets[other], self._threshold) >= self._threshold:
                return other
        for group in groups:
            self._kept.setdefault(group, []).append(number)
        return None
