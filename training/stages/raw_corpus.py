"""`raw_corpus`: the texts of all sources, as they are, with where each is from."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.sources.bad_rows import BadRows
from training.data.sources.reading import READING_MEMORY, WITHOUT_DOCUMENT, Document, licence_of, read_source
from training.data.sources.source_files import shown_reasons
from training.data.tables import RAW_SCHEMA, ShardWriter, text_id
from training.errors import SourceError
from training.job.bounded_memory import bounded_memory
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.raw_corpus import RawCorpusSection as Section

LEFT_OUT = "left_out.json"
_SAMPLES = 10
_PROGRESS_EVERY = 5_000


def run(context: StageContext[Section]) -> StageResult:
    """Gather the sources.

    Raises:
        SourceError: A source is missing or malformed, or all of them together hold no document.
    """
    section = context.section
    bad = BadRows(section.on_bad_row, context.report / "skipped.jsonl")
    documents, bytes_ = Counter[str](), Counter[str]()
    left_out = {source.name: Counter[str]() for source in section.sources}
    samples: list[dict[str, Any]] = []

    with (
        bounded_memory(READING_MEMORY),
        ShardWriter(context.out / "documents", RAW_SCHEMA, section.shard_megabytes * 2**20) as writer,
    ):
        for source in section.sources:
            context.events.phase(f"read {source.name}")
            for document in read_source(source, bad, left_out=left_out[source.name]):
                row = _row(document)
                writer.add(row, row["bytes"])
                documents[source.name] += 1
                bytes_[source.name] += row["bytes"]
                if len(samples) < _SAMPLES:
                    samples.append(_sample(row))
                if documents.total() % _PROGRESS_EVERY == 0:
                    context.events.progress(documents.total(), None, "documents", f"{bytes_.total() / 1e6:.0f} MB")
            _log_left_out(context, source.name, left_out[source.name])

    if not bytes_.total():
        raise SourceError(
            f"the sources {', '.join(source.name for source in section.sources)} hold no text: "
            + (bad.listed[0] if bad.listed else "all texts are empty; correct their paths in the recipe")
        )

    _report(context, documents, bytes_, left_out, bad, samples)
    (context.report / LEFT_OUT).write_text(json.dumps(left_out, sort_keys=True, indent=1), encoding="utf-8")
    return StageResult(
        metrics={
            "documents": float(documents.total()),
            "bytes": float(bytes_.total()),
            "bad_rows": float(bad.count),
            "left_out_files": float(sum(files.total() for files in left_out.values())),
        },
        headline="documents",
    )


def _log_left_out(context: StageContext[Section], source: str, left_out: Counter[str]) -> None:
    if left_out:
        context.events.log(f"{source}: left out: {shown_reasons(left_out)}")
    if left_out[WITHOUT_DOCUMENT]:  # only reading finds these; the run shows the other reasons by itself
        context.events.log(f"{source}: files without a row of text: {left_out[WITHOUT_DOCUMENT]:,}", "warning")


def _row(document: Document) -> dict[str, Any]:
    return {"id": text_id(document.text), "bytes": len(document.text.encode()), **document._asdict()}


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    return {"source": row["source"], "path": row["path"], "bytes": row["bytes"], "excerpt": row["text"][:200]}


def _report(
    context: StageContext[Section],
    documents: Counter[str],
    bytes_: Counter[str],
    left_out: dict[str, Counter[str]],
    bad: BadRows,
    samples: list[dict[str, Any]],
) -> None:
    write_samples(context.report, samples)
    megabytes = {name: size / 1e6 for name, size in bytes_.items()}
    bar_chart(context.report / "sources.png", megabytes, "Text per source", "MB")

    rows = [
        [
            source.name,
            licence_of(source) or "not given",
            documents[source.name],
            f"{megabytes.get(source.name, 0):.2f}",
            shown_reasons(left_out[source.name]) or "nothing",
        ]
        for source in context.section.sources
    ]
    lines = [
        "Texts as they were found, before any cleaning.",
        "",
        markdown_table(["source", "licence", "documents", "MB", "files left out"], rows),
        "",
        f"Rows and files that could not be read and were skipped: **{bad.count}**",
        "",
    ]
    lines += [f"- {message}" for message in bad.listed]
    write_card(context.report, "Raw corpus", lines)
