"""`adapter_data`: documents and conversations of one domain, with some general conversations against forgetting.

Without a corpus it is the recipe's own conversations.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from training.data.conversations.items import excluded_ids, sample_of, training_items
from training.data.conversations.mixing import (
    MIXED_CONVERSATION_SCHEMA,
    generated_conversation,
    is_gathered,
    sample_of_gathered,
)
from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.tables import CONVERSATION_SCHEMA, CORPUS_SCHEMA, TableWriter, fraction, read_rows, write_table
from training.errors import RecipeError
from training.job.context import StageContext
from training.specs.corpus import GENERAL
from training.specs.job import StageResult
from training.specs.post_training_data import AdapterDataSection as Section


def run(context: StageContext[Section]) -> StageResult:
    """Gather the domain.

    Raises:
        RecipeError: The training split holds no document of the domain.
    """
    has_corpus = "corpus" in context.inputs
    context.events.phase("documents")
    documents = _write_documents(context, has_corpus)

    context.events.phase("conversations")
    of_domain = _of_domain(context) if has_corpus else _all(context)
    general = _general(context, len(of_domain), {row["id"] for row in of_domain}) if has_corpus else []
    rows, schema = [*of_domain, *general], CONVERSATION_SCHEMA
    if any("tools" in row for row in rows):
        rows, schema = [generated_conversation(row) for row in rows], MIXED_CONVERSATION_SCHEMA
    rows.sort(key=lambda row: str(row["id"]))

    write_table(context.out / "train.parquet", rows, schema)
    _report(context, documents, rows)
    return StageResult(
        metrics={
            "documents": float(documents.number),
            "conversations": float(len(of_domain)),
            "general_conversations": float(len(general)),
            "bytes": float(documents.bytes),
        },
        headline="documents" if has_corpus else "conversations",
    )


def _of_domain(context: StageContext[Section]) -> list[dict[str, Any]]:
    """Conversations from the domain's documents."""
    section, exclusions = context.section, context.input("evaluation_sets").folder / "exclusions.parquet"
    corpus = context.input("corpus").folder
    found = training_items(corpus, exclusions, section.max_conversations, domain=section.domain)
    return [item.row() for item in found.items[: section.max_conversations]]


def _all(context: StageContext[Section]) -> list[dict[str, Any]]:
    """All conversations of `instruction_data`, up to the most by digest; they are what the adapter is for."""
    section = context.section
    rows = list(read_rows(context.input("instruction_data").folder / "train.parquet"))
    rows.sort(key=lambda row: (fraction("adapter", row["id"]), row["id"]))
    return [{**row, "domain": section.domain} for row in rows[: section.max_conversations]]


class _Documents(NamedTuple):
    """How many documents were written, and the UTF-8 bytes of their texts."""

    number: int
    bytes: int


def _write_documents(context: StageContext[Section], has_corpus: bool) -> _Documents:
    """Write the domain's documents in the order of the corpus, which is that of their ids."""
    domain, count, size, held_back = context.section.domain, 0, 0, 0
    with TableWriter(context.out / "documents.parquet", CORPUS_SCHEMA) as writer:
        if not has_corpus:
            return _Documents(0, 0)
        excluded = excluded_ids(context.input("evaluation_sets").folder / "exclusions.parquet")
        for row in read_rows(context.input("corpus").folder / "train"):
            if row["domain"] != domain:
                continue
            if row["id"] in excluded:
                held_back += 1
                continue
            writer.add(row, row["bytes"])
            count, size = count + 1, size + row["bytes"]

    if not count:
        raise RecipeError(
            f"adapter_data.domain: the training split holds no document of {domain!r} ({held_back} are "
            "excluded because they hold evaluation items); widen the globs of that domain in the "
            "recipe's sources"
        )
    return _Documents(count, size)


def _general(context: StageContext[Section], of_domain: int, taken: set[str]) -> list[dict[str, Any]]:
    """General conversations, chosen by digest, so many that they are `general_share` of all.

    Args:
        context: The stage's.
        of_domain: Number of the domain's conversations.
        taken: Ids of the domain's conversations.
    """
    share = context.section.general_share
    rows = [
        row
        for row in read_rows(context.input("instruction_data").folder / "train.parquet")
        if row["domain"] == GENERAL and row["id"] not in taken
    ]
    rows.sort(key=lambda row: fraction("general", row["id"]))
    return rows[: round(of_domain * share / (1 - share))]


def _report(context: StageContext[Section], documents: _Documents, rows: list[dict[str, Any]]) -> None:
    domain = context.section.domain
    write_samples(
        context.report, [sample_of_gathered(row) if is_gathered(row) else sample_of(row) for row in rows[:10]]
    )
    table = Counter((row["kind"], row["domain"]) for row in rows)
    bars = {f"{kind}, {of}": float(count) for (kind, of), count in sorted(table.items())}
    bar_chart(context.report / "kinds.png", bars, "Conversations by kind and domain", "conversations")

    write_card(
        context.report,
        "Adapter data",
        [
            f"{documents.number} documents ({documents.bytes / 1e6:.2f} MB) of the domain `{domain}`.",
            "",
            markdown_table(
                ["kind", "domain", "conversations"], [[*key, count] for key, count in sorted(table.items())]
            ),
        ],
    )
