"""Measures `raw_corpus`, `corpus` and `evaluation_sets` from their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from training.context import InputArtifact
from training.data.documents import read_split, text_batches
from training.data.shortfall import in_words
from training.data.tables import read_rows
from training.errors import InputRefused
from training.evaluation.measurement import Measurement
from training.evaluation.similarity import Match, Shingles, most_similar, shingle_sets
from training.specs.corpus import CorpusSection, MinHash

QUERY_BYTES = 64 * 2**20
SKIPPED = "report/skipped.jsonl"
SHORTFALL = "report/shortfall.jsonl"
_CHOICES = 4


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file.

    Raises:
        InputRefused: The file is missing or a line is not JSON; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} cannot be read ({error}); materialize the asset again") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise InputRefused(f"{path}, line {number}: {error}; materialize the asset again") from error
    return rows


def measure_raw_corpus(artifact: InputArtifact) -> Measurement:
    """Documents, bytes, and rows that are bad: skipped by the builder, or not what their id says."""
    found = Measurement()
    documents = size = damaged = 0
    for row in read_rows(artifact.folder / "documents", ["id", "text", "path"]):
        data = row["text"].encode()
        documents, size = documents + 1, size + len(data)
        if hashlib.sha256(data).hexdigest() != row["id"]:
            damaged += 1
            found.fail("bad_rows", row["id"], 1.0, path=row["path"], reason="not the text of its id")
    found.add("documents", documents, documents)
    found.add("bytes", size, documents)
    if (artifact.folder / SKIPPED).is_file():
        skipped = read_lines(artifact.folder / SKIPPED)
        for row in skipped:
            found.items.append({"id": row.get("path", ""), **row, "metric": "bad_rows", "score": 1.0, "weight": 1.0})
        found.add("bad_rows", len(skipped) + damaged, documents + len(skipped))
    else:
        found.leave_out("bad_rows", f"{SKIPPED} is missing: bad rows cannot be counted")
    return found


def measure_corpus(artifact: InputArtifact) -> Measurement:
    """Sizes, near-duplicates within the training split, and held-out documents that lie in it."""
    found = Measurement()
    spec = CorpusSection.model_validate(artifact.manifest.section).near_duplicates
    train = read_split(artifact.folder / "train", ["id", "text"])
    heldout = read_split(artifact.folder / "heldout", ["id", "text"])
    found.add("documents", train.num_rows, train.num_rows)
    found.add("bytes", _text_bytes(train), train.num_rows)
    found.add("heldout_documents", heldout.num_rows, heldout.num_rows)

    whole = found.estimates["bytes"].value <= QUERY_BYTES
    train_sets = _sets(train, spec, QUERY_BYTES)
    queries = {"duplicate_rate": (train_sets, list(range(len(train_sets)))), "heldout_leaks": _heldout(heldout, spec)}
    for metric, (sets, rows) in queries.items():
        stream = train_sets if whole else _stream(train, spec, None)
        matches = most_similar(sets, rows, stream, spec.threshold)
        _list_matches(found, metric, heldout if metric == "heldout_leaks" else train, train, matches)
        share = len(matches) / max(len(sets), 1)
        found.add(metric, share if metric == "duplicate_rate" else len(matches), len(sets))
    found.notes.append(f"near-duplicate: Jaccard similarity of {spec.ngram}-word shingles of at least "
                       f"{spec.threshold:g}, compared exactly")
    if not whole:
        found.notes.append(f"near-duplicates were searched for {len(train_sets):,} of {train.num_rows:,} training "
                           "documents, chosen by digest, among all of them")
    return found


def measure_evaluation_sets(artifact: InputArtifact) -> Measurement:
    """Sizes of the sets; a malformed item does not count and is listed."""
    found = Measurement()
    folder = artifact.folder
    text = read_lines(folder / "text.jsonl")
    found.add("text_bytes", sum(len(row["text"].encode()) for row in text), len(text))
    for metric, name, sound in (("questions", "questions.jsonl", _sound_question),
                                ("harmful_prompts", "harmful.jsonl", _sound_prompt),
                                ("benign_prompts", "benign.jsonl", _sound_prompt),
                                ("preference_pairs", "preferences.jsonl", _sound_pair)):
        rows = read_lines(folder / name)
        good = [row for row in rows if sound(row)]
        for row in rows:
            if not sound(row):
                found.fail(metric, str(row.get("id")), 0.0, reason="malformed")
        found.add(metric, len({row["id"] for row in good}), len(rows))
    if (folder / SHORTFALL).is_file():
        _add_shortfall(found, read_lines(folder / SHORTFALL))
    excluded = {row["id"] for row in read_rows(folder / "exclusions.parquet", ["id"])}
    found.add("excluded_documents", len(excluded), len(excluded))
    return found


def _add_shortfall(found: Measurement, reasons: list[dict[str, Any]]) -> None:
    """Say why there are few questions: as their gates' cause where there are none at all, else among the items."""
    for metric in ("questions", "preference_pairs"):
        if found.estimates[metric].value == 0:
            del found.estimates[metric]
            found.leave_out(metric, f"the held-out texts give none: {in_words(reasons[:2])}. Add text with paragraphs "
                                    "of several sentences")
            continue
        for number, row in enumerate(reasons):
            found.fail(metric, f"reason {number + 1}", 0.0, **row)


def _sound_question(row: dict[str, Any]) -> bool:
    choices = row["choices"]
    return (bool(row["prompt"].strip()) and len(set(choices)) == _CHOICES == len(choices) and row["answer"] in range(4)
            and all(choice.strip() for choice in choices))


def _sound_prompt(row: dict[str, Any]) -> bool:
    return bool(row["prompt"].strip())


def _sound_pair(row: dict[str, Any]) -> bool:
    return bool(row["prompt"].strip()) and row["chosen"].strip() != row["rejected"].strip()


def _text_bytes(table: pa.Table) -> int:
    return sum(len(text.encode()) for batch in text_batches(table) for text in batch)


def _stream(table: pa.Table, spec: MinHash, max_bytes: int | None) -> Iterator[Shingles]:
    return shingle_sets((text for batch in text_batches(table, max_bytes) for text in batch), spec.ngram)


def _sets(table: pa.Table, spec: MinHash, max_bytes: int) -> list[Shingles]:
    return list(_stream(table, spec, max_bytes))


def _heldout(table: pa.Table, spec: MinHash) -> tuple[list[Shingles], list[int]]:
    sets = _sets(table, spec, QUERY_BYTES)
    return sets, [-1] * len(sets)


def _list_matches(found: Measurement, metric: str, queries: pa.Table, train: pa.Table,
                  matches: dict[int, Match]) -> None:
    for query, match in sorted(matches.items()):
        found.fail(metric, queries["id"][query].as_py(), match.similarity, other=train["id"][match.row].as_py())
