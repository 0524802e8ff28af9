"""What Dagster's pages show of a version and of a gate: numbers, pictures, samples, card, inputs and links."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.checks.plot import gate_plot
from pipeline.checks.promotion import describe_waivers
from pipeline.checks.verdicts import STATES, gate_state, interval_text
from training.specs.artifacts import REPORT, Certificate, Manifest
from training.specs.gates import Verdict

Metadata = dict[str, dg.MetadataValue[Any]]

MAX_PICTURE = 90_000
MAX_PICTURES = 360_000
"""Bytes: Dagster keeps metadata in its event log, where every page view reads it."""

MAX_CARD, MAX_CELL, MAX_ROWS = 20_000, 300, 20
_LINKS = {"mlflow_url": "mlflow_run", "mlflow_model_url": "mlflow_model", "dagster_url": "built_by"}
_DIGEST = 12


def materialization_metadata(manifest: Manifest, folder: Path, *, reused: bool, store_uri: str,
                             links: Mapping[str, str] | None = None) -> Metadata:
    """The page of a materialization.

    Args:
        folder: The version's files.
        reused: True when a version with the same identity was there already and nothing ran.
        store_uri: Address of the version, for people.
        links: Where the version is shown: `mlflow_url`, `mlflow_model_url`, `dagster_url`.
    """
    report = folder / REPORT
    page: Metadata = {
        "reused": dg.MetadataValue.bool(reused),
        "version": dg.MetadataValue.text(manifest.version),
        "recipe": dg.MetadataValue.text(manifest.recipe),
        **_headline(manifest),
        **_card(report),
        **_pictures(report),
        **_samples(report),
        **_inputs(manifest),
        "data_version": dg.MetadataValue.text(manifest.digest),
        "identity": dg.MetadataValue.text(manifest.identity),
        "code_fingerprint": dg.MetadataValue.text(manifest.fingerprint),
        "files": dg.MetadataValue.int(len(manifest.files)),
        "megabytes": dg.MetadataValue.float(round(manifest.bytes / 1e6, 3)),
        "job_seconds": dg.MetadataValue.float(round(manifest.seconds, 3)),
        "library_versions": dg.MetadataValue.json(manifest.versions),
        "store": dg.MetadataValue.path(store_uri),
        **_links(links or {}),
    }
    if manifest.facts:
        page["facts"] = dg.MetadataValue.json(manifest.facts)
    return page | {name: dg.MetadataValue.float(float(value)) for name, value in manifest.metrics.items()}


def check_metadata(verdict: Verdict, certificate: Certificate, *, meaning: str = "",
                   evaluation: Manifest | None = None, folder: Path | None = None,
                   links: Mapping[str, str] | None = None, report: str = "") -> Metadata:
    """The page of one gate's result.

    Args:
        meaning: What the metric is, in a sentence.
        evaluation: Manifest of the evaluation that was judged.
        folder: Its files. Its report is shown with the first gate of the certificate only: the event log then holds
            it once.
        links: As for `materialization_metadata`.
        report: Address of the version's gate report.
    """
    page: Metadata = {"reason": dg.MetadataValue.text(verdict.reason)}
    if picture := gate_plot(verdict):
        page["plot"] = _picture(verdict.name, picture.encode(), "svg+xml")
    page |= _measured(verdict)
    if waivers := describe_waivers((*certificate.waivers, *certificate.inherited)):
        page["waivers"] = dg.MetadataValue.text("; ".join(waivers))
    if meaning:
        page["meaning"] = dg.MetadataValue.text(meaning)
    if report:
        page["gate_report"] = dg.MetadataValue.path(report)
    page["all_gates"] = verdict_table(certificate)
    if folder is not None and verdict == certificate.verdicts[0]:
        page |= {**_card(folder / REPORT), **_pictures(folder / REPORT), **_samples(folder / REPORT)}
    page |= {
        "version": dg.MetadataValue.text(certificate.version),
        "artifact_digest": dg.MetadataValue.text(certificate.artifact_digest),
        "suite_digest": dg.MetadataValue.text(certificate.suite_digest),
        "evaluator_fingerprint": dg.MetadataValue.text(certificate.evaluator_fingerprint),
        "evaluation_version": dg.MetadataValue.text(certificate.evaluation_version),
        "certificate": dg.MetadataValue.text(certificate.digest),
        **_links(links or {}),
    }
    if evaluation is not None:
        page["evaluation_seconds"] = dg.MetadataValue.float(round(evaluation.seconds, 3))
    return page


def check_description(verdict: Verdict, certificate: Certificate) -> str:
    """One gate's result in a sentence; a waiver comes first."""
    waiver = next((waiver for waiver in certificate.waivers if waiver.gate == verdict.name), None)
    if waiver is None:
        return verdict.reason
    return f"waived until {waiver.until} by {waiver.author} ({waiver.reason}): {verdict.reason}"


def verdict_table(certificate: Certificate) -> dg.TableMetadataValue:
    """All gates of a certificate: metric, value, interval, must be, threshold, champion, verdict, reason."""
    return _table([{"metric": verdict.name, "value": verdict.value, "interval": interval_text(verdict),
                    "must be": verdict.must_be, "threshold": verdict.threshold,
                    "champion": verdict.champion.value if verdict.champion else None,
                    "verdict": STATES[gate_state(certificate, verdict)], "reason": verdict.reason}
                   for verdict in certificate.verdicts])


def _measured(verdict: Verdict) -> Metadata:
    """The figures of a verdict: what was measured, how surely, on how many items, and against what."""
    page: Metadata = {
        "must_be": dg.MetadataValue.text(f"{verdict.must_be} {verdict.threshold:g}"),
        "threshold": dg.MetadataValue.float(float(verdict.threshold)),
    }
    if verdict.value is not None:
        page["value"] = dg.MetadataValue.float(float(verdict.value))
    if verdict.method is not None:
        page |= {"method": dg.MetadataValue.text(verdict.method), "items": dg.MetadataValue.int(verdict.count)}
    if verdict.interval is not None and verdict.confidence is not None:
        page |= {"interval_low": dg.MetadataValue.float(verdict.interval[0]),
                 "interval_high": dg.MetadataValue.float(verdict.interval[1]),
                 "confidence": dg.MetadataValue.float(verdict.confidence)}
    if against := verdict.champion:
        page |= {"champion": dg.MetadataValue.text(against.version),
                 "champion_value": dg.MetadataValue.float(against.value),
                 "worse_than_champion_by": dg.MetadataValue.float(against.worse_by),
                 "worse_than_champion_at_most": dg.MetadataValue.float(against.worse_by_bound),
                 "champion_margin": dg.MetadataValue.float(against.margin)}
    return page


def _headline(manifest: Manifest) -> Metadata:
    if manifest.headline is None or manifest.headline not in manifest.metrics:
        return {}
    value = manifest.metrics[manifest.headline]
    return {"headline": dg.MetadataValue.text(f"{manifest.headline} {value:.6g}")}


def _card(report: Path) -> Metadata:
    path = report / "card.md"
    if not path.is_file():
        return {}
    return {"card": dg.MetadataValue.md(_cut(path.read_text(encoding="utf-8"), MAX_CARD))}


def _pictures(report: Path) -> Metadata:
    """Every picture inline; one that is too large, or too many, is named instead."""
    page: Metadata = {}
    room = MAX_PICTURES
    for path in sorted(report.glob("*.png")):
        size = path.stat().st_size
        if size > MAX_PICTURE or size > room:
            page[f"picture_{path.stem}"] = dg.MetadataValue.path(str(path))
            continue
        room -= size
        page[f"picture_{path.stem}"] = _picture(path.stem, path.read_bytes(), "png")
    return page


def _picture(name: str, data: bytes, kind: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{name}](data:image/{kind};base64,{base64.b64encode(data).decode()})")


def _samples(report: Path) -> Metadata:
    path = report / "samples.json"
    if not path.is_file():
        return {}
    rows: list[dict[str, Any]] = json.loads(path.read_bytes())
    return {"samples": _table(rows[:MAX_ROWS])} if rows else {}


def _inputs(manifest: Manifest) -> Metadata:
    if not manifest.inputs:
        return {}
    return {"inputs": _table([{"asset": used.asset, "version": used.version, "digest": used.digest[:_DIGEST]}
                              for used in manifest.inputs.values()])}


def _links(links: Mapping[str, str]) -> Metadata:
    return {shown: dg.MetadataValue.url(links[name]) for name, shown in _LINKS.items() if links.get(name)}


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows of any flat dicts: the columns are all their keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [{column: _cell(row.get(column)) for column in columns} for row in rows]
    schema = dg.TableSchema([dg.TableColumn(column, _type(row[column] for row in cells)) for column in columns])
    return dg.TableMetadataValue(records=[dg.TableRecord(row) for row in cells], schema=schema)


def _cell(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), MAX_CELL)


def _type(values: Iterable[object]) -> str:
    kinds = {type(value) for value in values if value is not None}
    for name, accepted in (("bool", {bool}), ("int", {int}), ("float", {int, float})):
        if kinds and kinds <= accepted:
            return name
    return "string"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length - 1] + "…"
