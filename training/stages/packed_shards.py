"""Packed shards: the training split as tokens on disk, without what the evaluation sets exclude."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from training.data.tables import read_rows
from training.data.text.cut_documents import GROUP_BYTES, assignment
from training.data.text.documents import Selection, Split
from training.data.tokens.byte_bpe import TOKENIZER_FILE, load_plain, rows_of
from training.data.tokens.packing import size_of_plan
from training.data.tokens.shards import ShardsMeta, TokenShards, TokenWriter
from training.data.tokens.tokenized_parts import (
    CutDocuments,
    FileOfDocuments,
    merge,
    tokenize_cut,
    tokenize_file,
)
from training.errors import RecipeError
from training.job.context import StageContext
from training.job.parts import Part, Pool
from training.specs.base import canonical_json
from training.specs.job import StageResult
from training.specs.packed_shards import PackedShardsSection
from training.specs.statistics import STATISTICS, DataStatistics, SourceCounts, length_bin, length_bins, lower_edge
from training.store.store import file_entry

Section = PackedShardsSection
EXCLUSIONS = "exclusions.parquet"


@dataclass(frozen=True)
class _Choice:
    """Documents to tokenize, and the numbers of those that were left out.

    Attributes:
        excluded: They hold items of the evaluation sets.
        kept_back: Their domain is kept for the adapter.
    """

    documents: Selection
    excluded: int
    kept_back: int


def run(context: StageContext[PackedShardsSection]) -> StageResult:
    """Tokenize, write the shards, and measure how well they pack."""
    section = context.section
    chosen = _choose(context)
    path = context.input("tokenizer").folder / TOKENIZER_FILE
    digest = file_entry(path).sha256
    meta = _write(context, chosen.documents, path, digest)

    # A plan depends on what the training asks for, and is made by it; here is counted how full the rows will be.
    context.events.phase("measure packing")
    shards = TokenShards(context.out)
    efficiency = {length: _efficiency(shards, length) for length in section.contexts}
    metrics = {
        "tokens": float(meta.tokens),
        "documents": float(meta.documents),
        "packing_efficiency": min(efficiency.values()),
    }
    _plot(context.report / "packing.png", shards.lengths, efficiency)
    _write_samples(context.report / "samples.json", shards, load_plain(path))
    _write_card(context.report / "card.md", shards, chosen, efficiency)
    (context.report / STATISTICS).write_text(_statistics(shards).model_dump_json(), encoding="utf-8")
    return StageResult(metrics=metrics, headline="tokens", facts={"tokenizer": digest})


def _choose(context: StageContext[PackedShardsSection]) -> _Choice:
    split = Split(context.input("corpus").folder / "train")
    places = split.table(["id", "domain"])
    table = context.input("evaluation_sets").folder / EXCLUSIONS
    excluded = pa.array(sorted({row["id"] for row in read_rows(table, ["id"])}), pa.large_string())
    is_excluded = pc.is_in(places["id"], value_set=excluded).to_numpy()
    domains = pa.array(context.section.exclude_domains, pa.large_string())
    is_kept_back = pc.is_in(places["domain"], value_set=domains).to_numpy()

    chosen = ~(is_excluded | is_kept_back)
    if not chosen.any():
        raise RecipeError(
            "packed_shards: no document is left to train on; see packed_shards.exclude_domains and "
            "evaluation_sets.overlap"
        )
    return _Choice(Selection(split, chosen), int(is_excluded.sum()), int((is_kept_back & ~is_excluded).sum()))


def _write(
    context: StageContext[PackedShardsSection], documents: Selection, tokenizer: Path, digest: str
) -> ShardsMeta:
    section, split = context.section, Split(context.input("corpus").folder / "train")
    pool = Pool(context.work, context.execution, context.events)
    groups, assigned = documents.groups(GROUP_BYTES), context.work / "groups.npy"
    np.save(assigned, assignment(documents, groups))
    parts, first_row = [], 0
    for path, size in split.files():
        file = FileOfDocuments(path, assigned, first_row, tokenizer, len(groups))
        parts.append(Part(path.stem, file, size, str(path)))
        first_row += pq.read_metadata(path).num_rows
    files = pool.run("tokenize", tokenize_file, parts)

    folders = tuple(done.folder for done in files)
    cut = pool.run(
        "tokenize documents that were cut",
        tokenize_cut,
        [
            Part(f"{number:05d}", CutDocuments(folders, number, group.runs, tokenizer), group.size)
            for number, group in enumerate(groups)
        ],
    )
    for why in sorted({done.result["why"] for done in (*files, *cut)} - {""}):
        context.events.log(f"encoded by tokenizers and not by gigatoken, which is faster: {why}")

    context.events.phase("write the shards")
    vocabulary = rows_of(load_plain(tokenizer))
    with TokenWriter(context.out, vocabulary, section.shard_tokens) as writer:
        written = merge(files, cut, writer)
        weights = {name: section.weights.get(name, 1.0) for name in written.sources}
        return writer.finish(written.source, written.ids, written.sources, weights, digest)


def _efficiency(shards: TokenShards, context: int) -> float:
    """Used share of the rows of a whole pass, packed source by source as training does."""
    sizes = [size_of_plan(shards.lengths[shards.source == number], context) for number in range(len(shards.sources))]
    return sum(size.used for size in sizes) / (sum(size.rows for size in sizes) * context)


def _statistics(shards: TokenShards) -> DataStatistics:
    edges = [lower_edge(number) for number in range(length_bin(int(shards.lengths.max())) + 2)]
    counts, _ = np.histogram(np.maximum(shards.lengths, 1), bins=edges)
    return DataStatistics(
        sources={
            name: SourceCounts(documents=int(rows.sum()), tokens=int(shards.lengths[rows].sum()))
            for name, rows in ((name, shards.source == number) for number, name in enumerate(shards.sources))
        },
        unit="tokens",
        lengths=length_bins(dict(enumerate(counts.tolist()))),
    )


def _plot(path: Path, lengths: npt.NDArray[np.int64], efficiency: dict[int, float]) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(lengths, bins=np.geomspace(1, lengths.max() + 1, 40).tolist(), color="#4477aa")
    left.set(xscale="log", xlabel="tokens", ylabel="documents", title="Document length")

    names = [str(context) for context in efficiency]
    bars = right.bar(names, [100 * share for share in efficiency.values()], color="#228833")
    right.bar_label(bars, fmt="%.2f")
    right.set(xlabel="context, tokens", ylabel="used places, %", ylim=(0, 108), title="Packing")
    figure.savefig(path, dpi=80)


def _write_samples(path: Path, shards: TokenShards, tokenizer: Tokenizer) -> None:
    rows = []
    for index in np.linspace(0, shards.meta.documents - 1, min(8, shards.meta.documents)).astype(int):
        tokens = shards.document(index)
        rows.append(
            {
                "id": shards.ids[index].tobytes().hex()[:12],
                "source": shards.sources[shards.source[index]],
                "tokens": len(tokens),
                "begins": tokenizer.decode(tokens[:60].tolist())[:200],
            }
        )
    path.write_text(canonical_json(rows), encoding="utf-8")


def _write_card(path: Path, shards: TokenShards, chosen: _Choice, efficiency: dict[int, float]) -> None:
    lines = [
        f"{shards.meta.tokens:,} tokens in {shards.meta.documents:,} documents and {len(shards.meta.shards)} "
        f"shards ({shards.meta.dtype}).",
        "",
        f"- {chosen.excluded:,} documents left out because they hold items of the evaluation sets",
        f"- {chosen.kept_back:,} documents of domains kept back for the adapter",
        "",
        "| source | documents | tokens |",
        "|---|--:|--:|",
    ]
    for number, name in enumerate(shards.sources):
        of_source = shards.source == number
        documents, tokens = int(of_source.sum()), int(shards.lengths[of_source].sum())
        lines.append(f"| {name} | {documents:,} | {tokens:,} |")
    lines += ["", "| context | used places |", "|--:|--:|"]
    lines += [f"| {context} | {100 * share:.3f} % |" for context, share in efficiency.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
