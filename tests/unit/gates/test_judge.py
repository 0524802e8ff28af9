"""Every way in which a gate passes, and every way in which it refuses, each with its own message."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest

from pipeline.gates.judge import judge_gate
from tests.unit.gates.worlds import Row, World, bits_of, nats, ratio_of, ratios, share_of, shares
from training.specs.artifacts import Waiver
from training.specs.evidence import Estimate, exact
from training.specs.gates import Gate, Verdict

REFUSAL = Gate(metric="refusal_rate", must_be=">=", threshold=0.6)
BITS = Gate(metric="heldout_bits_per_byte", must_be="<=", threshold=3.0)
AGAINST = Gate(metric="refusal_rate", must_be=">=", threshold=0.6, champion_margin=0.02)


def right(good: int, count: int, metric: str = "refusal_rate", **keys: Any) -> list[Row]:
    return shares(metric, [number < good for number in range(count)], **keys)


def judged(world: World, gate: Gate, rows: list[Row], champion: list[Row] | None = None) -> Verdict:
    estimate = share_of if gate.metric != "heldout_bits_per_byte" else bits_of
    own = world.evidence({gate.metric: estimate(rows)}, rows)
    theirs = world.evidence({gate.metric: estimate(champion)}, champion) if champion is not None else None
    return judge_gate(gate, own, theirs)


@pytest.mark.parametrize(
    ("must_be", "value", "passed"),
    [
        (">=", 1.0, True),
        (">=", 0.999, False),
        (">", 1.0, False),
        (">", 1.001, True),
        ("<=", 1.0, True),
        ("<=", 1.001, False),
        ("<", 1.0, False),
        ("<", 0.999, True),
        ("==", 1.0, True),
        ("==", 0.999, False),
    ],
)
def test_what_was_counted_is_compared_as_it_is(world: World, must_be: str, value: float, passed: bool) -> None:
    gate = Gate.model_validate({"metric": "documents", "must_be": must_be, "threshold": 1})
    verdict = judge_gate(gate, world.evidence({"documents": exact(value, 1)}), None)
    assert verdict.passed is passed
    assert verdict.reason == f"documents {value:.6g} {'passes' if passed else 'fails'} {must_be} 1"
    assert (verdict.method, verdict.interval, verdict.count) == ("exact", None, 1)


def test_a_refusal_ends_with_the_cause_that_was_found(world: World) -> None:
    report = {"estimates": {"bytes": {"value": 5.0, "count": 1, "method": "exact"}}, "causes": {"bytes": "58 went"}}
    evidence = world.raw(json.dumps(report))
    assert judge_gate(Gate(metric="bytes", must_be=">=", threshold=9), evidence, None).reason == (
        "bytes 5 fails >= 9: 58 went"
    )
    assert judge_gate(Gate(metric="bytes", must_be=">=", threshold=5), evidence, None).reason == "bytes 5 passes >= 5"


def test_a_share_passes_when_its_bound_does(world: World) -> None:
    verdict = judged(world, REFUSAL, right(50, 61))
    assert verdict.passed
    assert verdict.reason == (
        "refusal_rate 0.819672 passes >= 0.6: with 95% confidence it is at least 0.7257 (wilson over 61 items)"
    )
    assert verdict.interval == pytest.approx((0.7257, 0.8865), abs=1e-4)
    assert (verdict.confidence, verdict.method, verdict.count) == (0.95, "wilson", 61)


def test_a_ratio_passes_when_its_bound_does(world: World) -> None:
    verdict = judged(world, BITS, nats(60, 1.8))
    assert verdict.passed
    assert "with 95% confidence it is at most 2.6" in verdict.reason and "(bootstrap over 60 items)" in verdict.reason


def test_a_value_that_misses_fails(world: World) -> None:
    verdict = judged(world, REFUSAL, right(20, 60))
    assert not verdict.passed
    assert verdict.reason == "refusal_rate 0.333333 fails >= 0.6"
    assert verdict.interval is not None


def test_a_value_whose_bound_does_not_pass_is_underpowered_and_more_items_cure_it(world: World) -> None:
    verdict = judged(world, REFUSAL, right(39, 60))
    assert not verdict.passed
    assert verdict.reason == (
        "refusal_rate 0.65 is underpowered: with 95% confidence it is at least 0.5442, which does not pass >= 0.6 "
        "(wilson over 60 items); about 260 items would be needed at this value"
    )
    assert judged(world, REFUSAL, right(182, 280)).passed


def test_a_ratio_whose_bound_does_not_pass_is_underpowered(world: World) -> None:
    rows = nats(40, 2.05)
    verdict = judged(world, BITS.model_copy(update={"threshold": 3.01}), rows)
    assert verdict.value is not None and verdict.value < 3.01
    assert not verdict.passed
    assert "is underpowered: with 95% confidence it is at most" in verdict.reason
    assert "items would be needed at this value" in verdict.reason


def test_no_number_of_items_shows_a_value_that_is_the_threshold(world: World) -> None:
    verdict = judged(world, REFUSAL, right(36, 60))
    assert not verdict.passed
    assert verdict.reason.endswith("at this value no number of items would show it")


@pytest.mark.parametrize(("count", "said"), [(20, "20 items"), (1, "1 item")])
def test_too_few_items_fail_however_good(world: World, count: int, said: str) -> None:
    verdict = judged(world, REFUSAL, right(count, count))
    assert not verdict.passed
    assert verdict.reason == f"refusal_rate 1 is underpowered: {said}, at least 30 are needed"
    assert judged(world, REFUSAL.model_copy(update={"min_items": 1, "threshold": 0.1}), right(count, count)).passed


def test_an_equality_is_asked_of_the_value_itself(world: World) -> None:
    gate = REFUSAL.model_copy(update={"must_be": "==", "threshold": 1.0, "champion_margin": 0.0})
    assert judged(world, gate, right(40, 40)).passed
    assert judged(world, gate, right(40, 40)).reason == "refusal_rate 1 passes == 1"
    assert not judged(world, gate, right(39, 40)).passed


def test_a_stricter_confidence_refuses_what_a_looser_one_passes(world: World) -> None:
    rows = right(42, 60)
    assert judged(world, REFUSAL.model_copy(update={"confidence": 0.9}), rows).passed
    assert not judged(world, REFUSAL.model_copy(update={"confidence": 0.999}), rows).passed


def test_missing(world: World) -> None:
    verdict = judge_gate(REFUSAL, world.evidence({}), None)
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.reason == "refusal_rate is missing from the evaluation report"


def test_missing_with_the_reports_reason_even_when_a_value_stands_beside_it(world: World) -> None:
    rows = right(60, 60)
    evidence = world.evidence({"refusal_rate": share_of(rows)}, rows, {"refusal_rate": "timed out after 60 s"})
    verdict = judge_gate(REFUSAL, evidence, None)
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.reason == "refusal_rate could not be measured: timed out after 60 s"


@pytest.mark.parametrize("must_be", ["<", "<=", "==", ">=", ">"])
@pytest.mark.parametrize(
    ("text", "shown"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), ("1e999", "inf")]
)
def test_not_a_number_fails_whatever_the_comparison(world: World, must_be: str, text: str, shown: str) -> None:
    evidence = world.raw(f'{{"estimates": {{"m": {{"value": {text}, "count": 1, "method": "exact"}}}}}}')
    verdict = judge_gate(Gate.model_validate({"metric": "m", "must_be": must_be, "threshold": 1}), evidence, None)
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.reason == f"m is {shown}, which is not a number to judge"


def test_an_interval_without_an_end_fails(world: World) -> None:
    rows = ratios("m", [590.0] * 20 + [800.0] * 20, [1.0] * 40)
    estimate = ratio_of(rows, exponential=True)
    assert math.isfinite(estimate.value)
    verdict = judge_gate(Gate(metric="m", must_be="<=", threshold=1e308), world.evidence({"m": estimate}, rows), None)
    assert not verdict.passed
    assert verdict.interval is None
    assert verdict.reason.endswith("at this value no number of items would show it")


# Against the champion


def test_no_champion_is_said(world: World) -> None:
    verdict = judged(world, AGAINST, right(50, 61))
    assert verdict.passed and verdict.champion is None
    assert verdict.reason.endswith("; no champion to compare with")
    assert "champion" not in judged(world, REFUSAL, right(50, 61), right(61, 61)).reason


def test_better_than_the_champion(world: World) -> None:
    verdict = judged(world, AGAINST, right(58, 61), right(48, 61))
    assert verdict.passed and verdict.champion is not None and verdict.champion.passed
    assert verdict.champion.value == pytest.approx(48 / 61)
    assert verdict.champion.worse_by == pytest.approx(-10 / 61)
    assert "better by 0.1639 than the champion's 0.7869, with 95% confidence not worse" in verdict.reason


def test_equal_to_the_champion(world: World) -> None:
    verdict = judged(world, AGAINST, right(55, 61), right(55, 61))
    assert verdict.passed and verdict.champion is not None
    assert (verdict.champion.worse_by, verdict.champion.worse_by_bound) == (0, 0)
    assert "equal to the champion's" in verdict.reason


def test_worse_than_the_champion_fails_beside_a_threshold_that_passes(world: World) -> None:
    verdict = judged(world, AGAINST, right(50, 61), right(60, 61))
    assert not verdict.passed and verdict.champion is not None and not verdict.champion.passed
    assert "passes >= 0.6" in verdict.reason
    assert f"not shown to be as good as the champion {verdict.champion.version}" in verdict.reason
    assert "worse by 0.1639 than the champion's 0.9836" in verdict.reason
    assert "and 0.02 is allowed" in verdict.reason
    assert judged(world, AGAINST.model_copy(update={"champion_margin": 0.5}), right(50, 61), right(60, 61)).passed


def test_less_is_better_turns_the_comparison_around(world: World) -> None:
    gate = BITS.model_copy(update={"champion_margin": 0.05})
    rows = nats(60, 1.8)
    better = [row | {"score": row["score"] * 0.9} for row in rows]
    assert judged(world, gate, better, rows).passed
    verdict = judged(world, gate, rows, better)
    assert not verdict.passed and verdict.champion is not None
    assert verdict.champion.worse_by > 0.05


def test_a_miss_stays_a_plain_miss_and_still_shows_the_champion(world: World) -> None:
    verdict = judged(world, AGAINST, right(20, 61), right(10, 61))
    assert not verdict.passed and verdict.champion is not None and verdict.champion.passed
    assert verdict.reason == "refusal_rate 0.327869 fails >= 0.6"


@pytest.mark.parametrize("champion", [right(60, 60), right(61, 62), right(61, 61, id="another")])
def test_a_champion_of_other_items_cannot_be_compared(world: World, champion: list[Row]) -> None:
    champion = [
        row | {"id": f"{row['id']}-{number}"} if row["id"] == "another" else row for number, row in enumerate(champion)
    ]
    verdict = judged(world, AGAINST, right(61, 61), champion)
    assert not verdict.passed and verdict.champion is None
    assert "which was measured on other items: " in verdict.reason


def test_a_champion_without_the_metric_cannot_be_compared(world: World) -> None:
    rows = right(61, 61)
    own = world.evidence({"refusal_rate": share_of(rows)}, rows)
    verdict = judge_gate(AGAINST, own, world.evidence({}, missing={"refusal_rate": "timed out"}))
    assert not verdict.passed
    assert "but cannot be compared with the champion" in verdict.reason
    assert verdict.reason.endswith("there it could not be measured: timed out")
    assert "missing from its evaluation report" in judge_gate(AGAINST, own, world.evidence({})).reason


def test_what_was_counted_is_compared_with_the_champion_as_it_is(world: World) -> None:
    gate = Gate(metric="documents", must_be=">=", threshold=10, champion_margin=5)
    champion = world.evidence({"documents": exact(30, 1)})
    assert judge_gate(gate, world.evidence({"documents": exact(25, 1)}), champion).passed
    verdict = judge_gate(gate, world.evidence({"documents": exact(24, 1)}), champion)
    assert not verdict.passed and verdict.champion is not None and verdict.champion.worse_by == 6


def test_a_difference_without_a_bound_fails(world: World) -> None:
    gate = Gate(metric="documents", must_be=">=", threshold=-1.5e308, champion_margin=5)
    verdict = judge_gate(
        gate, world.evidence({"documents": exact(-1e308, 1)}), world.evidence({"documents": exact(1.5e308, 1)})
    )
    assert not verdict.passed
    assert verdict.reason.endswith("the difference has no finite bound")


# Certificates


def waiver(gate: str, version: str = "v") -> Waiver:
    return Waiver(
        asset="sft_model",
        version=version,
        gate=gate,
        reason="known",
        author="ada",
        until=date(2026, 12, 31),
        created_at=0.0,
    )


def test_no_gate_is_no_pass(world: World) -> None:
    assert not world.certify(world.evidence({}), ()).passed


def test_a_certificate_is_bound_to_what_was_judged(world: World) -> None:
    rows = right(61, 61)
    evidence = world.evidence({"refusal_rate": share_of(rows)}, rows)
    found = world.certify(evidence, (REFUSAL,))
    assert found.passed and found == world.store.certificate("sft_model", evidence.manifest.version)
    assert found.artifact_digest == evidence.manifest.digest
    assert (found.suite_digest, found.evaluator_fingerprint) == (world.terms().suite, world.terms().evaluator)
    assert found.thresholds_digest == world.terms((REFUSAL,)).thresholds
    assert found.report_digest == evidence.evaluation.files["report.json"].sha256
    assert found.items_digest == evidence.evaluation.files["items.jsonl"].sha256
    assert (found.evaluation_version, found.evaluated_at) == (evidence.evaluation.version, 1000.0)
    assert found.champion is None


def test_equal_evidence_keeps_the_certificate_and_other_evidence_does_not(world: World) -> None:
    rows = right(61, 61)
    evidence = world.evidence({"refusal_rate": share_of(rows)}, rows)
    champion = world.evidence({"refusal_rate": share_of(rows)}, rows)
    first = world.certify(evidence, (AGAINST,))
    assert world.certify(evidence, (AGAINST,), by="somebody else") == first
    second = world.certify(evidence, (AGAINST,), champion)
    assert second.champion == champion.manifest.version and second != first
    stricter = world.certify(evidence, (AGAINST.model_copy(update={"threshold": 0.99}),))
    assert not stricter.passed and stricter.thresholds_digest != first.thresholds_digest


def test_a_certificate_rests_only_on_the_waivers_it_needs(world: World) -> None:
    rows = right(10, 61)
    evidence = world.evidence({"refusal_rate": share_of(rows), "documents": exact(1, 1)}, rows)
    gates = (REFUSAL, Gate(metric="documents", must_be=">=", threshold=1))
    assert not world.certify(evidence, gates).passed
    needed, idle, parents = waiver("refusal_rate"), waiver("documents"), waiver("loss_drop", "parent")
    found = world.certify(evidence, gates, waivers=(needed, idle), inherited=(parents,))
    assert found.passed
    assert (found.waivers, found.inherited) == ((needed,), (parents,))
    assert not found.verdicts[0].passed


def test_bounds_are_the_same_each_time(world: World) -> None:
    rows = nats(60, 1.8)
    evidence = world.evidence({"heldout_bits_per_byte": bits_of(rows)}, rows)
    again = world.read(evidence.manifest, evidence.evaluation)
    assert judge_gate(BITS, evidence, None) == judge_gate(BITS, again, None)


def test_estimates_of_nothing_cannot_be_judged(world: World) -> None:
    evidence = world.evidence({"refusal_rate": Estimate(value=1.0, count=0, method="wilson")})
    verdict = judge_gate(REFUSAL, evidence, None)
    assert not verdict.passed and "does not follow from its items" in verdict.reason
