"""Judging: from an evaluation's evidence to verdicts, and from verdicts to a certificate."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from typing import Any

from pipeline.gates.evidence_reader import Evidence, read_evidence
from pipeline.gates.statistics import interval, items_needed, worse_by_bound
from pipeline.gates.terms import thresholds_digest
from training.specs.artifacts import Certificate, Manifest, Waiver
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, Estimate
from training.specs.gates import AgainstChampion, Gate, Verdict
from training.store.store import Store
from training.store.validity import Terms

_COMPARE = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt}


def judge_gate(gate: Gate, evidence: Evidence, champion: Evidence | None) -> Verdict:
    """The verdict of one gate. What cannot be judged fails.

    A sampled metric must reach its minimum of items, and its confidence bound must pass as well as its value. An
    equality is asked of the value itself. Beside the threshold, a gate with a margin sets the version against the
    champion.

    Args:
        champion: Evidence of the promoted version, by the same suite and evaluator; None when there is none.
    """
    estimate = evidence.estimates.get(gate.metric)
    if estimate is None:
        why = evidence.problems.get(gate.metric, "is missing from the evaluation report")
        return _verdict(gate, False, None, why)

    if estimate.method == "exact":
        passed, why = _compare(gate, estimate.value)
        if not passed and gate.metric in evidence.causes:
            why = f"{why}: {evidence.causes[gate.metric]}"
        bounds: dict[str, Any] = {}
    else:
        passed, why, bounds = _sampled(gate, estimate, evidence)

    if gate.champion_margin is None or not gate.better:  # what equals a threshold is neither better nor worse
        return _verdict(gate, passed, estimate, why, **bounds)
    if champion is None:
        return _verdict(gate, passed, estimate, f"{why}; no champion to compare with", **bounds)

    if reason := _not_of_its_kind(gate.metric, evidence, champion):
        why = f"{why}; no champion to compare with: of the imported model it {reason}"
        return _verdict(gate, passed, estimate, why, **bounds)

    against, comparison = _against(gate, estimate, evidence, champion)
    if passed:
        passed, why = against is not None and against.passed, f"{why}{comparison}"
    return _verdict(gate, passed, estimate, why, champion=against, **bounds)


def certify(
    manifest: Manifest,
    evaluation: Manifest,
    gates: Sequence[Gate],
    store: Store,
    terms: Terms,
    issued_by: str,
    champion: tuple[Manifest, Manifest] | None,
    waivers: Sequence[Waiver],
    inherited: Sequence[Waiver],
) -> Certificate:
    """Judge a version by its evaluation and keep the certificate; equal evidence keeps the earlier one.

    Args:
        terms: What the evaluation must have been made with.
        champion: The version to compare with and its evaluation, by the same terms.
        waivers: Of this version's gates; those of gates that pass are left out, so that nothing rests on them.
        inherited: Waivers that the versions it was made from rest on.

    Raises:
        InputRefused: The evaluation, or the champion's, is no evidence under these terms or was edited.
    """
    evidence = read_evidence(manifest, evaluation, terms, store)
    champion_evidence = read_evidence(*champion, terms, store) if champion else None
    verdicts = tuple(judge_gate(gate, evidence, champion_evidence) for gate in gates)
    refused = {verdict.name for verdict in verdicts if not verdict.passed}

    certificate = Certificate(
        asset=manifest.asset,
        version=manifest.version,
        artifact_digest=manifest.digest,
        suite_digest=terms.suite,
        evaluator_fingerprint=terms.evaluator,
        evaluation_version=evaluation.version,
        report_digest=evaluation.files[REPORT_FILE].sha256,
        items_digest=evaluation.files[ITEMS_FILE].sha256,
        thresholds_digest=thresholds_digest(gates),
        champion=champion[0].version if champion else None,
        champion_asset=champion[0].asset if champion and champion[0].asset != manifest.asset else None,
        verdicts=verdicts,
        waivers=tuple(waiver for waiver in waivers if waiver.gate in refused),
        inherited=tuple(inherited),
        unfounded=store.unfounded(manifest),
        evaluated_at=evaluation.started_at,
        issued_at=time.time(),
        issued_by=issued_by,
    )

    # Its digest stands in the pointer and in MLflow: an equal judgement must not look like a new one.
    earlier = store.certificate(manifest.asset, manifest.version)
    if earlier is not None and _judged(earlier) == _judged(certificate):
        return earlier
    store.write_certificate(certificate)
    return certificate


def passes(gate: Gate, value: float) -> bool:
    """Whether a value, or a bound, is what a gate asks for."""
    return bool(_COMPARE[gate.must_be](value, gate.threshold))


def _sampled(gate: Gate, estimate: Estimate, evidence: Evidence) -> tuple[bool, str, dict[str, Any]]:
    """Whether a sampled metric passes its threshold, why, and its interval."""
    low, high = interval(estimate, evidence.items[gate.metric], gate.confidence, gate.metric)
    bounds: dict[str, Any] = {}
    if math.isfinite(low) and math.isfinite(high):
        bounds = {"confidence": gate.confidence, "interval": (low, high)}

    if estimate.count < gate.min_items:
        why = f"{estimate.value:.6g} is underpowered: {_items(estimate.count)}, at least {gate.min_items} are needed"
        return False, why, bounds
    passed, why = _compare(gate, estimate.value)
    if not passed or not gate.better:
        return passed, why, bounds

    bound, side = (low, "least") if gate.better > 0 else (high, "most")
    sure = f"{_sure(gate)} it is at {side} {bound:.4g}"
    if passes(gate, bound):
        return True, f"{why}: {sure} ({estimate.method} over {_items(estimate.count)})", bounds

    needed = items_needed(estimate, bound, gate.threshold, gate.confidence, gate.min_items)
    advice = (
        "at this value no number of items would show it"
        if needed is None
        else f"about {needed:,} items would be needed at this value"
    )
    why = (
        f"{estimate.value:.6g} is underpowered: {sure}, which does not pass {gate.asked} "
        f"({estimate.method} over {_items(estimate.count)}); {advice}"
    )
    return False, why, bounds


def _compare(gate: Gate, value: float) -> tuple[bool, str]:
    passed = passes(gate, value)
    return passed, f"{value:.6g} {'passes' if passed else 'fails'} {gate.asked}"


def _not_of_its_kind(metric: str, evidence: Evidence, champion: Evidence) -> str:
    """Why an imported model cannot be compared on a metric; empty where it can, and for a champion of the same asset.

    A base model of plain text answers no question: nothing of that was measured of it, or continuations were.
    """
    if champion.manifest.asset == evidence.manifest.asset:
        return ""
    if metric in champion.unmeasured:
        return champion.problems[metric]
    if metric not in champion.estimates and metric not in champion.problems:
        return "was not measured"
    own, theirs = ({item.id for item in one.items.get(metric, ())} for one in (evidence, champion))
    return "" if own & theirs or not theirs else "was measured on texts of another kind"


def _against(
    gate: Gate, estimate: Estimate, evidence: Evidence, champion: Evidence
) -> tuple[AgainstChampion | None, str]:
    """The comparison with the champion, and how it continues the verdict's reason."""
    name, version, margin = gate.metric, champion.manifest.version, gate.champion_margin
    assert margin is not None
    called = version if champion.manifest.asset == evidence.manifest.asset else f"{champion.manifest.asset} {version}"
    reference = champion.estimates.get(name)
    if reference is None:
        why = champion.problems.get(name, "is missing from its evaluation report")
        return None, f", but cannot be compared with the champion {called}: there it {why}"

    worse = gate.better * (reference.value - estimate.value)
    if estimate.method == reference.method == "exact":
        bound = worse
    else:
        items, reference_items = evidence.items.get(name, ()), champion.items.get(name, ())
        apart = {item.id for item in items} ^ {item.id for item in reference_items}
        if apart or estimate.method != reference.method:
            return None, (
                f", but cannot be compared with the champion {called}, which was measured on other items: "
                f"{len(apart)} are not common to both"
            )
        bound = worse_by_bound(estimate, items, reference, reference_items, gate.better, gate.confidence, name)
    if not math.isfinite(bound) or not math.isfinite(worse):
        return None, f", but cannot be compared with the champion {called}: the difference has no finite bound"

    against = AgainstChampion(
        version=called,
        value=reference.value,
        worse_by=worse,
        worse_by_bound=bound,
        margin=margin,
        passed=bound <= margin,
    )
    standing = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.4g} than" if worse else "equal to"
    at_most = f"at most {bound:.4g} worse" if bound > 0 else "not worse"
    if against.passed:
        return against, f"; {standing} the champion's {reference.value:.4g}, {_sure(gate)} {at_most}"
    return against, (
        f", but is not shown to be as good as the champion {called}: it is {standing} the champion's "
        f"{reference.value:.4g}, {_sure(gate)} {at_most}, and {margin:g} is allowed"
    )


def _verdict(gate: Gate, passed: bool, estimate: Estimate | None, why: str, **fields: Any) -> Verdict:
    return Verdict(
        name=gate.metric,
        passed=passed,
        value=estimate.value if estimate else None,
        must_be=gate.must_be,
        threshold=gate.threshold,
        reason=f"{gate.metric} {why}",
        method=estimate.method if estimate else None,
        count=estimate.count if estimate else 0,
        **fields,
    )


def _sure(gate: Gate) -> str:
    return f"with {100 * gate.confidence:.4g}% confidence"


def _items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"


def _judged(certificate: Certificate) -> dict[str, Any]:
    return certificate.model_dump(mode="json", exclude={"issued_at", "issued_by"})
