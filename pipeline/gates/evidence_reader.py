"""Evidence: an evaluation's report and items, read from bytes that were verified, with every value computed again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.gates.terms import SUITE, digest_of_suite
from training.errors import InputRefused
from training.specs.artifacts import Manifest
from training.specs.evidence import ITEMS_FILE, REPORT_FILE, Estimate, EvaluationReport, Item
from training.store.store import Store
from training.store.validity import Terms

Row = dict[str, Any]
_TOLERANCE = 1e-6  # sums in another order differ in the last digits, and an edit differs by more
_FIELDS = tuple(Item.model_fields)


@dataclass(frozen=True)
class Evidence:
    """What one evaluation says of one version.

    Attributes:
        manifest: Of the version that was measured.
        evaluation: Of the evaluation.
        folder: The evaluation's files.
        estimates: Metrics that can be judged.
        problems: Metrics that cannot, each with why: a sentence that follows the metric's name.
        unmeasured: Those of them that the evaluation says it could not measure.
        causes: Metrics to what most likely made them bad, as the evaluation found it.
        items: The items of every sampled metric that can be judged.
        rows: Every line of items.jsonl by its metric, with the keys that explain it.
    """

    manifest: Manifest
    evaluation: Manifest
    folder: Path
    estimates: Mapping[str, Estimate]
    problems: Mapping[str, str]
    unmeasured: frozenset[str]
    causes: Mapping[str, str]
    items: Mapping[str, tuple[Item, ...]]
    rows: Mapping[str, list[Row]]


def shown_metrics(evaluation: Path | None) -> dict[str, float]:
    """What an evaluation measured, for pages alone: nothing is verified, and a damaged report shows nothing.

    Args:
        evaluation: Its files; None where nothing was measured.
    """
    if evaluation is None:
        return {}
    try:
        return EvaluationReport.model_validate_json((evaluation / REPORT_FILE).read_bytes()).metrics
    except (OSError, ValidationError):
        return {}


def shown_estimates(evaluation: Path) -> dict[str, tuple[Estimate, tuple[Item, ...]]]:
    """What an evaluation measured on a sample, with its items, for pages alone: nothing is verified.

    Args:
        evaluation: Its files.
    """
    try:
        report = EvaluationReport.model_validate_json((evaluation / REPORT_FILE).read_bytes())
        rows = _read_rows(evaluation / ITEMS_FILE)
        sampled = {name: one for name, one in report.estimates.items() if one.method != "exact"}
        return {name: (one, _items(rows.get(name, []))) for name, one in sampled.items()}
    except (OSError, ValidationError, InputRefused, _Unusable):
        return {}


def read_evidence(manifest: Manifest, evaluation: Manifest, terms: Terms, store: Store) -> Evidence:
    """Read what an evaluation found, after verifying that it is evidence of this version and that nobody edited it.

    A metric whose own evidence is unusable is left to the judge, as one of `problems`.

    Args:
        manifest: The version that is judged.
        evaluation: The evaluation to read.
        terms: What it must have been measured with.
        store: Where both are.

    Raises:
        InputRefused: It measured something else, with something else or by other code, its bytes have changed, or its
            files are not what an evaluation writes.
    """
    _check_subject(manifest, evaluation)
    _check_terms(manifest, evaluation, terms)

    what = f"the evidence of {manifest.asset} {manifest.version}"
    place = store.uri(evaluation.asset, evaluation.version)
    again = f"delete {place} and materialize {manifest.asset} to measure it again"
    try:
        folder = store.verified_folder(evaluation.asset, evaluation.version, evaluation.digest)
    except InputRefused as error:
        raise InputRefused(f"{what} was edited: {error}") from error

    try:
        report = _read_report(folder / REPORT_FILE)
        rows = _read_rows(folder / ITEMS_FILE)
    except InputRefused as error:
        raise InputRefused(f"{what} cannot be read: {error}; {again}") from error
    return _weigh(manifest, evaluation, folder, report, rows)


def suite_digest(manifest: Manifest, evaluation: Manifest) -> str:
    """Digest of what an evaluation measured a version with; see `terms.digest_of_suite`."""
    sets = evaluation.inputs.get(SUITE)
    beside = {
        name: used.digest
        for name, used in evaluation.inputs.items()
        if name not in ("artifact", SUITE) and name not in manifest.inputs
    }
    return digest_of_suite(sets.digest if sets else None, beside, evaluation.section)


def _check_subject(manifest: Manifest, evaluation: Manifest) -> None:
    measured = evaluation.inputs.get("artifact")
    if measured is None:
        raise InputRefused(
            f"the evaluation {evaluation.version} does not say what it measured; materialize "
            f"{manifest.asset} to have it measured again"
        )
    if (measured.asset, measured.version) != (manifest.asset, manifest.version):
        raise InputRefused(
            f"the evaluation {evaluation.version} is evidence of another version: it measured "
            f"{measured.asset} {measured.version}, not {manifest.asset} {manifest.version}"
        )
    if measured.digest != manifest.digest:
        raise InputRefused(
            f"the evaluation {evaluation.version} is evidence of other bytes: it measured content "
            f"{measured.digest[:12]}, and {manifest.asset} {manifest.version} is {manifest.digest[:12]}"
        )


def _check_terms(manifest: Manifest, evaluation: Manifest, terms: Terms) -> None:
    asset = evaluation.inputs["artifact"].asset
    if suite_digest(manifest, evaluation) != terms.suite:
        raise InputRefused(
            f"the evaluation {evaluation.version} is evidence of another suite: the evaluation sets, what else it "
            f"is measured with, or the recipe's section `evaluation` have changed; materialize {asset} to measure it "
            "again"
        )
    if evaluation.fingerprint != terms.evaluator:
        raise InputRefused(
            f"the evaluation {evaluation.version} is evidence by other code: the evaluator was "
            f"{evaluation.fingerprint[:12]} and is {terms.evaluator[:12]} now; materialize {asset} to "
            "measure it again"
        )


def _read_report(path: Path) -> Row:
    report = _loads(path.name, _text(path))
    # Read as plain JSON and not as a spec: one metric that is wrong must not take the others with it.
    for key, kind in (("estimates", dict), ("missing", dict), ("causes", dict)):
        if not isinstance(report.get(key, {}), kind):
            raise InputRefused(f"`{key}` of {path.name} is no object")
    if "estimates" not in report or set(report) - set(EvaluationReport.model_fields):
        raise InputRefused(
            f"{path.name} has the keys {', '.join(sorted(report))}; it needs estimates and may have missing and causes"
        )
    return report


def _read_rows(path: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = _loads(f"{path.name}:{number}", line)
        if not isinstance(row.get("metric"), str):
            raise InputRefused(f"{path.name}:{number} names no metric")
        rows.setdefault(row["metric"], []).append(row)
    return rows


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputRefused(f"there is no {path.name}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputRefused(f"{path.name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _loads(place: str, text: str) -> Row:
    """A JSON object; numbers that are not finite are read, for a judge to refuse each by its name."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{place} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{place} is no JSON object")
    return value


def _weigh(manifest: Manifest, evaluation: Manifest, folder: Path, report: Row, rows: dict[str, list[Row]]) -> Evidence:
    """Tell the metrics that can be judged from those that cannot."""
    problems = {name: f"could not be measured: {reason}" for name, reason in report.get("missing", {}).items()}
    estimates: dict[str, Estimate] = {}
    items: dict[str, tuple[Item, ...]] = {}

    for name, raw in report["estimates"].items():
        try:
            estimate = _estimate(raw)
            if estimate.method != "exact":
                items[name] = _items(rows.get(name, []))
                _check_value(estimate, items[name])
        except _Unusable as error:
            problems.setdefault(name, str(error))
            continue
        estimates[name] = estimate

    usable = {name: estimate for name, estimate in estimates.items() if name not in problems}
    return Evidence(
        manifest,
        evaluation,
        folder,
        usable,
        problems,
        frozenset(report.get("missing", {})) - set(report["estimates"]),
        report.get("causes", {}),
        {name: measured for name, measured in items.items() if name in usable},
        rows,
    )


class _Unusable(Exception):
    """Why a metric cannot be judged."""


def _estimate(raw: object) -> Estimate:
    if isinstance(raw, dict) and isinstance(value := raw.get("value"), float) and not math.isfinite(value):
        raise _Unusable(f"is {value}, which is not a number to judge")
    try:
        return Estimate.model_validate(raw, strict=True)
    except ValidationError as error:
        raise _Unusable(f"is not an estimate that can be read: {_first(error)}") from error


def _items(rows: list[Row]) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for row in rows:
        try:
            item = Item.model_validate({name: row[name] for name in _FIELDS if name in row}, strict=True)
        except ValidationError as error:
            raise _Unusable(f"cannot be judged: one of its items is not an item: {_first(error)}") from error
        if item.weight <= 0:
            raise _Unusable(f"cannot be judged: its item {item.id[:80]} has the weight {item.weight:g}")
        if item.id in items:
            raise _Unusable(f"cannot be judged: its item {item.id[:80]} is there twice")
        items[item.id] = item
    return tuple(items.values())


def _check_value(estimate: Estimate, items: tuple[Item, ...]) -> None:
    """Refuse an estimate that does not follow from its items: they are what is judged."""
    if len(items) != estimate.count:
        raise _Unusable(
            f"does not follow from its items: it was measured on {estimate.count}, and {ITEMS_FILE} holds {len(items)}"
        )
    if estimate.method == "wilson" and any(item.score not in (0, 1) or item.weight != 1 for item in items):
        raise _Unusable("cannot be judged as a share: its items are not all right or wrong")
    try:
        value = estimate.of(math.fsum(item.score for item in items), math.fsum(item.weight for item in items))
    except OverflowError:
        value = math.inf
    if not math.isclose(value, estimate.value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * 1e-3):
        raise _Unusable(
            f"does not follow from its items: the report says {estimate.value:.6g}, and its items give {value:.6g}"
        )


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
