"""Measures `packed_shards` against the corpus, the tokenizer and the exclusions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from training.data.sources.provenance import part_of
from training.data.tables import read_rows
from training.data.text.cut_documents import cut_documents
from training.data.text.documents import Document, Selection, Split, batches
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.data.tokens.packing import PackingPlan, plan, size_of_plan, whole
from training.data.tokens.shards import Int64, TokenShards
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.specs.packed_shards import PackedShardsSection
from training.specs.tokenizer import END_OF_TEXT

SAMPLE_BYTES = 20 * 2**20
PLANNED_AT_ONCE = 1 << 20  # documents; a plan takes some 50 bytes for each
Tokens = npt.NDArray[np.integer]
Names = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class _Expected:
    """What the shards should and should not hold.

    Attributes:
        train: The training split.
        trained: Which of its documents to train on.
        ids: Of those that were not cut, S32 [documents].
        bytes: Of all their texts, about.
        excluded: Lists of documents that hold items of the evaluation sets, and of those that are held out. What was
            cut is there in parts and whole: shards hold it whole.
    """

    train: Split
    trained: Selection
    ids: Names
    bytes: int
    excluded: tuple[Iterable[Document], ...]


def measure_shards(
    artifact: InputArtifact,
    corpus: InputArtifact,
    tokenizer: InputArtifact,
    evaluation_sets: InputArtifact,
    contexts: Sequence[int],
    scratch: Path,
) -> Measurement:
    """Sizes, packing at every context, lost tokens, and documents that should have been left out.

    Args:
        artifact: The shards.
        corpus: What they were made of.
        tokenizer: With which.
        evaluation_sets: Their exclusions are left out.
        contexts: Tokens per row that packing is measured for.
        scratch: Folder for the parts of documents that were cut.
    """
    measurement = Measurement()
    section = PackedShardsSection.model_validate(artifact.manifest.section)
    shards = TokenShards(artifact.folder)
    plain = load_plain(tokenizer.folder / TOKENIZER_FILE)
    expected = _expected(corpus, evaluation_sets, section.exclude_domains, scratch)
    measurement.add("tokens", int(shards.lengths.sum()), shards.meta.documents)
    measurement.add("documents", shards.meta.documents, shards.meta.documents)

    lost = _against_corpus(measurement, shards, plain, expected, scratch / "trained")
    efficiencies = []
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
    measurement.add("packing_efficiency", min(efficiencies), len(efficiencies))
    measurement.add("tokens_lost", lost, int(shards.lengths.sum()))

    _contaminated(measurement, shards, plain, expected.excluded)
    return measurement


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


def _expected(
    corpus: InputArtifact, evaluation_sets: InputArtifact, excluded_domains: tuple[str, ...], scratch: Path
) -> _Expected:
    train, heldout = (Split(corpus.folder / name) for name in ("train", "heldout"))
    rows = train.table(["id", "domain", "bytes"])
    ids = {row["id"] for row in read_rows(evaluation_sets.folder / "exclusions.parquet", ["id"])}
    is_excluded = pc.is_in(rows["id"], value_set=pa.array(sorted(ids), pa.large_string())).to_numpy()
    in_excluded_domain = pc.is_in(rows["domain"], value_set=pa.array(excluded_domains, pa.large_string())).to_numpy()
    chosen = ~is_excluded & ~in_excluded_domain

    size = int(rows["bytes"].to_numpy()[chosen].sum())
    parts = (Selection(train, is_excluded, join=False), Selection(heldout, join=False))
    trained = Selection(train, chosen)
    digests = b"".join(bytes.fromhex(id_.as_py()) for id_ in rows["id"].filter(pa.array(trained.whole)))
    return _Expected(
        train=train,
        trained=trained,
        ids=np.frombuffer(digests, "S32"),
        bytes=size,
        excluded=(*parts, _cut_documents(train, is_excluded, heldout, scratch)),
    )


def _cut_documents(
    train: Split, is_excluded: npt.NDArray[np.bool_], heldout: Split, scratch: Path
) -> Iterator[Document]:
    """The documents that were cut, whole. All parts of one lie on one side of the split."""
    for name, split, selection in (
        ("excluded", train, Selection(train, is_excluded)),
        ("heldout", heldout, Selection(heldout)),
    ):
        documents = cut_documents(split, selection, scratch / name)
        yield from (document for document in documents if not part_of(document.path))


def _against_corpus(
    measurement: Measurement, shards: TokenShards, plain: Tokenizer, expected: _Expected, scratch: Path
) -> int:
    """Tokens by which the shards and the tokenized corpus differ.

    All documents are tokenized again, or every missing one and an even sample.
    """
    trained, in_shards = expected.trained, _names(shards.ids)
    order = np.argsort(in_shards, kind="stable")
    in_order = in_shards[order]
    step = max(1, -(-expected.bytes // SAMPLE_BYTES))
    is_missing = ~np.isin(expected.ids, in_shards)
    chosen = np.zeros(len(trained.whole), np.bool_)
    chosen[np.flatnonzero(trained.whole)] = is_missing | (np.arange(len(expected.ids)) % step == 0)

    lost = compared = 0
    cut_ids: list[bytes] = []

    def cut() -> Iterator[Document]:
        for document in cut_documents(expected.train, trained, scratch):
            cut_ids.append(bytes.fromhex(document.id))
            if int(document.id[:8], 16) % step == 0 or _place_in(in_order, document) < 0:
                yield document

    again = itertools.chain((document for _, document in expected.train.rows(chosen)), cut())
    for batch in batches(again):
        compared += len(batch)
        for document, tokens in zip(batch, _encode(plain, batch), strict=True):
            place = _place_in(in_order, document)
            packed = shards.document(int(order[place])) if place >= 0 else np.empty(0, np.int64)
            differing = difference(tokens, packed)
            lost += differing
            if differing:
                measurement.fail(
                    "tokens_lost",
                    document.id,
                    differing,
                    expected=len(tokens),
                    found=len(packed),
                    reason="differs from the tokenized text",
                )
    if step > 1:
        measurement.notes.append(
            f"{compared:,} of {trained.count:,} documents were tokenized again and compared, every {step}th by digest; "
            "the number and the ids of all were compared"
        )

    wanted = np.concatenate([expected.ids, np.array(cut_ids, "S32")])
    is_again = np.concatenate([[False], in_order[1:] == in_order[:-1]])
    surplus = np.sort(order[is_again | ~np.isin(in_order, wanted)])
    for index in surplus.tolist():
        measurement.fail(
            "tokens_lost",
            shards.ids[index].tobytes().hex(),
            float(shards.lengths[index]),
            reason="not a document of the corpus to train on, or there twice",
        )
    return lost + int(shards.lengths[surplus].sum())


def _names(ids: npt.NDArray[np.uint8]) -> Names:
    """Ids as strings of bytes that compare as the ids do, S32 [documents]."""
    return np.frombuffer(ids.tobytes(), "S32")


def _place_in(names: Names, document: Document) -> int:
    """The first place of a document's id among sorted ones; -1 if it is not there."""
    name = np.array(bytes.fromhex(document.id), "S32")
    place = int(np.searchsorted(names, name))
    return place if place < len(names) and names[place] == name else -1


def _encode(plain: Tokenizer, documents: Sequence[Document]) -> list[Tokens]:
    """Tokens of every document, with the end of text that shards hold after each."""
    end = np.array([plain.token_to_id(END_OF_TEXT)], np.int32)
    texts = [document.text for document in documents]
    return [np.concatenate([tokens, end]) for tokens in encode_texts(plain, texts)]


def difference(expected: Tokens, packed: Tokens) -> int:
    """Tokens of both sequences outside their common beginning and common end.

    Args:
        expected: Integers [length].
        packed: Integers [another length].
    """
    shorter = min(len(expected), len(packed))
    unequal = np.flatnonzero(expected[:shorter] != packed[:shorter])
    head = int(unequal[0]) if len(unequal) else shorter

    rest = shorter - head
    unequal = np.flatnonzero(expected[len(expected) - rest :][::-1] != packed[len(packed) - rest :][::-1])
    tail = int(unequal[0]) if len(unequal) else rest
    return len(expected) + len(packed) - 2 * (head + tail)


def _contaminated(
    measurement: Measurement, shards: TokenShards, plain: Tokenizer, excluded: Sequence[Iterable[Document]]
) -> None:
    """Record the excluded and held-out documents in the shards: those with such an id, or with the same tokens."""
    ids = np.sort(_names(shards.ids))
    by_length = np.argsort(shards.lengths, kind="stable")
    lengths = shards.lengths[by_length]

    @cache
    def contents_of(length: int) -> frozenset[bytes]:
        """Digests of the shards' documents of a length: only they can be equal to one of that length."""
        first, end = np.searchsorted(lengths, [length, length + 1])
        return frozenset(_digest(shards.document(int(index))) for index in by_length[first:end])

    count = total = 0
    for batch in batches(itertools.chain.from_iterable(excluded)):
        total += len(batch)
        for document, tokens in zip(batch, _encode(plain, batch), strict=True):
            if _place_in(ids, document) >= 0 or _digest(tokens) in contents_of(len(tokens)):
                count += 1
                measurement.fail("contaminated_documents", document.id, 1.0, tokens=len(tokens))
    measurement.add("contaminated_documents", count, total)


def _digest(tokens: Tokens) -> bytes:
    """A digest of token ids, whatever their type."""
    return hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=16).digest()
