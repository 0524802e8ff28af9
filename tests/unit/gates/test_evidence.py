"""Evidence is of this version, by this suite and code, unedited, and its values follow from its items."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.gates.evidence_reader import Evidence, read_evidence
from tests.patience import at_most
from tests.unit.gates.worlds import World, bits_of, nats, share_of, shares
from training.errors import InputRefused
from training.specs.artifacts import InputRecord, Manifest
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, EvaluationReport

ROWS = shares("refusal_rate", [True] * 31 + [False] * 9)
REPORT = EvaluationReport(estimates={"refusal_rate": share_of(ROWS)})


def measured(world: World, **other: Any) -> tuple[Manifest, Manifest]:
    manifest = world.model()
    return manifest, world.evaluation(manifest, REPORT, ROWS, **other)


def test_sound_evidence_is_read(world: World) -> None:
    evidence = world.read(*measured(world))
    assert evidence.problems == {}
    assert evidence.estimates == REPORT.estimates
    assert [item.score for item in evidence.items["refusal_rate"]] == [row["score"] for row in ROWS]
    assert evidence.rows["refusal_rate"] == ROWS


def test_evidence_of_another_version(world: World) -> None:
    _, evaluation = measured(world)
    with pytest.raises(InputRefused, match="is evidence of another version: it measured sft_model .*, not sft_model"):
        world.read(world.model(), evaluation)


def test_evidence_of_other_bytes_under_the_same_name(world: World) -> None:
    manifest = world.model()
    other = InputRecord(asset=manifest.asset, version=manifest.version, digest="0" * 64)
    with pytest.raises(InputRefused, match="is evidence of other bytes: it measured content 000000000000"):
        world.read(manifest, world.evaluation(manifest, REPORT, ROWS, artifact=other))


def test_evidence_of_nothing(world: World) -> None:
    manifest, evaluation = measured(world)
    with pytest.raises(InputRefused, match="does not say what it measured"):
        world.read(manifest, evaluation.model_copy(update={"inputs": {}}))


@pytest.mark.parametrize("other", [{"sets": "6" * 64}, {"section": {"context": 256}}])
def test_evidence_of_another_suite(world: World, other: dict[str, Any]) -> None:
    with pytest.raises(InputRefused, match="is evidence of another suite"):
        world.read(*measured(world, **other))


def test_evidence_by_other_code(world: World) -> None:
    with pytest.raises(InputRefused, match="is evidence by other code: the evaluator was dddddddddddd and is cccccc"):
        world.read(*measured(world, code="d" * 64))


@pytest.mark.parametrize("name", [REPORT_FILE, ITEMS_FILE, "report/samples.json"])
def test_an_edited_file(world: World, name: str) -> None:
    manifest, evaluation = measured(world)
    path = world.store.folder(evaluation.asset, evaluation.version) / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputRefused, match=f"was edited: .*the file {name} has changed .*delete .*sft_model"):
        world.read(manifest, evaluation)


def test_a_removed_and_an_added_file(world: World) -> None:
    manifest, evaluation = measured(world)
    folder = world.store.folder(evaluation.asset, evaluation.version)
    (folder / "more.json").write_text("{}")
    with pytest.raises(InputRefused, match=r"was edited: .*more\.json was added"):
        world.read(manifest, evaluation)
    (folder / "more.json").unlink()
    (folder / ITEMS_FILE).unlink()
    with pytest.raises(InputRefused, match=r"was edited: .*items\.jsonl is missing"):
        world.read(manifest, evaluation)


def test_an_edited_manifest(world: World) -> None:
    manifest, evaluation = measured(world)
    with pytest.raises(InputRefused, match="was edited: .*content digest"):
        world.read(manifest, evaluation.model_copy(update={"digest": "0" * 64}))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("", r"report\.json is not JSON"),
        ("[]", r"report\.json is no JSON object"),
        ("{}", "it needs estimates"),
        ('{"estimates": []}', "`estimates` of report.json is no object"),
        ('{"estimates": {}, "missing": 3}', "`missing` of report.json is no object"),
        ('{"metrics": {}, "counts": {}}', "has the keys counts, metrics"),
        ("[" * 100_000, r"report\.json is not JSON"),
        ('{"estimates": ' + "9" * 5000 + "}", r"report\.json is not JSON"),
    ],
)
def test_a_report_that_is_none(world: World, report: str, said: str) -> None:
    with pytest.raises(InputRefused, match=f"cannot be read: .*{said}.*materialize sft_model to measure it again"):
        world.raw(report)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("{", r"items\.jsonl:1 is not JSON"),
        ("\n\n[]", r"items\.jsonl:3 is no JSON object"),
        ("{}", r"items\.jsonl:1 names no metric"),
        ('{"metric": 1}', r"items\.jsonl:1 names no metric"),
        ("[" * 100_000, r"items\.jsonl:1 is not JSON"),
    ],
)
def test_items_that_are_none(world: World, items: str, said: str) -> None:
    with pytest.raises(InputRefused, match=said):
        world.raw('{"estimates": {}}', items)


def broken(world: World, report: EvaluationReport, rows: list[dict[str, Any]] | str) -> Evidence:
    manifest = world.model()
    return world.read(manifest, world.evaluation(manifest, report, rows))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": float("nan")}, "one of its items is not an item: score: Input should be a finite number"),
        ({"score": float("inf")}, "one of its items is not an item: score: Input should be a finite number"),
        ({"score": 10**400}, "one of its items is not an item: score"),
        ({"score": True}, "one of its items is not an item: score"),
        ({"score": "1"}, "one of its items is not an item: score"),
        ({"id": None}, "one of its items is not an item: id"),
        ({"id": "refusal_rate-1"}, "its item refusal_rate-1 is there twice"),
        ({"weight": 0.0}, "its item refusal_rate-0 has the weight 0"),
        ({"weight": -1.0}, "its item refusal_rate-0 has the weight -1"),
        ({"weight": 2.0}, "are not all right or wrong"),
        ({"score": 0.5}, "are not all right or wrong"),
        ({"score": 0.0}, "does not follow from its items: the report says 0.775, and its items give 0.75"),
        ({"metric": "other"}, "does not follow from its items: it was measured on 40, and items.jsonl holds 39"),
    ],
)
def test_a_bad_item_makes_its_metric_unusable_and_no_other(world: World, change: dict[str, Any], said: str) -> None:
    rows = nats(40, 1.8)
    both = EvaluationReport(estimates={**REPORT.estimates, "heldout_bits_per_byte": bits_of(rows)})
    evidence = broken(world, both, [ROWS[0] | change, *ROWS[1:], *rows])
    assert said in evidence.problems["refusal_rate"]
    assert set(evidence.estimates) == set(evidence.items) == {"heldout_bits_per_byte"}


@pytest.mark.parametrize("scores", [[1e308] * 40, [1e308, -1e308] * 20])
def test_sums_that_are_too_large(world: World, scores: list[float]) -> None:
    rows = [row | {"score": score} for row, score in zip(nats(40, 1.8), scores, strict=True)]
    report = EvaluationReport(estimates={"heldout_bits_per_byte": bits_of(nats(40, 1.8))})
    assert "does not follow" in broken(world, report, rows).problems["heldout_bits_per_byte"]


def test_an_edited_item_whose_digest_was_repaired_is_still_found_out(world: World) -> None:
    rows = nats(40, 1.8)
    report = EvaluationReport(estimates={"heldout_bits_per_byte": bits_of(rows)})
    edited = [rows[0] | {"score": rows[0]["score"] * 0.999}, *rows[1:]]
    assert broken(world, report, rows).problems == {}
    assert "does not follow" in broken(world, report, edited).problems["heldout_bits_per_byte"]


@pytest.mark.parametrize(
    "estimate",
    [
        {"value": "1", "count": 1, "method": "exact"},
        {"value": 1.0, "count": 1},
        3,
        {"value": 1.0, "count": 1, "method": "guess"},
        {"value": 1.0, "count": 1, "method": "exact", "more": 1},
    ],
)
def test_an_estimate_that_is_none(world: World, estimate: object) -> None:
    evidence = world.raw(json.dumps({"estimates": {"m": estimate}}))
    assert evidence.problems["m"].startswith("is not an estimate that can be read: ")


def test_what_was_counted_needs_no_items_and_may_have_some(world: World) -> None:
    evidence = world.raw(
        '{"estimates": {"m": {"value": 2, "count": 5, "method": "exact"}}}',
        [{"metric": "m", "id": "a", "score": 1.0, "path": "x"}],
    )
    assert evidence.estimates["m"].value == 2
    assert evidence.items == {} and len(evidence.rows["m"]) == 1


def test_lines_end_at_newlines_only(world: World) -> None:
    rows = [row | {"answer": "a\u2028b\x85c\rd"} for row in ROWS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert broken(world, REPORT, text).problems == {}


def test_a_judgement_takes_less_than_three_seconds(world: World) -> None:
    rows = [row | {"answer": "x" * 500} for row in nats(3000, 1.8)]
    names = [f"m{number}" for number in range(8)]
    report = EvaluationReport(estimates={name: bits_of(rows) for name in names})
    manifest = world.model()
    evaluation = world.evaluation(manifest, report, [row | {"metric": name} for name in names for row in rows])
    with at_most(3):
        evidence = read_evidence(manifest, evaluation, world.terms(), world.store)
    assert evidence.problems == {}
