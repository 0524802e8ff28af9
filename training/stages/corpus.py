"""`corpus`: cleaned, de-duplicated documents with a domain, split into training and held-out text.

Every step works on parts: a file of the raw corpus, a range of digests, or some clusters of candidates. What it holds
in memory is a part, and some 30 bytes for each document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.custom_code import CustomCode
from training.data.reports import length_and_drop_chart, markdown_table, write_card, write_samples
from training.data.tables import fraction, publish_shards
from training.data.text.cleaned_parts import Cleaned, CleanedPart, Example, RawPart, clean_part, first_examples
from training.data.text.digest_order import DigestOrder
from training.data.text.heldout import HELDOUT, KEPT, draw_heldout, twins_across
from training.data.text.near_duplicates import near_duplicates
from training.data.text.written_range import SPLITS, WrittenRange, write_range
from training.errors import GatehouseError, InputRefused, RecipeError
from training.job.context import StageContext
from training.job.parts import Finished, Part, Pool
from training.specs.corpus import DROPPED, EXACT, FUNNEL, GENERAL, NEAR, dropped_metric
from training.specs.corpus import CorpusSection as Section
from training.specs.job import CODE, StageResult
from training.specs.statistics import STATISTICS, DataStatistics, SourceCounts, length_bins, lower_edge

_SAMPLES = 10
_SMALL_RANGE, _LARGE_RANGE, _FEW_RANGES = 32 * 2**20, 256 * 2**20, 64  # bytes of raw text


def run(context: StageContext[Section]) -> StageResult:
    """Clean, remove duplicates, split.

    Raises:
        RecipeError: Nothing is left, or nothing is left to hold out; or a filter of the recipe's own code fails.
    """
    near = context.section.near_duplicates
    pool = Pool(context.work, context.execution, context.events)

    parts, ranges = _parts(context)
    cleaned_parts = pool.run("clean", clean_part, parts)
    cleaned = Cleaned.of(cleaned_parts, pool.shared / "numbers.npy")
    order = DigestOrder(pool, cleaned, ranges)

    removed = near_duplicates(pool, cleaned, order, near)
    sides = _sides(order, removed, context.section.heldout, cleaned)
    sides[twins_across(pool, cleaned, sides, near)] = 0
    written = _write(pool, order, sides)

    dropped = _Dropped()
    dropped.add(cleaned_parts)
    dropped.add(written)
    statistics = {split: _Statistics([finished.result[split] for finished in written]) for split in SPLITS}
    _require_both(statistics, dropped, context.section)
    funnel = _funnel(context, cleaned_parts, statistics, dropped)
    for split in SPLITS:
        publish_shards([finished.folder / split for finished in written], context.out / split)
    dropped.write(context.out / DROPPED)
    (context.report / FUNNEL).write_text(json.dumps(funnel, sort_keys=True, indent=1), encoding="utf-8")
    _report(context, statistics, dropped, funnel)

    train, heldout = statistics["train"], statistics["heldout"]
    return StageResult(
        metrics={
            "documents": float(train.documents.total()),
            "bytes": float(train.bytes.total()),
            "heldout_documents": float(heldout.documents.total()),
            "heldout_bytes": float(heldout.bytes.total()),
            **{dropped_metric(reason): float(dropped.counts[reason]) for reason in context.section.drop_reasons},
        },
        headline="documents",
    )


def _parts(context: StageContext[Section]) -> tuple[list[Part[RawPart]], int]:
    """The files of the raw corpus, and into how many ranges of digests their text is put."""
    raw = context.input("raw_corpus")
    size = int(raw.manifest.metrics["bytes"])
    ranges = min(-(-size // _SMALL_RANGE), _FEW_RANGES)
    ranges = max(1, ranges, -(-size // _LARGE_RANGE))

    files = sorted((raw.folder / "documents").glob("*.parquet"))
    if not files:
        raise InputRefused(f"{raw.folder} holds no parquet file; materialize raw_corpus again")
    domains = tuple(sorted({GENERAL, *context.section.domains}))
    code = CustomCode.read(context.files[CODE]) if CODE in context.files else None
    return [
        Part(path.stem, RawPart(path, context.section, domains, ranges, code), size // len(files), str(path))
        for path in files
    ], ranges


def _sides(
    order: DigestOrder, removed: npt.NDArray[np.uint32], share: float, cleaned: Cleaned
) -> npt.NDArray[np.uint8]:
    """The side of each text: 0 for near-duplicates, `KEPT` or `HELDOUT`, uint8 [texts]."""
    sides = np.full(order.count, KEPT, np.uint8)
    sides[removed[:, 0]] = 0
    is_kept = sides == KEPT
    draws, domains, sizes = (order.column(name)[is_kept] for name in ("draw", "domain", "bytes"))
    if len(draws) and (draws == draws[0]).all():  # the pieces of a corpus that is a single document, one by one
        ids = np.empty(order.count, "S32")
        for part, folder in enumerate(cleaned.folders):
            numbers = cleaned.numbers(part)
            ids[numbers[numbers < order.count]] = CleanedPart(folder).rows["id"][numbers < order.count]
        draws = np.array([fraction(id_.ljust(32, b"\0").hex()) for id_ in ids[is_kept].tolist()])
    sides[np.flatnonzero(is_kept)[draw_heldout(domains, draws, sizes, share)]] = HELDOUT
    return sides


def _write(pool: Pool, order: DigestOrder, sides: npt.NDArray[np.uint8]) -> list[Finished]:
    final_sides = pool.shared / "final_sides.npy"
    np.save(final_sides, sides)
    size = sum(order.ranges[0].cleaned.sizes) // len(order.ranges)
    return pool.run(
        "write",
        write_range,
        [
            Part(
                f"{range_.number:05d}",
                WrittenRange(range_, order.file(range_.number), final_sides, first),
                size,
            )
            for range_, first in zip(order.ranges, order.first_numbers.tolist(), strict=False)
        ],
    )


@dataclass
class _Dropped:
    """Documents that were dropped: how many for each reason, and some of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def add(self, parts: Iterable[Finished]) -> None:
        """Count what some parts dropped."""
        for finished in parts:
            self.counts.update(finished.result["dropped"])
            self.examples = first_examples([*self.examples, *finished.result["examples"]])

    def example(self, reason: str) -> str:
        """Where one of those comes from that were dropped for a reason; empty if there is none."""
        return next((f"{row['source']}/{row['path']}" for row in self.examples if row["reason"] == reason), "")

    def write(self, path: Path) -> None:
        """Write the examples: those that a rule dropped by the rule's name, then duplicates."""
        last = (EXACT, NEAR)

        def order(row: Example) -> tuple[int, str]:
            return last.index(row["reason"]) + 1 if row["reason"] in last else 0, row["reason"]

        with path.open("w", encoding="utf-8") as file:
            for row in sorted(self.examples, key=order):
                file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        return (
            ", ".join(
                f"{count:,} {reason}, such as {self.example(reason)}" for reason, count in (+self.counts).most_common()
            )
            or "nothing was dropped"
        )


class _Statistics:
    """Documents and bytes per domain and per source, a histogram of lengths, and samples, of one split."""

    def __init__(self, ranges: Sequence[dict[str, Any]]) -> None:
        self.documents = Counter[str]()
        self.bytes = Counter[str]()
        self.lengths = Counter[int]()
        self.documents_of_sources = Counter[str]()
        self.bytes_of_sources = Counter[str]()
        for range_ in ranges:
            self.documents_of_sources.update(range_["documents_of_sources"])
            self.bytes_of_sources.update(range_["bytes_of_sources"])
            self.documents.update(range_["documents"])
            self.bytes.update(range_["bytes"])
            self.lengths.update({int(bin_): count for bin_, count in range_["lengths"].items()})
        self.samples = [sample for range_ in ranges for sample in range_["samples"]][:_SAMPLES]


def _require_both(statistics: dict[str, _Statistics], dropped: _Dropped, section: Section) -> None:
    if not statistics["train"].documents:
        reason, _ = dropped.counts.most_common(1)[0]
        raise RecipeError(
            f"corpus: no document is left after cleaning ({dropped}); loosen "
            f"corpus.{section.drop_reasons[reason]} in the recipe or add sources"
        )
    if not statistics["heldout"].documents:
        raise RecipeError(
            f"corpus: only one document is left in each domain ({dropped}), so none can be held out; add "
            "documents, or split the file: a .jsonl file holds one document a line"
        )


def _funnel(
    context: StageContext[Section], parts: Sequence[Finished], statistics: dict[str, _Statistics], dropped: _Dropped
) -> dict[str, Any]:
    """Where every document went: `documents` read, `pieces` made of them, those `dropped` by reason, and those kept.

    Raises:
        GatehouseError: They do not add up.
    """
    counts = {split: some.documents.total() for split, some in statistics.items()}
    read = sum(part.result["documents"] for part in parts)
    pieces = sum(part.result["pieces"] + sum(part.result["dropped"].values()) for part in parts)
    expected = int(context.input("raw_corpus").manifest.metrics["documents"])
    if read != expected or pieces != sum(counts.values()) + dropped.counts.total():
        raise GatehouseError(
            f"corpus: {expected:,} documents came in and {read:,} were read; of {pieces:,} pieces "
            f"{sum(counts.values()):,} are kept and {dropped.counts.total():,} dropped"
        )
    scrubbed, languages = Counter[str](), Counter[str]()
    for part in parts:
        scrubbed.update(part.result["scrubbed"])
        languages.update(part.result["languages"])
    of_reason = {reason: dropped.counts[reason] for reason in context.section.drop_reasons}
    return {
        "documents": read,
        "pieces": pieces,
        "dropped": of_reason,
        **counts,
        "scrubbed": scrubbed,
        "languages": languages,
    }


def _funnel_lines(funnel: dict[str, Any]) -> list[str]:
    """The way of the documents, as the lines of a table."""
    left = funnel["pieces"]
    rows = [["read", funnel["documents"], ""], ["pieces of these", left, ""]]
    for reason, count in funnel["dropped"].items():
        left -= count
        rows.append([f"without: {reason}", left, f"-{count:,}"])
    rows += [["for training", funnel["train"], ""], ["held out", funnel["heldout"], ""]]
    lines = [markdown_table(["documents", "number", "dropped"], rows), ""]
    for title, counts in (("Replaced", funnel["scrubbed"]), ("Languages", funnel["languages"])):
        if counts:
            lines += [f"{title}: {', '.join(f'{name} {count:,}' for name, count in counts.most_common())}", ""]
    return lines


def _report(
    context: StageContext[Section], statistics: dict[str, _Statistics], dropped: _Dropped, funnel: dict[str, Any]
) -> None:
    train, heldout = statistics["train"], statistics["heldout"]
    write_samples(context.report, train.samples)
    lengths = train.lengths + heldout.lengths
    documents = train.documents_of_sources + heldout.documents_of_sources
    sizes_of_sources = train.bytes_of_sources + heldout.bytes_of_sources
    counted = DataStatistics(
        sources={
            name: SourceCounts(documents=count, bytes=sizes_of_sources[name])
            for name, count in sorted(documents.items())
        },
        unit="characters",
        lengths=length_bins(lengths),
    )
    (context.report / STATISTICS).write_text(counted.model_dump_json(), encoding="utf-8")
    length_and_drop_chart(
        context.report / "documents.png",
        {lower_edge(bin_): count for bin_, count in sorted(lengths.items())},
        lower_edge(1),
        {reason: dropped.counts[reason] for reason in context.section.drop_reasons},
    )

    sizes = [
        [
            domain,
            train.documents[domain],
            f"{train.bytes[domain] / 1e6:.2f}",
            heldout.documents[domain],
            f"{heldout.bytes[domain] / 1e6:.2f}",
        ]
        for domain in sorted(train.documents | heldout.documents)
    ]

    near = context.section.near_duplicates
    rows, bands = near.rows_and_bands
    write_card(
        context.report,
        "Corpus",
        [
            markdown_table(["domain", "train documents", "train MB", "held-out documents", "held-out MB"], sizes),
            "",
            "## Where they went",
            "",
            *_funnel_lines(funnel),
            "## Dropped",
            "",
            markdown_table(
                ["reason", "documents", "such as"],
                [[reason, dropped.counts[reason], dropped.example(reason)] for reason in context.section.drop_reasons],
            ),
            "",
            f"Near-duplicates are documents whose sets of {near.ngram}-word shingles have a Jaccard similarity of at "
            f"least {near.threshold:g}. Candidates share one of {bands} bands of {rows} MinHashes and are compared "
            "exactly. They are removed before the split, which goes by the digest of a document's text: a new name, "
            "other packing or further rows do not move it, and all pieces of one document lie on one side.",
            "",
            f"Examples of what was dropped are in `{DROPPED}`.",
        ],
    )
