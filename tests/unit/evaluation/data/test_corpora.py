from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.tokens import parts
from tests.unit.evaluation.data.conftest import Measure
from training.data.tables import EXCLUSION_SCHEMA, RAW_SCHEMA, ShardWriter, write_table
from training.data.text import similarity
from training.data.text.similarity import jaccard, shingle_sets, similar_documents
from training.errors import InputRefused
from training.evaluation import corpora
from training.job.context import InputArtifact
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.corpus import CorpusSection, MinHash
from training.specs.evidence import EvaluationReport
from training.specs.execution import Execution
from training.specs.metrics import METRICS

_SETS = st.lists(
    st.lists(st.integers(0, 12), max_size=9).map(lambda shingles: np.unique(np.array(shingles, np.uint64))), max_size=12
)


@given(_SETS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from([1, 5, 2**22]))
@settings(max_examples=200, deadline=None)
def test_the_search_finds_what_comparing_all_pairs_finds(sets: list[np.ndarray], threshold: float, hits: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_MOST_HITS", hits)
        matches = similar_documents(sets, list(range(len(sets))), sets, threshold)
    for query, shingles in enumerate(sets):
        near = [row for row, other in enumerate(sets) if row != query and jaccard(shingles, other) >= threshold]
        assert (matches[query].row if query in matches else None) == (near[0] if near else None)
        assert query not in matches or matches[query].similarity == jaccard(shingles, sets[near[0]])


def test_shingles_do_not_see_case_punctuation_and_white_space() -> None:
    plain, shouted, short = shingle_sets(
        ["The (quick) brown fox_jumps!", "the QUICK\nbrown\tfox, jumps", "the quick"], 5
    )
    assert plain.tolist() == shouted.tolist()
    assert len(plain) == len(short) == 1
    assert plain != short


def _corpus(folder: Path, train: list[str], heldout: list[str], spec: MinHash | None = None) -> InputArtifact:
    parts.write_corpus(folder, [parts.row_of(text) for text in train], [parts.row_of(text) for text in heldout])
    return parts.artifact(folder, "corpus", CorpusSection(near_duplicates=spec or MinHash()))


def _changed(text: str) -> str:
    words = text.split()
    return " ".join([*words[:60], "other", *words[61:]]).upper()


def _pool(folder: Path) -> Pool:
    return Pool(folder, Execution(), EventWriter(None))


@pytest.fixture
def texts() -> list[str]:
    return [parts.text_of(number) for number in range(30)]


def test_a_clean_corpus_has_no_duplicates_and_no_leaks(tmp_path: Path, measure: Measure, texts: list[str]) -> None:
    metrics = measure(_corpus(tmp_path / "c", texts[:25], texts[25:]))
    assert metrics == {
        "documents": 25,
        "bytes": sum(len(text.encode()) for text in texts[:25]),
        "heldout_documents": 5,
        "duplicate_rate": 0,
        "heldout_leaks": 0,
    }
    assert set(metrics) == set(METRICS["corpus"]) - {"unaccounted_documents"}
    assert "report/funnel.json is missing" in (tmp_path / "evaluation-0" / "report" / "card.md").read_text()


@pytest.mark.parametrize(("pieces", "lost"), [(32, 0), (33, 1), (31, 1)])
def test_pieces_that_are_nowhere_are_counted(
    tmp_path: Path, measure: Measure, texts: list[str], pieces: int, lost: int
) -> None:
    artifact = _corpus(tmp_path / "c", texts[:25], texts[25:])
    funnel = {"documents": 31, "pieces": pieces, "dropped": {"too short": 2}, "train": 25, "heldout": 5}
    (tmp_path / "c" / "report").mkdir()
    (tmp_path / "c" / "report" / "funnel.json").write_text(json.dumps(funnel))
    assert measure(artifact)["unaccounted_documents"] == lost


@pytest.mark.parametrize("change", [str, _changed], ids=["exact", "near"])
def test_a_planted_duplicate_is_found(
    tmp_path: Path, measure: Measure, texts: list[str], change: Callable[[str], str]
) -> None:
    metrics = measure(_corpus(tmp_path / "c", [*texts[:24], change(texts[0])], texts[25:]))
    assert metrics["duplicate_rate"] == pytest.approx(2 / 25)
    assert metrics["heldout_leaks"] == 0


def test_what_was_found_is_named_by_its_path(tmp_path: Path, measure: Measure, texts: list[str]) -> None:
    rows = [parts.row_of(text) | {"path": f"{number}.txt"} for number, text in enumerate([*texts, _changed(texts[0])])]
    parts.write_corpus(tmp_path / "c", rows[1:], rows[:1])
    measure(parts.artifact(tmp_path / "c", "corpus", CorpusSection()))
    (leak,) = map(json.loads, (tmp_path / "evaluation-0" / "items.jsonl").read_text().splitlines())
    assert (leak["metric"], leak["path"], leak["other"]) == ("heldout_leaks", "one/0.txt", "one/30.txt")


def test_a_refusal_names_the_commonest_reason_to_drop(tmp_path: Path, texts: list[str]) -> None:
    artifact = _corpus(tmp_path / "c", texts[:25], texts[25:])
    metrics = {"dropped_long_line": 58.0, "dropped_too_short": 3.0}
    dropped = [{"source": "notes", "path": f"{reason}.md", "reason": reason} for reason in ("too short", "long line")]
    (tmp_path / "c" / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dropped))
    manifest = artifact.manifest.model_copy(update={"metrics": metrics})
    measurement = corpora.measure_corpus(InputArtifact(artifact.folder, manifest), _pool(tmp_path))
    cause = "cleaning dropped 61 of 91 documents, 58 of them as long line (corpus.max_line), such as notes/long line.md"
    assert measurement.report.causes == dict.fromkeys(("documents", "bytes", "heldout_documents"), cause)


@pytest.mark.parametrize("change", [str, _changed], ids=["exact", "near"])
def test_a_leaked_document_is_found(
    tmp_path: Path, measure: Measure, texts: list[str], change: Callable[[str], str]
) -> None:
    metrics = measure(_corpus(tmp_path / "c", [*texts[:24], change(texts[27])], texts[25:]))
    assert metrics["heldout_leaks"] == 1
    assert metrics["duplicate_rate"] == 0


def test_the_threshold_is_the_recipes(tmp_path: Path, measure: Measure, texts: list[str]) -> None:
    train = [*texts[:24], _changed(texts[0])]
    strict = measure(_corpus(tmp_path / "c", train, texts[25:], MinHash(threshold=0.99)))
    assert strict["duplicate_rate"] == 0


def _raw(folder: Path, rows: list[dict[str, object]]) -> InputArtifact:
    with ShardWriter(folder / "documents", RAW_SCHEMA) as writer:
        for row in rows:
            writer.add({name: row[name] for name in RAW_SCHEMA.names}, 1)
    return parts.artifact(folder, "raw_corpus")


def test_raw_corpus_counts_skipped_and_damaged_rows(tmp_path: Path, measure: Measure, texts: list[str]) -> None:
    rows = [parts.row_of(text) for text in texts]
    rows[3] = rows[3] | {"id": rows[4]["id"]}
    artifact = _raw(tmp_path / "raw", rows)
    assert {"bad_rows", "left_out_files"}.isdisjoint(measure(artifact))
    card = (tmp_path / "evaluation-0" / "report" / "card.md").read_text()
    assert "not measured: report/skipped.jsonl is missing" in card

    skipped = tmp_path / "raw" / "report" / "skipped.jsonl"
    skipped.parent.mkdir(exist_ok=True)
    skipped.write_text("")
    assert measure(artifact)["bad_rows"] == 1

    skipped.write_text('{"message": "a.txt: is not UTF-8"}\n')
    (skipped.parent / "left_out.json").write_text('{"notes": {".pdf": 2, "hidden": 1}}')
    cause = "1 rows or files were skipped, such as a.txt: is not UTF-8"
    assert corpora.measure_raw_corpus(artifact, _pool(tmp_path)).report.causes == dict.fromkeys(
        ("documents", "bytes"), cause
    )
    assert measure(artifact) == {
        "documents": 30,
        "bytes": sum(len(text.encode()) for text in texts),
        "bad_rows": 2,
        "left_out_files": 3,
    }


def _sets(folder: Path, question: dict[str, object]) -> InputArtifact:
    folder.mkdir()
    good: dict[str, object] = {"id": "q1", "prompt": "What?", "choices": ["a", "b", "c", "d"], "answer": 1}
    lines: dict[str, list[dict[str, object]]] = {
        "text": [{"id": "t", "text": "né"}],
        "questions": [good, good | {"id": "q2"} | question],
        "harmful": [{"id": "h", "prompt": "bad"}],
        "benign": [{"id": "b", "prompt": "good"}],
        "preferences": [{"id": "p", "prompt": "x", "chosen": "y", "rejected": "z"}],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"id": "d", "item": "q1", "reason": "overlap", "overlap": 0.7}
    write_table(folder / "exclusions.parquet", [row, row | {"item": "q2"}], EXCLUSION_SCHEMA)
    return parts.artifact(folder, "evaluation_sets")


@pytest.mark.parametrize(
    ("question", "count"),
    [({}, 2), ({"answer": 4}, 1), ({"choices": ["a", "b", "c", "c"]}, 1), ({"prompt": " "}, 1), ({"id": "q1"}, 1)],
)
def test_only_sound_questions_count(tmp_path: Path, measure: Measure, question: dict[str, object], count: int) -> None:
    metrics = measure(_sets(tmp_path / "sets", question))
    assert metrics == {
        "text_bytes": 3,
        "questions": count,
        "harmful_prompts": 1,
        "benign_prompts": 1,
        "preference_pairs": 1,
        "excluded_documents": 1,
    }


def test_a_malformed_line_is_named(tmp_path: Path, measure: Measure) -> None:
    artifact = _sets(tmp_path / "sets", {})
    (tmp_path / "sets" / "benign.jsonl").write_text('{"id": 1, "prompt": "x"}\n{"id"\n')
    with pytest.raises(InputRefused, match=r"benign\.jsonl:2"):
        measure(artifact)


def test_a_large_corpus_is_searched_for_a_sample_among_all(
    tmp_path: Path, measure: Measure, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = _corpus(tmp_path / "c", [text for text in texts[:12] for text in (text, _changed(text))], texts[25:])
    monkeypatch.setattr(corpora, "QUERY_BYTES", 5000)
    assert measure(artifact)["duplicate_rate"] == 1
    report = EvaluationReport.model_validate_json((tmp_path / "evaluation-0" / "report.json").read_bytes())
    count = report.estimates["duplicate_rate"].count
    assert 0 < count < 24
    assert f"{count} of 24" in (tmp_path / "evaluation-0" / "report" / "card.md").read_text()
