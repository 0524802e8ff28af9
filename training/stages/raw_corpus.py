"""`raw_corpus`: the texts of all sources, as they are, with where each is from.

A few files of a source are one part of the work, and every part writes its own parquet files.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from training.data.custom_code import CustomCode
from training.data.reports import bar_chart, markdown_table, remote_lines, write_card, write_remote, write_samples
from training.data.sources.bad_rows import BadRows, read_skipped
from training.data.sources.dataset_files import files_of
from training.data.sources.fetching import PART_BYTES, fetch_all, fetched_folder, grouped, provenance
from training.data.sources.file_state import state_of
from training.data.sources.line_ranges import cut_at_lines
from training.data.sources.reading import (
    READING_MEMORY,
    WITHOUT_DOCUMENT,
    Document,
    licence_of,
    read_files,
)
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import SourceFile, is_function_alone, shown_reasons
from training.data.sources.stream_ranges import cut_at_ends
from training.data.tables import RAW_SCHEMA, ShardWriter, publish_shards, text_id
from training.data.text.normal_form import normalised
from training.data.tokens.given_ids import given_ids, write_tokenizer
from training.errors import SourceError
from training.job.bounded_memory import bounded_memory
from training.job.context import StageContext
from training.job.parts import Finished, Part, Pool, report_bytes
from training.specs.job import CODE, StageResult
from training.specs.raw_corpus import RawCorpusSection as Section
from training.specs.raw_corpus import Source
from training.specs.statistics import STATISTICS, DataStatistics, SourceCounts, length_bin, length_bins
from training.store.store import file_entry

LEFT_OUT = "left_out.json"
_SKIPPED = "skipped.jsonl"
_DOCUMENTS = "documents"
_PART_BYTES = PART_BYTES
_SAMPLES = 10
_LISTED = 100
_CHANGED = (
    "of token ids have other line ends, marks or composed letters in the corpus's normal form, and so get other ids"
)


@dataclass(frozen=True)
class SourcePart:
    """Some files of a source.

    Attributes:
        files: None of them where the source is a function that gets none.
        fetched: Where remote files are fetched to. Those of a source with a limit are, when it is their turn.
        code: The recipe's own, where the source is a function of it.
        tokenizer: Where the source holds token ids, the tokenizer.json that they are of.
    """

    source: Source
    files: tuple[SourceFile | RemoteFile, ...]
    on_bad_row: Literal["fail", "skip"]
    shard_bytes: int
    fetched: Path
    code: CustomCode | None = None
    tokenizer: Path | None = None


@dataclass
class _Gathered:
    """What all parts of the sources gave.

    Attributes:
        left_out: For each source, its files and pages that gave no document, by reason.
        bad: Rows and files that could not be read, and the messages of the first hundred.
        lost: The first hundred pages of HTML that gave no text, each with its reason.
        remote: What is recorded of each file that was fetched.
        changed: For each source of token ids, the documents of which `corpus` makes another normal form.
    """

    documents: Counter[str]
    bytes: Counter[str]
    left_out: dict[str, Counter[str]]
    bad: int
    listed: list[str]
    lost: list[str]
    samples: list[dict[str, Any]]
    lengths: Counter[int]
    remote: list[dict[str, Any]]
    changed: Counter[str] = field(default_factory=Counter)


def run(context: StageContext[Section]) -> StageResult:
    """Gather the sources.

    Raises:
        SourceError: A source is missing or malformed, or all of them together hold no document.
        RecipeError: A function of the recipe's own code fails.
    """
    section = context.section
    code = CustomCode.read(context.files[CODE]) if CODE in context.files else None
    pool = Pool(context.work, context.execution, context.events, READING_MEMORY)
    gathered = _Gathered(
        Counter(), Counter(), {source.name: Counter() for source in section.sources}, 0, [], [], [], Counter(), []
    )
    tokenizer = None if section.tokenizer is None else write_tokenizer(section.tokenizer, pool.shared / "tokenizer")
    finished: list[Finished] = []
    for number, source in enumerate(section.sources):
        parts = list(_parts(source, section, f"{number:03d}", gathered.left_out[source.name], pool, code, tokenizer))
        of_source = pool.run(f"read {source.name}", read_part, parts, take=partial(_publish, context))
        _add(gathered, source.name, of_source)
        if source.input_ids is not None:
            _require_its_tokenizer(source.name, of_source)
        files = (file for part in parts for file in part.argument.files)
        gathered.remote += provenance(files, source, fetched_folder(pool))
        finished += of_source
        _log_left_out(context, source.name, gathered.left_out[source.name])
        if changed := gathered.changed[source.name]:
            context.events.log(f"{source.name}: {changed:,} documents {_CHANGED}")

    if not gathered.bytes.total():
        raise SourceError(
            f"the sources {', '.join(source.name for source in section.sources)} hold no text: "
            + (gathered.listed[0] if gathered.listed else "all texts are empty; correct their paths in the recipe")
        )

    with (context.report / _SKIPPED).open("w", encoding="utf-8") as file:
        for part in finished:
            file.write((part.folder / _SKIPPED).read_text(encoding="utf-8"))
    _report(context, gathered)
    write_remote(context.report, gathered.remote)
    (context.report / LEFT_OUT).write_text(json.dumps(gathered.left_out, sort_keys=True, indent=1), encoding="utf-8")
    return StageResult(
        metrics={
            "documents": float(gathered.documents.total()),
            "bytes": float(gathered.bytes.total()),
            "bad_rows": float(gathered.bad),
            "left_out_files": float(sum(files.total() for files in gathered.left_out.values())),
        },
        headline="documents",
        facts={} if tokenizer is None else {"tokenizer": file_entry(tokenizer).sha256},
    )


def _publish(context: StageContext[Section], part: Finished) -> None:
    publish_shards([part.folder / _DOCUMENTS], context.out / _DOCUMENTS)


def _parts(
    source: Source,
    section: Section,
    name: str,
    left_out: Counter[str],
    pool: Pool,
    code: CustomCode | None,
    tokenizer: Path | None,
) -> Iterator[Part[SourcePart]]:
    """The parts of a source, in the order of its files. Files that are left out by name or content are counted."""
    part_of = partial(
        SourcePart,
        source,
        on_bad_row=section.on_bad_row,
        shard_bytes=section.shard_megabytes * 2**20,
        fetched=fetched_folder(pool),
        code=code if source.function is not None else None,
        tokenizer=tokenizer if source.input_ids is not None else None,
    )
    files = files_of(source, left_out)
    if source.limit is not None or is_function_alone(source):
        yield Part(f"{name}-00000", part_of(tuple(files)), 0, f"source {source.name}")
        return

    here = fetch_all(files, source.name, pool)
    made_by = ""
    if source.input_ids is None:
        here = cut_at_lines(here, source, pool, _PART_BYTES)
    else:
        assert tokenizer is not None
        here = cut_at_ends(here, source, pool, _PART_BYTES, given_ids(tokenizer).end)
        made_by = file_entry(tokenizer).sha256
    for number, group in enumerate(grouped(here, _PART_BYTES)):
        size = sum(file.bytes for file in group)
        yield Part(f"{name}-{number:05d}", part_of(tuple(group)), size, group[0].shown, state_of(group) + made_by)


def read_part(part: SourcePart, folder: Path) -> dict[str, Any]:
    """Write the documents of some files.

    Returns:
        How many `documents` and `bytes` of text, their `lengths` by bin, how many `bad` rows, files `left_out` by
        reason, pages of HTML that were `lost`, `samples`, and how many documents of token ids are `changed` by the
        corpus's normal form.
    """
    bad = BadRows(part.on_bad_row, folder / _SKIPPED)
    left_out, lengths = Counter[str](), Counter[int]()
    documents = size = changed = 0
    decoder = None if part.tokenizer is None else given_ids(part.tokenizer)
    samples: list[dict[str, Any]] = []
    lost: list[str] = []

    def list_lost(path: str, reason: str) -> None:
        if len(lost) < _LISTED:
            lost.append(f"{part.source.name}/{path}: {reason}")

    with (
        bounded_memory(READING_MEMORY),
        ShardWriter(folder / _DOCUMENTS, RAW_SCHEMA, part.shard_bytes) as writer,
    ):
        read = read_files(part.source, part.files, bad, part.fetched, left_out, list_lost, part.code, decoder)
        for document in read:
            row = _row(document)
            writer.add(row, row["bytes"])
            documents, size = documents + 1, size + row["bytes"]
            lengths[length_bin(len(document.text))] += 1
            changed += decoder is not None and normalised(document.text) != document.text
            report_bytes(size)
            if len(samples) < _SAMPLES:
                samples.append(_sample(row))
    return {
        "documents": documents,
        "bytes": size,
        "lengths": lengths,
        "bad": bad.count,
        "left_out": left_out,
        "lost": lost,
        "samples": samples,
        "changed": changed,
    }


def _add(gathered: _Gathered, source: str, parts: Sequence[Finished]) -> None:
    for part in parts:
        gathered.documents[source] += part.result["documents"]
        gathered.bytes[source] += part.result["bytes"]
        gathered.left_out[source].update(part.result["left_out"])
        gathered.lengths.update({int(bin_): count for bin_, count in part.result["lengths"].items()})
        gathered.bad += part.result["bad"]
        gathered.changed[source] += part.result["changed"]
        messages = read_skipped(part.folder / _SKIPPED)
        gathered.listed += itertools.islice(messages, _LISTED - len(gathered.listed))
        gathered.lost = [*gathered.lost, *part.result["lost"]][:_LISTED]
        gathered.samples = [*gathered.samples, *part.result["samples"]][:_SAMPLES]


def _require_its_tokenizer(source: str, parts: Sequence[Finished]) -> None:
    """Refuse a source of which most documents are bad: a wrong tokenizer writes some short ones alike.

    Raises:
        SourceError: It is one.
    """
    bad, documents = (sum(part.result[name] for part in parts) for name in ("bad", "documents"))
    if bad > documents:
        first = next(message for part in parts for message in read_skipped(part.folder / _SKIPPED))
        raise SourceError(
            f"source {source}: {bad:,} of {bad + documents:,} documents are not what tokenizer.from writes, such as "
            f"{first}"
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


def _report(context: StageContext[Section], gathered: _Gathered) -> None:
    write_samples(context.report, gathered.samples)
    counted = DataStatistics(
        sources={
            source.name: SourceCounts(documents=gathered.documents[source.name], bytes=gathered.bytes[source.name])
            for source in context.section.sources
        },
        unit="characters",
        lengths=length_bins(gathered.lengths),
    )
    (context.report / STATISTICS).write_text(counted.model_dump_json(), encoding="utf-8")
    megabytes = {name: size / 1e6 for name, size in gathered.bytes.items()}
    bar_chart(context.report / "sources.png", megabytes, "Text per source", "MB")

    rows = [
        [
            source.name,
            licence_of(source) or "not given",
            gathered.documents[source.name],
            f"{megabytes.get(source.name, 0):.2f}",
            shown_reasons(gathered.left_out[source.name]) or "nothing",
        ]
        for source in context.section.sources
    ]
    lines = [
        "Texts as they were found, before any cleaning.",
        "",
        markdown_table(["source", "licence", "documents", "MB", "files left out"], rows),
        "",
        f"Rows and files that could not be read and were skipped: **{gathered.bad}**",
        "",
    ]
    lines += [f"- {message}" for message in gathered.listed]
    if gathered.lost:
        lines += ["", "Pages that gave no text, the first of them:", "", *(f"- {page}" for page in gathered.lost)]
    lines += [f"- {name}: {count:,} documents {_CHANGED}" for name, count in gathered.changed.items() if count]
    lines += remote_lines(gathered.remote)
    write_card(context.report, "Raw corpus", lines)
