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
    """What the shards should and should not hold; columns id and text."""

    wanted: pa.Table
    excluded: pa.Table


def measure_shards(
    artifact: InputArtifact, corpus: InputArtifact, tokenizer: InputArtifact, evaluation_sets: InputArtifact
) -> Measurement:
    """Sizes, packing at every context, tokens lost on the way, and documents that should have been left out."""
    found = Measurement()
    section = PackedShardsSection.model_validate(artifact.manifest.section)
    shards = TokenShards(artifact.folder)
    plain = load_plain(tokenizer.folder / TOKENIZER_FILE)
    expected = _expected(corpus, evaluation_sets, section.exclude_domains)
    found.add("tokens", int(shards.lengths.sum()), shards.meta.documents)
    found.add("documents", shards.meta.documents, shards.meta.documents)
    lost = _against_corpus(found, shards, plain, expected.wanted)
    shares = []
    for context in section.contexts:
        plans = [
            plan(whole(shards.lengths, np.flatnonzero(shards.source == number)), context)
            for number in range(len(shards.sources))
        ]
        missing = uncovered(plans, shards.offsets)
        if missing:
            found.fail("tokens_lost", f"context {context}", missing, reason="the packing plan")
        lost += missing
        rows = sum(one.rows for one in plans)
        shares.append(sum(one.used for one in plans) / max(rows * context, 1))
    found.add("packing_efficiency", min(shares), len(shares))
    found.add("tokens_lost", lost, int(shards.lengths.sum()))
    _contaminated(found, shards, plain, expected.excluded)
    return found


def uncovered(plans: list[PackingPlan], offsets: Int64) -> int:
    """Tokens that no piece holds or more than one, plus tokens beyond a row's end.

    A piece takes one place more than it has tokens, for the token before it.

    Args:
        plans: Together they should hold all documents.
        offsets: int64 [documents + 1], where each document begins.
    """
    start = np.concatenate([offsets[one.document] + one.start for one in plans])
    end = start + np.concatenate([one.length for one in plans])
    order = np.argsort(start, kind="stable")
    borders = np.abs(np.append(start[order], offsets[-1]) - np.concatenate([[0], end[order]])).sum()
    beyond = sum(
        int(np.maximum(np.add.reduceat(one.length + 1, one.row_offsets[:-1]) - one.context, 0).sum())
        for one in plans
        if one.rows
    )
    return int(borders) + beyond


def _expected(corpus: InputArtifact, evaluation_sets: InputArtifact, kept_back: tuple[str, ...]) -> _Expected:
    columns = ["id", "text", "source", "path", "domain"]
    table = read_split(corpus.folder / "train", columns)
    ids = {row["id"] for row in read_rows(evaluation_sets.folder / "exclusions.parquet", ["id"])}
    excluded = np.array([name in ids for name in table["id"].to_pylist()], np.bool_)
    back = np.array([name in kept_back for name in table["domain"].to_pylist()], np.bool_)
    parts = pa.concat_tables([table.filter(pa.array(excluded)), read_split(corpus.folder / "heldout", columns)])
    # What was cut is looked for in parts and whole: shards hold documents whole.
    joined = join_parts(parts)
    new = pc.invert(pc.is_in(joined["id"], value_set=parts["id"].combine_chunks()))
    wanted = join_parts(table.filter(pa.array(~excluded & ~back)))
    return _Expected(wanted, pa.concat_tables([parts, joined.filter(new)]))


def _against_corpus(found: Measurement, shards: TokenShards, plain: Tokenizer, wanted: pa.Table) -> int:
    """Tokens by which the shards and the tokenized corpus differ."""
    held: dict[str, list[int]] = {}
    for index, digest in enumerate(shards.ids):
        held.setdefault(digest.tobytes().hex(), []).append(index)
    names = wanted["id"].to_pylist()
    known = set(names)
    surplus = [index for name, places in held.items() for index in (places[1:] if name in known else places)]
    lost = int(shards.lengths[surplus].sum())
    for index in surplus:
        found.fail(
            "tokens_lost",
            shards.ids[index].tobytes().hex(),
            float(shards.lengths[index]),
            reason="not a document of the corpus to train on, or there twice",
        )
    for place, tokens in zip(*_retokenized(found, plain, wanted, held), strict=True):
        name = names[place]
        there = shards.document(held[name][0]) if name in held else np.empty(0, np.int64)
        differing = difference(tokens, there)
        lost += differing
        if differing:
            found.fail(
                "tokens_lost",
                name,
                differing,
                expected=len(tokens),
                found=len(there),
                reason="differs from the tokenized text",
            )
    return lost


def _retokenized(
    found: Measurement, plain: Tokenizer, wanted: pa.Table, held: dict[str, list[int]]
) -> tuple[list[int], list[Tokens]]:
    """Rows of `wanted` and their tokens: all of them, or every missing one and an even sample."""
    size = pc.sum(pc.binary_length(wanted["text"])).as_py() or 0
    step = max(1, -(-size // SAMPLE_BYTES))
    rows = [row for row, name in enumerate(wanted["id"].to_pylist()) if row % step == 0 or name not in held]
    if step > 1:
        found.notes.append(
            f"{len(rows):,} of {wanted.num_rows:,} documents were tokenized again and compared, every "
            f"{step}th by digest; the number and the ids of all were compared"
        )
    return rows, _encode(plain, wanted.take(pa.array(rows, pa.int64())))


def _encode(plain: Tokenizer, table: pa.Table) -> list[Tokens]:
    end = np.array([plain.token_to_id(END_OF_TEXT)], np.int32)
    return [np.concatenate([tokens, end]) for texts in text_batches(table) for tokens in encode_texts(plain, texts)]


def difference(expected: Tokens, there: Tokens) -> int:
    """Tokens of either sequence outside their common beginning and common end."""
    shorter = min(len(expected), len(there))
    unequal = np.flatnonzero(expected[:shorter] != there[:shorter])
    head = int(unequal[0]) if len(unequal) else shorter
    room = shorter - head
    unequal = np.flatnonzero(expected[len(expected) - room :][::-1] != there[len(there) - room :][::-1])
    tail = int(unequal[0]) if len(unequal) else room
    return len(expected) + len(there) - 2 * (head + tail)


def _contaminated(found: Measurement, shards: TokenShards, plain: Tokenizer, excluded: pa.Table) -> None:
    """Excluded and held-out documents in the shards, by id or by their very tokens whatever the id says."""
    names, tokens = excluded["id"].to_pylist(), _encode(plain, excluded)
    listed = {digest.tobytes().hex() for digest in shards.ids}
    sizes = np.array([len(one) for one in tokens], np.int64)
    suspects = np.flatnonzero(np.isin(shards.lengths, sizes))
    contents = {shards.document(int(index)).astype("<i8").tobytes() for index in suspects}
    count = 0
    for name, one in zip(names, tokens, strict=True):
        if name in listed or one.astype("<i8").tobytes() in contents:
            count += 1
            found.fail("contaminated_documents", name, 1.0, tokens=len(one))
    found.add("contaminated_documents", count, len(names))
