"""Measures `raw_corpus`, `corpus` and `evaluation_sets` from their files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.conversations.messages import plain_answer, turns_key
from training.data.conversations.shortfall import in_words
from training.data.tables import read_rows
from training.data.text.documents import Split, read_part, texts_of
from training.data.text.queries import read_queries, write_queries
from training.data.text.similarity import Match, Shingles, shingle_sets, similar_documents
from training.evaluation.json_lines import read_lines
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.job.parts import Part, Pool
from training.specs.corpus import DROP_REASONS, DROPPED, FUNNEL, MinHash, dropped_metric, filter_reason

QUERY_BYTES = 64 * 2**20
SKIPPED = "report/skipped.jsonl"
LEFT_OUT = "report/left_out.json"
SHORTFALL = "report/shortfall.jsonl"
_CHOICES = 4

Row = dict[str, Any]


def measure_raw_corpus(artifact: InputArtifact, pool: Pool) -> Measurement:
    """Documents, bytes, and bad rows: those that the builder skipped, and those whose id is not their text's."""
    measurement = Measurement()
    counted = pool.run("measure raw_corpus", _count_documents, _parts_of(Split(artifact.folder / "documents")))
    documents, total_bytes = (sum(done.result[name] for done in counted) for name in ("documents", "bytes"))
    damaged = [row for done in counted for row in done.result["damaged"]]
    for id_, path in damaged:
        measurement.fail("bad_rows", id_, 1.0, path=path, reason="not the text of its id")
    measurement.add("documents", documents, documents)
    measurement.add("bytes", total_bytes, documents)

    _count_bad_rows(measurement, artifact.folder / SKIPPED, documents, len(damaged))
    _count_left_out(measurement, artifact.folder / LEFT_OUT)
    return measurement


def _parts_of(split: Split) -> list[Part[Path]]:
    return [Part(path.stem, path, size, str(path)) for path, size in split.files()]


def _count_documents(path: Path, _folder: Path) -> dict[str, Any]:
    """Documents and bytes of a file, and id and path of those whose id is not their text's."""
    documents = total_bytes = 0
    damaged: list[tuple[str, str]] = []
    for row in read_rows(path, ["id", "text", "path"]):
        data = row["text"].encode()
        documents, total_bytes = documents + 1, total_bytes + len(data)
        if hashlib.sha256(data).hexdigest() != row["id"]:
            damaged.append((row["id"], row["path"]))
    return {"documents": documents, "bytes": total_bytes, "damaged": damaged}


def _count_bad_rows(measurement: Measurement, path: Path, documents: int, damaged: int) -> None:
    """Rows that the builder skipped or that are damaged, with one item for each that was skipped."""
    if not path.is_file():
        measurement.leave_out("bad_rows", f"{SKIPPED} is missing: bad rows cannot be counted")
        return

    skipped = read_lines(path)
    if skipped:
        cause = f"{len(skipped):,} rows or files were skipped, such as {skipped[0].get('message', '')}"
        measurement.causes = dict.fromkeys(("documents", "bytes"), cause)
    for row in skipped:
        measurement.items.append({"id": row.get("path", ""), **row, "metric": "bad_rows", "score": 1.0, "weight": 1.0})
    measurement.add("bad_rows", len(skipped) + damaged, documents + len(skipped))


def _count_left_out(measurement: Measurement, path: Path) -> None:
    """Files of the sources that were not read, with one item for each source and reason."""
    if not path.is_file():
        measurement.leave_out("left_out_files", f"{LEFT_OUT} is missing: files that were left out cannot be counted")
        return

    total = 0
    for source, reasons in json.loads(path.read_text(encoding="utf-8")).items():
        for reason, count in reasons.items():
            total += count
            measurement.fail("left_out_files", source, float(count), reason=reason)
    measurement.add("left_out_files", total, total)


def measure_corpus(artifact: InputArtifact, pool: Pool) -> Measurement:
    """Sizes, near-duplicates within the training split, and held-out documents that lie in it."""
    measurement = Measurement()
    spec = _near_duplicates(artifact)
    splits = [Split(artifact.folder / name) for name in ("train", "heldout")]
    train, heldout = (split.table(["id", "source", "path"]) for split in splits)
    train_sizes, heldout_sizes = map(_sizes, splits)
    measurement.add("documents", train.num_rows, train.num_rows)
    measurement.add("bytes", int(train_sizes.sum()), train.num_rows)
    measurement.add("heldout_documents", heldout.num_rows, heldout.num_rows)
    _count_unaccounted(measurement, artifact.folder / "report" / FUNNEL, train.num_rows, heldout.num_rows)
    if cause := _commonest_drop(artifact, train.num_rows + heldout.num_rows):
        measurement.causes = dict.fromkeys(("documents", "bytes", "heldout_documents"), cause)

    # One pass over the training text, for both questions: most of the time goes into its shingles.
    train_sets = list(itertools.islice(_stream(splits[0], spec.ngram), _rows_within(train_sizes, QUERY_BYTES)))
    heldout_sets = list(itertools.islice(_stream(splits[1], spec.ngram), _rows_within(heldout_sizes, QUERY_BYTES)))
    write_queries(pool.shared, [*train_sets, *heldout_sets])
    matches = _search(splits[0], spec, len(train_sets), pool)

    duplicates = {row: match for row, match in matches.items() if row < len(train_sets)}
    leaks = {row - len(train_sets): match for row, match in matches.items() if row >= len(train_sets)}
    _list_matches(measurement, "duplicate_rate", train, train, duplicates)
    _list_matches(measurement, "heldout_leaks", heldout, train, leaks)
    measurement.add("duplicate_rate", len(duplicates) / max(len(train_sets), 1), len(train_sets))
    measurement.add("heldout_leaks", len(leaks), len(heldout_sets))

    measurement.notes.append(
        f"near-duplicate: Jaccard similarity of {spec.ngram}-word shingles of at least "
        f"{spec.threshold:g}, compared exactly"
    )
    if len(train_sets) < train.num_rows:
        measurement.notes.append(
            f"near-duplicates were searched for {len(train_sets):,} of {train.num_rows:,} training "
            "documents, chosen by digest, among all of them"
        )
    return measurement


def _count_unaccounted(measurement: Measurement, path: Path, train: int, heldout: int) -> None:
    """By how much the pieces that were made differ from those in the splits and those that were dropped."""
    if not path.is_file():
        measurement.leave_out("unaccounted_documents", f"report/{FUNNEL} is missing: documents cannot be accounted for")
        return
    funnel = json.loads(path.read_text(encoding="utf-8"))
    dropped = sum(funnel["dropped"].values())
    unaccounted = abs(funnel["pieces"] - dropped - train - heldout)
    if unaccounted:
        message = f"{funnel['pieces']:,} pieces, {dropped:,} dropped, {train + heldout:,} in the splits"
        measurement.fail("unaccounted_documents", FUNNEL, float(unaccounted), reason=message)
    measurement.add("unaccounted_documents", unaccounted, funnel["pieces"])


@dataclass(frozen=True)
class _SearchedFile:
    """A file of training documents.

    Attributes:
        first_row: Number of its first document.
        queries: Folder with the shingles that are searched for.
        own: So many of the first queries are the first training documents themselves.
    """

    path: Path
    first_row: int
    queries: Path
    own: int
    spec: MinHash


def _search(train: Split, spec: MinHash, own: int, pool: Pool) -> dict[int, Match]:
    """For each query the first training document that is a near-duplicate of it and not it itself."""
    parts, first_row = [], 0
    for path, size in train.files():
        parts.append(Part(path.stem, _SearchedFile(path, first_row, pool.shared, own, spec), size, str(path)))
        first_row += pq.read_metadata(path).num_rows

    matches: dict[int, Match] = {}
    for done in pool.run("search near-duplicates", _search_file, parts):
        for query, row, similarity in done.result["matches"]:
            matches.setdefault(query, Match(row, similarity))
    return matches


def _search_file(file: _SearchedFile, _folder: Path) -> dict[str, Any]:
    queries = read_queries(file.queries, file.spec.threshold)
    own_rows = [*range(-file.first_row, file.own - file.first_row), *[-1] * (len(queries.sets) - file.own)]
    stream = shingle_sets(texts_of(read_part(file.path, ["text"])), file.spec.ngram)
    matches = similar_documents(queries.sets, own_rows, stream, file.spec.threshold, queries.prefixes)
    return {"matches": [(query, file.first_row + match.row, match.similarity) for query, match in matches.items()]}


def measure_evaluation_sets(artifact: InputArtifact) -> Measurement:
    """Sizes of the sets. A malformed item does not count; it is among the items."""
    measurement = Measurement()
    folder = artifact.folder
    text = read_lines(folder / "text.jsonl")
    measurement.add("text_bytes", sum(len(row["text"].encode()) for row in text), len(text))

    for metric, name, is_sound in (
        ("questions", "questions.jsonl", _sound_question),
        ("harmful_prompts", "harmful.jsonl", _sound_prompt),
        ("benign_prompts", "benign.jsonl", _sound_prompt),
        ("preference_pairs", "preferences.jsonl", _sound_pair),
    ):
        _count_sound(measurement, metric, read_lines(folder / name), is_sound)

    for metric, name, is_sound in (
        ("heldout_conversations", "conversations.jsonl", _sound_conversation),
        ("heldout_pairs", "pairs.jsonl", _sound_messages_pair),
    ):
        if (folder / name).is_file():
            _count_sound(measurement, metric, read_lines(folder / name), is_sound)
        else:
            measurement.leave_out(metric, "the recipe has no source of them")

    if (folder / SHORTFALL).is_file():
        _add_shortfall(measurement, read_lines(folder / SHORTFALL))
    excluded = {row["id"] for row in read_rows(folder / "exclusions.parquet", ["id"])}
    measurement.add("excluded_documents", len(excluded), len(excluded))
    return measurement


def _count_sound(measurement: Measurement, metric: str, rows: list[Row], is_sound: Callable[[Row], bool]) -> None:
    """Count the sound rows of different ids; every other row is among the items."""
    sound = [row for row in rows if is_sound(row)]
    for row in rows:
        if not is_sound(row):
            measurement.fail(metric, str(row.get("id")), 0.0, reason="malformed")
    measurement.add(metric, len({row["id"] for row in sound}), len(rows))


def _add_shortfall(measurement: Measurement, reasons: list[dict[str, Any]]) -> None:
    """Record why there are few questions: as the reason of a missing metric if there are none, else among the items."""
    for metric in ("questions", "preference_pairs"):
        if measurement.estimates[metric].value == 0:
            del measurement.estimates[metric]
            measurement.leave_out(
                metric,
                f"the held-out texts give none: {in_words(reasons[:2])}. Add text with paragraphs of several sentences",
            )
            continue
        for number, row in enumerate(reasons):
            measurement.fail(metric, f"reason {number + 1}", 0.0, **row)


def _sound_question(row: dict[str, Any]) -> bool:
    choices = row["choices"]
    return (
        bool(row["prompt"].strip())
        and len(set(choices)) == _CHOICES == len(choices)
        and row["answer"] in range(_CHOICES)
        and all(choice.strip() for choice in choices)
    )


def _sound_prompt(row: dict[str, Any]) -> bool:
    return bool(row["prompt"].strip())


def _sound_pair(row: dict[str, Any]) -> bool:
    return bool(row["prompt"].strip()) and row["chosen"].strip() != row["rejected"].strip()


def _sound_conversation(row: Row) -> bool:
    return any(message["role"] == "assistant" and message.get("train") for message in row["messages"])


def _sound_messages_pair(row: Row) -> bool:
    chosen, rejected = (turns_key(row[side], plain_answer) for side in ("chosen", "rejected"))
    return bool(row["prompt"]) and chosen != rejected


def _sizes(split: Split) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of every document, int64 [documents]."""
    sizes = [pc.binary_length(part["text"]).to_numpy() for part in split.parts(["text"])]
    return np.concatenate(sizes).astype(np.int64)


def _near_duplicates(artifact: InputArtifact) -> MinHash:
    """The builder's rule of similarity. Other keys of its search are left out: earlier code had more of them."""
    section: Any = artifact.manifest.section.get("near_duplicates", {})
    return MinHash(**{key: section[key] for key in ("ngram", "threshold") if key in section})


def _commonest_drop(artifact: InputArtifact, kept: int) -> str:
    """The reason for which cleaning dropped most documents, with one of them; empty if none was dropped."""
    rules: Any = artifact.manifest.section.get("rules") or {}
    keys = DROP_REASONS | {filter_reason(name): "rules.filters" for name in rules.get("filters", ())}
    counts = {reason: int(artifact.manifest.metrics.get(dropped_metric(reason), 0)) for reason in keys}
    reason = max(counts, key=counts.__getitem__)
    if not counts[reason]:
        return ""

    example = next(row for row in read_lines(artifact.folder / DROPPED) if row["reason"] == reason)
    key = f" (corpus.{keys[reason]})" if keys[reason] else ""
    dropped = sum(counts.values())
    return (
        f"cleaning dropped {dropped:,} of {dropped + kept:,} documents, {counts[reason]:,} of them as "
        f"{reason}{key}, such as {_place(example)}"
    )


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['source']}/{row['path']}"


def _rows_within(sizes: npt.NDArray[np.int64], max_bytes: int) -> int:
    """How many of the first documents it takes to reach `max_bytes` of text."""
    return int(np.searchsorted(np.cumsum(sizes), max_bytes)) + 1


def _stream(split: Split, ngram: int) -> Iterator[Shingles]:
    return shingle_sets((text for batch in split.texts() for text in batch), ngram)


def _list_matches(
    measurement: Measurement, metric: str, queries: pa.Table, train: pa.Table, matches: dict[int, Match]
) -> None:
    """List the documents that are near-duplicates, each with the training document that it is like."""
    for query, match in sorted(matches.items()):
        row, other = (
            table.slice(number, 1).select(["id", "source", "path"]).to_pylist()[0]
            for table, number in ((queries, query), (train, match.row))
        )
        measurement.fail(metric, row["id"], match.similarity, path=_place(row), other=_place(other))
