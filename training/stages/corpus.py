"""`corpus`: cleaned, de-duplicated documents with a domain, split into training and held-out text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from training.data.reports import length_and_drop_chart, markdown_table, write_card, write_samples
from training.data.tables import CORPUS_SCHEMA, ShardWriter
from training.data.text.cleaning import cleaned, mark_exact_duplicates, mark_heldout
from training.data.text.near_duplicates import near_duplicates, twins_across
from training.data.text.quiet_daft import F, daft
from training.errors import RecipeError
from training.job.context import StageContext
from training.specs.corpus import DROP_REASONS, DROPPED, EXACT, NEAR, dropped_metric
from training.specs.corpus import CorpusSection as Section
from training.specs.job import StageResult

_EXAMPLES = 20
_EXCERPT = 300
_BINS_PER_DECADE = 8
col = daft.col


def run(context: StageContext[Section]) -> StageResult:
    """Clean, remove duplicates, split.

    Raises:
        RecipeError: Nothing is left, or nothing is left to hold out.
    """
    events = context.events
    raw = daft.read_parquet(str(context.input("raw_corpus").folder / "documents" / "*.parquet"))
    events.phase("clean")
    pieces = cleaned(raw, context.section).collect()

    events.phase("exact duplicates")
    marked = mark_exact_duplicates(pieces.where(F.is_null(col("reason")))).collect()
    unique = marked.where(F.is_null(col("reason")))

    events.phase("near-duplicates")
    near = context.section.near_duplicates
    removed = near_duplicates(unique, near)
    kept = mark_heldout(_without(unique, removed), context.section.heldout).collect()

    events.phase("held-out text among training text")
    across = twins_across(kept.where(col("heldout")), kept.where(~col("heldout")), near)
    kept = _without(kept, across).collect()

    nearly = _only(unique, removed | across).with_column("reason", daft.lit(NEAR))
    dropped = _write_dropped(
        context, [pieces.where(F.not_null(col("reason"))), marked.where(col("reason") == EXACT), nearly]
    )

    events.phase("write")
    statistics = {split: _write(context, kept, split) for split in ("train", "heldout")}
    _require_both(statistics, dropped)
    _report(context, statistics, dropped)

    train, heldout = statistics["train"], statistics["heldout"]
    return StageResult(
        metrics={
            "documents": float(train.documents.total()),
            "bytes": float(train.bytes.total()),
            "heldout_documents": float(heldout.documents.total()),
            "heldout_bytes": float(heldout.bytes.total()),
            **{dropped_metric(reason): float(dropped.counts[reason]) for reason in DROP_REASONS},
        },
        headline="documents",
    )


def _without(frame: daft.DataFrame, ids: Collection[str]) -> daft.DataFrame:
    return frame.join(_table(ids), on="id", how="anti")


def _only(frame: daft.DataFrame, ids: Collection[str]) -> daft.DataFrame:
    return frame.join(_table(ids), on="id", how="semi")


def _table(ids: Collection[str]) -> daft.DataFrame:
    return daft.from_pydict({"id": [*ids, ""]})  # one row too many, because a column without rows has no type


@dataclass
class _Dropped:
    """Documents that were dropped: how many for each reason, and the path of one of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            ", ".join(
                f"{count:,} {reason}, such as {self.examples[reason]}" for reason, count in self.counts.most_common()
            )
            or "nothing was dropped"
        )


class _Statistics:
    """Documents and bytes per domain, and a histogram of lengths, of one split."""

    def __init__(self) -> None:
        self.documents = Counter[str]()
        self.bytes = Counter[str]()
        self.lengths = Counter[int]()
        self.samples: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.documents[row["domain"]] += 1
        self.bytes[row["domain"]] += row["bytes"]
        self.lengths[int(math.log10(len(row["text"])) * _BINS_PER_DECADE)] += 1
        if len(self.samples) < _EXAMPLES // 2:
            self.samples.append(
                {"path": row["path"], "domain": row["domain"], "bytes": row["bytes"], "excerpt": row["text"][:_EXCERPT]}
            )


def _write(context: StageContext[Section], kept: daft.DataFrame, split: str) -> _Statistics:
    statistics = _Statistics()
    chosen = col("heldout") if split == "heldout" else ~col("heldout")
    with ShardWriter(context.out / split, CORPUS_SCHEMA) as writer:
        for row in kept.where(chosen).select(*CORPUS_SCHEMA.names).sort("id").iter_rows():
            writer.add(row, row["bytes"])
            statistics.add(row)
    return statistics


def _write_dropped(context: StageContext[Section], frames: list[daft.DataFrame]) -> _Dropped:
    """Count by reason; examples go to dropped.jsonl."""
    dropped = _Dropped()
    with (context.out / DROPPED).open("w", encoding="utf-8") as file:
        for frame in frames:
            counts = frame.groupby("reason").agg(F.count(col("id")).alias("rows")).to_pylist()
            dropped.counts.update({row["reason"]: row["rows"] for row in counts})
            for reason in sorted(row["reason"] for row in counts):
                examples = frame.where(col("reason") == reason).select("id", "source", "path", "reason", "text")
                for row in examples.sort(["id", "source", "path"]).limit(_EXAMPLES).to_pylist():
                    dropped.examples.setdefault(reason, f"{row['source']}/{row['path']}")
                    row["excerpt"] = row.pop("text")[:_EXCERPT]
                    file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
    return dropped


def _require_both(statistics: dict[str, _Statistics], dropped: _Dropped) -> None:
    if not statistics["train"].documents:
        reason, _ = dropped.counts.most_common(1)[0]
        raise RecipeError(
            f"corpus: no document is left after cleaning ({dropped}); loosen "
            f"corpus.{DROP_REASONS[reason]} in the recipe or add sources"
        )
    if not statistics["heldout"].documents:
        raise RecipeError(
            f"corpus: only one document is left in each domain ({dropped}), so none can be held out; add "
            "documents, or split the file: a .jsonl file holds one document a line"
        )


def _report(context: StageContext[Section], statistics: dict[str, _Statistics], dropped: _Dropped) -> None:
    train, heldout = statistics["train"], statistics["heldout"]
    write_samples(context.report, train.samples)
    lengths = train.lengths + heldout.lengths
    length_and_drop_chart(
        context.report / "documents.png",
        {10 ** (bin_ / _BINS_PER_DECADE): count for bin_, count in sorted(lengths.items())},
        10 ** (1 / _BINS_PER_DECADE),
        {reason: dropped.counts[reason] for reason in DROP_REASONS},
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
            "## Dropped",
            "",
            markdown_table(
                ["reason", "documents", "such as"],
                [[reason, dropped.counts[reason], dropped.examples.get(reason, "")] for reason in DROP_REASONS],
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
