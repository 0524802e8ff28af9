"""What Dagster's pages show of a version and of a gate: numbers, pictures, samples, card, inputs and links."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.defs.sparkline import loss_sparkline
from pipeline.gates.evidence_reader import shown_metrics
from pipeline.gates.promotion import describe_waivers
from pipeline.gates.report.plot import gate_plot
from pipeline.gates.wording import STATES, gate_state, interval_text, number
from pipeline.graph import kind_named
from training.specs.artifacts import REPORT, Certificate, Manifest
from training.specs.gates import Verdict
from training.specs.job import EVALUATION_SUFFIX
from training.specs.preview import PREVIEW_FILE, PREVIEW_PAGE
from training.store.store import Store

Metadata = dict[str, dg.MetadataValue[Any]]

MAX_PICTURE = 90_000
MAX_PICTURES = 360_000
"""Bytes: Dagster keeps metadata in its event log, where every page view reads it."""

MAX_CARD, MAX_CELL, MAX_ROWS = 20_000, 300, 20
_INLINE = 990
"""Characters: Dagster hides Markdown of 1,000 and more behind a link."""

_REASONS, _REASON = 3, 240
_SAMPLE = 120
_LINKS = {"mlflow_url": "mlflow_run", "mlflow_model_url": "mlflow_model", "dagster_url": "built_by"}
_DIGEST = 12


@dataclass(frozen=True)
class Assessment:
    """What an evaluation and the gates say of a version, as far as it is known when its page is made.

    Attributes:
        certificate: None where the version could not be measured.
        evaluation: The evaluation's files.
        promoted: The version that is promoted at that time; empty when none is.
        problem: Why it could not be measured.
    """

    certificate: Certificate | None = None
    evaluation: Path | None = None
    promoted: str = ""
    problem: str = ""


def assessment_of(store: Store, manifest: Manifest, certificate: Certificate) -> Assessment:
    """What the gates say of a version that was judged."""
    pointer = store.promotion(manifest.asset)
    evaluation = store.folder(manifest.asset + EVALUATION_SUFFIX, certificate.evaluation_version)
    return Assessment(certificate, evaluation, pointer.version if pointer else "")


def materialization_metadata(
    manifest: Manifest,
    folder: Path,
    assessment: Assessment,
    *,
    reused: bool,
    store_uri: str,
    links: Mapping[str, str] | None = None,
    code: Sequence[str] = (),
) -> Metadata:
    """The page of a materialization: what people look for first, hashes last.

    Dagster plots every number over the versions, by alphabet. What the job counted is one JSON value and no number, so
    that the plots are those of quality, size and time.

    Args:
        folder: The version's files.
        assessment: What its gates say.
        reused: True when a version with the same identity existed already and nothing ran.
        store_uri: Address of the version, for people.
        links: Where the version is shown: `mlflow_url`, `mlflow_model_url`, `dagster_url`.
        code: The adoptions by which it stands for what other code would make, a sentence each.
    """
    report = folder / REPORT
    measured = shown_metrics(assessment.evaluation)
    page: Metadata = {
        "verdict": dg.MetadataValue.md(_verdict(manifest, assessment)),
        **({"code": dg.MetadataValue.md("\n".join(f"- {line}" for line in code))} if code else {}),
        **_headline(manifest, measured),
        **_loss(report),
        **_samples(report, assessment),
        **_preview(assessment),
        **_card(report),
        **{name: dg.MetadataValue.float(value) for name, value in measured.items()},
        **_pictures(report),
        **_inputs(manifest),
        **_links(links or {}),
        "store": dg.MetadataValue.path(store_uri),
        "megabytes": dg.MetadataValue.float(round(manifest.bytes / 1e6, 3)),
        "job_seconds": dg.MetadataValue.float(round(manifest.seconds, 3)),
    }
    if manifest.metrics:
        page["job_metrics"] = dg.MetadataValue.json(manifest.metrics)
    if manifest.facts:
        page["facts"] = dg.MetadataValue.json(manifest.facts)

    return page | {
        "recipe": dg.MetadataValue.text(manifest.recipe),
        "version": dg.MetadataValue.text(manifest.version),
        "reused": dg.MetadataValue.bool(reused),
        "library_versions": dg.MetadataValue.json(manifest.versions),
        "data_version": dg.MetadataValue.text(manifest.digest),
        "identity": dg.MetadataValue.text(manifest.identity),
        "code_fingerprint": dg.MetadataValue.text(manifest.fingerprint),
    }


def check_metadata(
    verdict: Verdict,
    certificate: Certificate,
    *,
    meaning: str = "",
    evaluation: Manifest | None = None,
    folder: Path | None = None,
    links: Mapping[str, str] | None = None,
    report: str = "",
) -> Metadata:
    """The page of one gate's result.

    Args:
        meaning: What the metric is, in a sentence.
        evaluation: Manifest of the evaluation that was judged.
        folder: Its files. Its report is shown with the first gate of the certificate only, so that the event log holds
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
    if reasons := [other.reason for other in certificate.verdicts if not other.passed]:
        page["refusals"] = dg.MetadataValue.md("\n".join(f"- {_cut(reason, MAX_CELL)}" for reason in reasons))
    if folder is not None and verdict == certificate.verdicts[0]:
        page |= {**_card(folder / REPORT), **_pictures(folder / REPORT), **_all_samples(folder / REPORT)}

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
    """All gates of a certificate: metric, value, interval, must be, champion, verdict; numbers have four digits."""
    rows = [
        {
            "metric": verdict.name,
            "value": number(verdict.value),
            "interval": interval_text(verdict),
            "must be": f"{verdict.must_be} {number(verdict.threshold)}",
            "champion": number(verdict.champion.value) if verdict.champion else "",
            "verdict": STATES[gate_state(certificate, verdict)],
        }
        for verdict in certificate.verdicts
    ]
    return _table(rows)


def _measured(verdict: Verdict) -> Metadata:
    """The figures of a verdict: what was measured, how surely, on how many items, and against what."""
    page: Metadata = {
        "must_be": dg.MetadataValue.text(f"{verdict.must_be} {number(verdict.threshold)}"),
        "threshold": _number(verdict.threshold),
    }
    if verdict.value is not None:
        page["value"] = _number(verdict.value)
    if verdict.method is not None:
        page |= {"method": dg.MetadataValue.text(verdict.method), "items": dg.MetadataValue.int(verdict.count)}

    if verdict.interval is not None and verdict.confidence is not None:
        page |= {
            "interval_low": _number(verdict.interval[0]),
            "interval_high": _number(verdict.interval[1]),
            "confidence": _number(verdict.confidence),
        }

    if against := verdict.champion:
        page |= {
            "champion": dg.MetadataValue.text(against.version),
            "champion_value": _number(against.value),
            "worse_than_champion_by": _number(against.worse_by),
            "worse_than_champion_at_most": _number(against.worse_by_bound),
            "champion_margin": _number(against.margin),
        }

    return page


def _verdict(manifest: Manifest, assessment: Assessment) -> str:
    """Promoted or refused, in a sentence or two."""
    certificate, promoted = assessment.certificate, assessment.promoted
    elsewhere = f"`{promoted}` stays promoted." if promoted else "Nothing is promoted."
    if certificate is None:
        return _cut(f"**Not measured.** {elsewhere} {assessment.problem}", _INLINE)

    count = len(certificate.verdicts)
    refused = [verdict for verdict in certificate.verdicts if gate_state(certificate, verdict) == "failed"]
    if refused:
        reasons = "".join(f"\n- {_cut(verdict.reason, _REASON)}" for verdict in refused[:_REASONS])
        more = f"\n- and {len(refused) - _REASONS} more" if len(refused) > _REASONS else ""
        return f"**Refused by {len(refused)} of {count} gates.** {elsewhere}\n{reasons}{more}"
    if certificate.unfounded:
        return _cut(
            f"**Refused**: it was made from {', '.join(certificate.unfounded)}, which is refused now. {elsewhere}",
            _INLINE,
        )

    waived = ", some of them by a waiver" if certificate.waivers or certificate.inherited else ""
    if promoted == manifest.version:
        return f"**Promoted.** It passes all {count} gates{waived}."
    return f"**Passes all {count} gates**{waived}, which promote it."


def _headline(manifest: Manifest, measured: Mapping[str, float]) -> Metadata:
    """The measured metric that sums the asset up, or before it was measured the builder's own count."""
    headline = kind_named(manifest.asset).headline({**manifest.metrics, **measured})
    return {} if headline is None else {"headline": dg.MetadataValue.text(f"{headline[0]} {number(headline[1])}")}


def _loss(report: Path) -> Metadata:
    sparkline = loss_sparkline(report)
    return {"loss_curve": dg.MetadataValue.md(sparkline)} if sparkline else {}


def _card(report: Path) -> Metadata:
    """The card up to the recipe, which has parameters of its own in MLflow."""
    path = report / "card.md"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8").split("\n## Recipe\n")[0].rstrip()
    return {"card": dg.MetadataValue.md(_cut(text, MAX_CARD))}


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


def _preview(assessment: Assessment) -> Metadata:
    """Rows as a model sees them, as a picture and as a page."""
    report = assessment.evaluation / REPORT if assessment.evaluation else None
    if report is None or not (report / PREVIEW_FILE).is_file():
        return {}
    data = (report / PREVIEW_FILE).read_bytes()
    picture = {"preview": _picture("preview", data, "svg+xml")} if len(data) <= MAX_PICTURE else {}
    return {**picture, "preview_page": dg.MetadataValue.path(str(report / PREVIEW_PAGE))}


def _picture(name: str, data: bytes, kind: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{name}](data:image/{kind};base64,{base64.b64encode(data).decode()})")


def _samples(report: Path, assessment: Assessment) -> Metadata:
    """A few samples inline, and a table of all: a model's answers, or parts of the data."""
    for place in (assessment.evaluation / REPORT if assessment.evaluation else None, report):
        rows = _sample_rows(place) if place else []
        if rows and "answer" in rows[0]:
            return {"samples": dg.MetadataValue.md(_inline_samples(rows)), "all_samples": _table(rows[:MAX_ROWS])}
    return _all_samples(report)


def _inline_samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """As many prompts with their answers as are shown without a click."""
    shown = ""
    for row in rows:
        sample = f"**{_plain(row['prompt'])}**  \n{_plain(row['answer']) or '(nothing)'}\n\n"
        if len(shown) + len(sample) > _INLINE:
            break
        shown += sample

    return shown.rstrip()


def _all_samples(report: Path) -> Metadata:
    rows = _sample_rows(report)
    return {"all_samples": _table(rows[:MAX_ROWS])} if rows else {}


def _sample_rows(report: Path) -> list[dict[str, Any]]:
    path = report / "samples.json"
    return list(json.loads(path.read_bytes())) if path.is_file() else []


def _plain(text: object) -> str:
    """A text on one line that Markdown shows as it is."""
    line = _cut(" ".join(str(text).split()), _SAMPLE)
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", line)


def _inputs(manifest: Manifest) -> Metadata:
    if not manifest.inputs:
        return {}
    return {
        "inputs": _table(
            [
                {"asset": used.asset, "version": used.version, "digest": used.digest[:_DIGEST]}
                for used in manifest.inputs.values()
            ]
        )
    }


def _links(links: Mapping[str, str]) -> Metadata:
    return {shown: dg.MetadataValue.url(links[name]) for name, shown in _LINKS.items() if links.get(name)}


def _number(value: float) -> dg.FloatMetadataValue:
    """A figure with six digits: nobody reads sixteen."""
    return dg.MetadataValue.float(float(f"{value:.6g}"))


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
    return text if len(text) <= length else text[: length - 1] + "…"
