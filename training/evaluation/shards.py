"""Measures `packed_shards` against the corpus, the tokenizer and the exclusions.

Texts and tokens are worked on part by part in a pool of processes. Beside it some 300 bytes for each document are held,
and the packing plans of one context.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.tables import read_rows
from training.data.text.cut_documents import GROUP_BYTES, assignment
from training.data.text.documents import Selection, Split
from training.data.tokens.byte_bpe import TOKENIZER_FILE
from training.data.tokens.packing import PackingPlan, plan, size_of_plan, whole
from training.data.tokens.shards import Int64, TokenShards
from training.evaluation.measurement import Measurement
from training.evaluation.shard_documents import (
    COMPARED,
    EXCLUDED,
    CutGroup,
    Excluded,
    Judged,
    Kind,
    Names,
    Range,
    SplitFile,
    measure_cut,
    measure_file,
    read_digests,
    read_ids,
    search,
)
from training.job.context import InputArtifact
from training.job.parts import Part, Pool
from training.specs.packed_shards import PackedShardsSection

SAMPLE_BYTES = 20 * 2**20
PLANNED_AT_ONCE = 1 << 20  # documents; a plan takes some 50 bytes for each
_RANGE_TOKENS = 16 * 2**20
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Expected:
    """What the shards should and should not hold.

    Attributes:
        train: The training split.
        heldout: The other one.
        is_excluded: Which rows of the training split hold items of the evaluation sets, bool [rows].
        trained: Which of its documents to train on.
        ids: Of those that were not cut, S32 [documents].
        step: Every so many documents are tokenized again.
    """

    train: Split
    heldout: Split
    is_excluded: Bools
    trained: Selection
    ids: Names
    step: int


@dataclass(frozen=True)
class _Measured:
    """What the parts found.

    Attributes:
        compared: Number of documents that were tokenized again.
        faults: Id, differing, expected and found tokens of each that differs.
        cut_ids: Ids of the documents to train on that were cut, S32 [documents].
        excluded: Documents that hold items of the evaluation sets, and those that are held out. What was cut is there
            in parts and whole: shards hold it whole.
    """

    compared: int
    faults: Sequence[tuple[str, int, int, int]]
    cut_ids: Names
    excluded: Excluded


def measure_shards(
    artifact: InputArtifact,
    corpus: InputArtifact,
    tokenizer: InputArtifact,
    evaluation_sets: InputArtifact,
    contexts: Sequence[int],
    pool: Pool,
) -> Measurement:
    """Sizes, packing at every context, lost tokens, and documents that should have been left out.

    Args:
        artifact: The shards.
        corpus: What they were made of.
        tokenizer: With which.
        evaluation_sets: Their exclusions are left out.
        contexts: Tokens per row that packing is measured for.
        pool: Works on the parts.
    """
    measurement = Measurement()
    section = PackedShardsSection.model_validate(artifact.manifest.section)
    shards = TokenShards(artifact.folder)
    expected = _expected(corpus, evaluation_sets, section.exclude_domains)
    measurement.add("tokens", int(shards.lengths.sum()), shards.meta.documents)
    measurement.add("documents", shards.meta.documents, shards.meta.documents)

    names = np.frombuffer(shards.ids.tobytes(), "S32")
    order = np.argsort(names, kind="stable")
    names = names[order]
    measured = _measure_texts(artifact.folder, tokenizer, expected, names, order, pool)
    lost = _against_corpus(measurement, shards, expected, measured, names, order)

    lost_in_plans, efficiency = _packing(measurement, shards, contexts)
    measurement.add("packing_efficiency", efficiency, len(contexts))
    measurement.add("tokens_lost", lost + lost_in_plans, int(shards.lengths.sum()))

    _contaminated(measurement, artifact.folder, shards, names, measured.excluded, pool)
    return measurement


def _packing(measurement: Measurement, shards: TokenShards, contexts: Sequence[int]) -> tuple[int, float]:
    """Tokens that the plans lose, and the lowest share of places that they use."""
    lost, efficiencies = 0, []
    for context in contexts:
        lost_in_plans = _lost_in_plans(shards, context)
        if lost_in_plans:
            measurement.fail("tokens_lost", f"context {context}", lost_in_plans, reason="the packing plan")
        lost += lost_in_plans
        sizes = [
            size_of_plan(shards.lengths[shards.source == number], context) for number in range(len(shards.sources))
        ]
        rows = sum(size.rows for size in sizes)
        efficiencies.append(sum(size.used for size in sizes) / max(rows * context, 1))
    return lost, min(efficiencies)


def _lost_in_plans(shards: TokenShards, context: int) -> int:
    """Tokens that the packing of all documents loses or repeats; see `uncovered`.

    Some documents after the others are packed by themselves, so that memory does not grow with the shards. The rows
    that are counted without a plan are those of the plan.
    """
    lost = 0
    for first in range(0, shards.meta.documents, PLANNED_AT_ONCE):
        chosen = slice(first, first + PLANNED_AT_ONCE)
        lengths, source = shards.lengths[chosen], shards.source[chosen]
        offsets = shards.offsets[first : first + len(lengths) + 1] - shards.offsets[first]

        plans = []
        for number in range(len(shards.sources)):
            documents = np.flatnonzero(source == number)
            plans.append(plan(whole(lengths, documents), context))
            size = size_of_plan(lengths[documents], context)
            assert (size.rows, size.used) == (plans[-1].rows, plans[-1].used), "rows are counted as they are packed"
        lost += uncovered(plans, offsets)
    return lost


def uncovered(plans: list[PackingPlan], offsets: Int64) -> int:
    """Tokens that no piece holds or more than one, plus tokens beyond a row's end.

    A piece takes one place more than it has tokens, for the token before it.

    Args:
        plans: Together they should hold all documents.
        offsets: Where each document begins, int64 [documents + 1].
    """
    start = np.concatenate([offsets[packing.document] + packing.start for packing in plans])
    end = start + np.concatenate([packing.length for packing in plans])

    # In the order of their starts, each piece should begin where the one before ends.
    order = np.argsort(start, kind="stable")
    borders = np.abs(np.append(start[order], offsets[-1]) - np.concatenate([[0], end[order]])).sum()

    beyond = 0
    for packing in plans:
        if packing.rows:
            row_sizes = np.add.reduceat(packing.length + 1, packing.row_offsets[:-1])
            beyond += int(np.maximum(row_sizes - packing.context, 0).sum())
    return int(borders) + beyond


def _expected(corpus: InputArtifact, evaluation_sets: InputArtifact, excluded_domains: tuple[str, ...]) -> _Expected:
    train, heldout = (Split(corpus.folder / name) for name in ("train", "heldout"))
    rows = train.table(["id", "domain", "bytes"])
    ids = {row["id"] for row in read_rows(evaluation_sets.folder / "exclusions.parquet", ["id"])}
    is_excluded = pc.is_in(rows["id"], value_set=pa.array(sorted(ids), pa.large_string())).to_numpy()
    in_excluded_domain = pc.is_in(rows["domain"], value_set=pa.array(excluded_domains, pa.large_string())).to_numpy()
    chosen = ~is_excluded & ~in_excluded_domain

    size = int(rows["bytes"].to_numpy()[chosen].sum())
    trained = Selection(train, chosen)
    every = b"".join(bytes.fromhex("".join(some.to_pylist())) for some in rows["id"].chunks)
    return _Expected(
        train=train,
        heldout=heldout,
        is_excluded=is_excluded,
        trained=trained,
        ids=np.frombuffer(every, "S32")[trained.whole],
        step=max(1, -(-size // SAMPLE_BYTES)),
    )


def _measure_texts(
    shards: Path, tokenizer: InputArtifact, expected: _Expected, names: Names, order: Int64, pool: Pool
) -> _Measured:
    """Compare the texts with the shards: all of them, or every missing one and an even sample."""
    shared = pool.shared
    judged = Judged(
        shards, tokenizer.folder / TOKENIZER_FILE, shared / "names.npy", shared / "order.npy", expected.step
    )
    np.save(judged.names, names)
    np.save(judged.order, order)

    train_roles = np.where(expected.is_excluded, EXCLUDED, 0).astype(np.int8)
    is_compared = ~np.isin(expected.ids, names) | (np.arange(len(expected.ids)) % expected.step == 0)
    train_roles[np.flatnonzero(expected.trained.whole)[is_compared]] = COMPARED
    heldout = Selection(expected.heldout)
    heldout_roles = np.full(len(heldout.whole), EXCLUDED, np.int8)

    splits: list[tuple[str, Split, npt.NDArray[np.int8], dict[Kind, Selection]]] = [
        (
            "train",
            expected.train,
            train_roles,
            {"trained": expected.trained, "excluded": Selection(expected.train, expected.is_excluded)},
        ),
        ("heldout", expected.heldout, heldout_roles, {"excluded": heldout}),
    ]
    parts: list[Part[SplitFile]] = []
    for name, split, roles, selections in splits:
        parts += _files(judged, name, split, roles, selections, shared)
    files = pool.run("measure packed_shards", measure_file, parts)

    cut_parts: list[Part[CutGroup]] = []
    for name, _, _, selections in splits:
        folders = tuple(done.folder for part, done in zip(parts, files, strict=True) if part.name.startswith(name))
        cut_parts += _groups(judged, name, selections, folders)
    cut = pool.run("measure documents that were cut", measure_cut, cut_parts)

    every = [*files, *cut]
    of_kind = {
        kind: [done.folder for part, done in zip(cut_parts, cut, strict=True) if part.argument.kind == kind]
        for kind in ("trained", "excluded")
    }
    return _Measured(
        compared=sum(done.result["compared"] for done in every),
        faults=[tuple(fault) for done in every for fault in done.result["faults"]],
        cut_ids=np.concatenate([np.empty(0, "S32"), *map(read_ids, of_kind["trained"])]),
        excluded=Excluded.concatenated([*(done.folder for done in files), *of_kind["excluded"]]),
    )


def _files(
    judged: Judged,
    name: str,
    split: Split,
    roles: npt.NDArray[np.int8],
    selections: dict[Kind, Selection],
    shared: Path,
) -> list[Part[SplitFile]]:
    """The files of a split, with what is done with their rows."""
    np.save(shared / f"{name}_roles.npy", roles)
    groups = []
    for kind, selection in selections.items():
        path, some = shared / f"{name}_{kind}.npy", selection.groups(GROUP_BYTES)
        np.save(path, assignment(selection, some))
        groups.append((kind, path, len(some)))

    parts, first_row = [], 0
    for path, size in split.files():
        file = SplitFile(judged, path, first_row, shared / f"{name}_roles.npy", tuple(groups))
        parts.append(Part(f"{name}-{path.stem}", file, size, str(path)))
        first_row += pq.read_metadata(path).num_rows
    return parts


def _groups(
    judged: Judged, name: str, selections: dict[Kind, Selection], folders: tuple[Path, ...]
) -> list[Part[CutGroup]]:
    """The documents of a split that were cut, in groups."""
    return [
        Part(f"{name}-{kind}-{number:05d}", CutGroup(judged, kind, folders, number, group.runs), group.size)
        for kind, selection in selections.items()
        for number, group in enumerate(selection.groups(GROUP_BYTES))
    ]


def _against_corpus(
    measurement: Measurement,
    shards: TokenShards,
    expected: _Expected,
    measured: _Measured,
    names: Names,
    order: Int64,
) -> int:
    """Tokens by which the shards and the tokenized corpus differ.

    Args:
        measurement: Gets an item for each document that differs.
        shards: Their ids are counted too.
        expected: What they should hold.
        measured: What the parts found.
        names: The shards' ids, sorted, S32 [documents].
        order: The document of each of them, int64 [documents].
    """
    lost = 0
    for id_, differing, expected_tokens, found in measured.faults:
        lost += differing
        measurement.fail(
            "tokens_lost",
            id_,
            differing,
            expected=expected_tokens,
            found=found,
            reason="differs from the tokenized text",
        )
    if expected.step > 1:
        measurement.notes.append(
            f"{measured.compared:,} of {expected.trained.count:,} documents were tokenized again and compared, every "
            f"{expected.step}th by digest; the number and the ids of all were compared"
        )

    wanted = np.concatenate([expected.ids, measured.cut_ids])
    is_again = np.concatenate([[False], names[1:] == names[:-1]])
    surplus = np.sort(order[is_again | ~np.isin(names, wanted)])
    for index in surplus.tolist():
        measurement.fail(
            "tokens_lost",
            shards.ids[index].tobytes().hex(),
            float(shards.lengths[index]),
            reason="not a document of the corpus to train on, or there twice",
        )
    return lost + int(shards.lengths[surplus].sum())


def _contaminated(
    measurement: Measurement, folder: Path, shards: TokenShards, names: Names, excluded: Excluded, pool: Pool
) -> None:
    """Record the excluded and held-out documents in the shards: those with such an id, or with the same tokens."""
    wanted = pool.shared / "excluded"
    wanted.mkdir(exist_ok=True)
    excluded.write(wanted)
    starts = np.arange(0, max(shards.meta.tokens, 1), _RANGE_TOKENS)
    borders = np.unique([*np.searchsorted(shards.offsets[:-1], starts), shards.meta.documents])
    parts = [
        Part(f"{number:05d}", Range(folder, wanted, first, end), 2 * int(shards.lengths[first:end].sum()))
        for number, (first, end) in enumerate(itertools.pairwise(borders.tolist()))
    ]
    digests = [read_digests(done.folder) for done in pool.run("search what is excluded", search, parts)]

    is_there = np.isin(excluded.ids, names) | np.isin(
        excluded.digests, np.concatenate([excluded.digests[:0], *digests])
    )
    for place in np.flatnonzero(is_there).tolist():
        id_ = excluded.ids[place].ljust(32, b"\0").hex()  # numpy cuts off zeros at the end
        measurement.fail("contaminated_documents", id_, 1.0, tokens=int(excluded.lengths[place]))
    measurement.add("contaminated_documents", int(is_there.sum()), len(is_there))
