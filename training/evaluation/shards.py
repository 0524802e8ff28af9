"""Measures `packed_shards` against the corpus, the tokenizer and the exclusions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from training.data.tables import read_rows
from training.data.text.documents import join_parts, read_split, text_batches
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.data.tokens.packing import PackingPlan, plan, whole
from training.data.tokens.shards import Int64, TokenShards
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.specs.packed_shards import PackedShardsSection
from training.specs.tokenizer import END_OF_TEXT

SAMPLE_BYTES = 20 * 2**20
Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class _Expected:
    """What the shards should and should not hold: tables with the columns `id` and `text`."""

    trained: pa.Table
    excluded: pa.Table


def measure_shards(
    artifact: InputArtifact, corpus: InputArtifact, tokenizer: InputArtifact, evaluation_sets: InputArtifact
) -> Measurement:
    """Sizes, packing at every context, lost tokens, and documents that should have been left out."""
    measurement = Measurement()
    section = PackedShardsSection.model_validate(artifact.manifest.section)
    shards = TokenShards(artifact.folder)
    plain = load_plain(tokenizer.folder / TOKENIZER_FILE)
    expected = _expected(corpus, evaluation_sets, section.exclude_domains)
    measurement.add("tokens", int(shards.lengths.sum()), shards.meta.documents)
    measurement.add("documents", shards.meta.documents, shards.meta.documents)

    lost = _against_corpus(measurement, shards, plain, expected.trained)
    efficiencies = []
    for context in section.contexts:
        plans = [
            plan(whole(shards.lengths, np.flatnonzero(shards.source == number)), context)
            for number in range(len(shards.sources))
        ]
        lost_in_plans = uncovered(plans, shards.offsets)
        if lost_in_plans:
            measurement.fail("tokens_lost", f"context {context}", lost_in_plans, reason="the packing plan")
        lost += lost_in_plans
        rows = sum(packing.rows for packing in plans)
        efficiencies.append(sum(packing.used for packing in plans) / max(rows * context, 1))
    measurement.add("packing_efficiency", min(efficiencies), len(efficiencies))
    measurement.add("tokens_lost", lost, int(shards.lengths.sum()))

    _contaminated(measurement, shards, plain, expected.excluded)
    return measurement


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
    columns = ["id", "text", "source", "path", "domain"]
    table = read_split(corpus.folder / "train", columns)
    ids = {row["id"] for row in read_rows(evaluation_sets.folder / "exclusions.parquet", ["id"])}
    is_excluded = np.array([name in ids for name in table["id"].to_pylist()], np.bool_)
    in_excluded_domain = np.array([name in excluded_domains for name in table["domain"].to_pylist()], np.bool_)
    trained = join_parts(table.filter(pa.array(~is_excluded & ~in_excluded_domain)))

    # Documents that were cut are looked for both in parts and whole: shards hold them whole.
    parts = pa.concat_tables([table.filter(pa.array(is_excluded)), read_split(corpus.folder / "heldout", columns)])
    joined = join_parts(parts)
    was_cut = pc.invert(pc.is_in(joined["id"], value_set=parts["id"].combine_chunks()))
    return _Expected(trained, pa.concat_tables([parts, joined.filter(was_cut)]))


def _against_corpus(measurement: Measurement, shards: TokenShards, plain: Tokenizer, trained: pa.Table) -> int:
    """Tokens by which the shards and the tokenized corpus differ."""
    places_of: dict[str, list[int]] = {}
    for index, digest in enumerate(shards.ids):
        places_of.setdefault(digest.tobytes().hex(), []).append(index)

    names = trained["id"].to_pylist()
    expected_names = set(names)
    surplus = [
        index for name, places in places_of.items() for index in (places[1:] if name in expected_names else places)
    ]
    lost = int(shards.lengths[surplus].sum())
    for index in surplus:
        measurement.fail(
            "tokens_lost",
            shards.ids[index].tobytes().hex(),
            float(shards.lengths[index]),
            reason="not a document of the corpus to train on, or there twice",
        )

    for row, tokens in zip(*_retokenized(measurement, plain, trained, places_of), strict=True):
        name = names[row]
        packed = shards.document(places_of[name][0]) if name in places_of else np.empty(0, np.int64)
        differing = difference(tokens, packed)
        lost += differing
        if differing:
            measurement.fail(
                "tokens_lost",
                name,
                differing,
                expected=len(tokens),
                found=len(packed),
                reason="differs from the tokenized text",
            )
    return lost


def _retokenized(
    measurement: Measurement, plain: Tokenizer, trained: pa.Table, places_of: dict[str, list[int]]
) -> tuple[list[int], list[Tokens]]:
    """Rows of `trained` and their tokens: all of them, or every missing one and an even sample."""
    size = pc.sum(pc.binary_length(trained["text"])).as_py() or 0
    step = max(1, -(-size // SAMPLE_BYTES))
    rows = [row for row, name in enumerate(trained["id"].to_pylist()) if row % step == 0 or name not in places_of]
    if step > 1:
        measurement.notes.append(
            f"{len(rows):,} of {trained.num_rows:,} documents were tokenized again and compared, every "
            f"{step}th by digest; the number and the ids of all were compared"
        )
    return rows, _encode(plain, trained.take(pa.array(rows, pa.int64())))


def _encode(plain: Tokenizer, table: pa.Table) -> list[Tokens]:
    """Tokens of every document, with the end of text that shards hold after each."""
    end = np.array([plain.token_to_id(END_OF_TEXT)], np.int32)
    return [np.concatenate([tokens, end]) for texts in text_batches(table) for tokens in encode_texts(plain, texts)]


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


def _contaminated(measurement: Measurement, shards: TokenShards, plain: Tokenizer, excluded: pa.Table) -> None:
    """Record the excluded and held-out documents in the shards: those with such an id, or with the same tokens."""
    names, documents = excluded["id"].to_pylist(), _encode(plain, excluded)
    ids = {digest.tobytes().hex() for digest in shards.ids}
    # Only documents of an excluded one's length can be equal to it, which spares reading the others.
    sizes = np.array([len(tokens) for tokens in documents], np.int64)
    suspects = np.flatnonzero(np.isin(shards.lengths, sizes))
    contents = {shards.document(int(index)).astype("<i8").tobytes() for index in suspects}

    count = 0
    for name, tokens in zip(names, documents, strict=True):
        if name in ids or tokens.astype("<i8").tobytes() in contents:
            count += 1
            measurement.fail("contaminated_documents", name, 1.0, tokens=len(tokens))
    measurement.add("contaminated_documents", count, len(names))
