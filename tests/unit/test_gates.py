"""A gate that can't fail is a defect."""

import pytest
from pydantic import ValidationError

from training.specs.artifacts import Certificate
from training.specs.gates import Gate


@pytest.mark.parametrize(("must_be", "value", "passed"), [
    (">=", 1.0, True), (">=", 0.999, False), (">", 1.0, False), (">", 1.001, True), ("<=", 1.0, True),
    ("<=", 1.001, False), ("<", 1.0, False), ("<", 0.999, True), ("==", 1.0, True), ("==", 0.999, False),
])
def test_comparisons(must_be: str, value: float, passed: bool) -> None:
    gate = Gate.model_validate({"metric": "m", "must_be": must_be, "threshold": 1})
    assert gate.judge(value).passed is passed


@pytest.mark.parametrize("must_be", ["<", "<=", "==", ">=", ">"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_no_evidence_fails_whatever_the_comparison(must_be: str, value: float | None) -> None:
    verdict = Gate.model_validate({"metric": "m", "must_be": must_be, "threshold": 1}).judge(value)
    assert not verdict.passed
    assert "missing" in verdict.reason or "not a number" in verdict.reason


@pytest.mark.parametrize("threshold", ["abc", float("nan"), float("inf"), None])
def test_a_threshold_is_a_number(threshold: object) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate({"metric": "m", "must_be": ">=", "threshold": threshold})


def test_no_gate_is_no_pass() -> None:
    certificate = Certificate(asset="a", version="v", artifact_digest="d", suite_digest=None, evaluator_fingerprint="e",
                              report_digest="r", thresholds_digest="t", verdicts=(), issued_at=0.0, issued_by="test")
    assert not certificate.passed
