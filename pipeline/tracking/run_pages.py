"""What MLflow's page of a run says to people: its name, its tags and its description."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.gates.evidence_reader import shown_metrics
from pipeline.gates.promotion import describe_waivers
from pipeline.gates.wording import number
from pipeline.graph import kind_named
from training.specs.artifacts import REPORT, Certificate, Manifest
from training.store.store import Store

ASSET, VERSION, RECIPE, OUTPUT_DIGEST, IDENTITY = "asset", "version", "recipe", "digest", "identity"
VERDICT, WAIVERS, CERTIFICATE, ERROR, DAGSTER_RUN = "verdict", "waivers", "certificate", "error", "dagster_run"
KEY = "build"
"""The tag by which a build's run is found again."""

PROMOTED, PASSED, REFUSED = "promoted", "passed", "refused"
_SAMPLE = 300


def version_tags(manifest: Manifest) -> dict[str, str]:
    """The tags by which a version is found again. Its manifest, which MLflow has too, holds everything else."""
    return {
        ASSET: manifest.asset,
        VERSION: manifest.version,
        RECIPE: manifest.recipe,
        OUTPUT_DIGEST: manifest.digest,
        IDENTITY: manifest.identity,
    }


def verdict_tags(certificate: Certificate, promoted: bool) -> dict[str, str]:
    """What the gates said. The tag `waivers` names those that let a version pass although a gate refused it."""
    waived = describe_waivers((*certificate.waivers, *certificate.inherited))
    return {
        VERDICT: verdict_of(certificate, promoted),
        CERTIFICATE: certificate.digest,
        **({WAIVERS: "; ".join(waived)} if waived else {}),
    }


def verdict_of(certificate: Certificate, promoted: bool) -> str:
    """`promoted`, `passed` where another version is promoted, or `refused`."""
    return REFUSED if not certificate.passed else PROMOTED if promoted else PASSED


def run_name(manifest: Manifest, verdict: str = "") -> str:
    """Name of a version's run, which tells it from the asset's other runs."""
    return f"{manifest.asset} {manifest.version.rpartition('-')[2]} {verdict}".rstrip()


def origin(manifest: Manifest, store: Store, dagster_url: str | None) -> str:
    """What a version was made from and by which run, on one line.

    Each input is a link to its own run, so that the lineage can be clicked back to the sources.

    Args:
        dagster_url: Address of Dagster's page.
    """
    parents = []
    for used in manifest.inputs.values():
        page = store.links(used.asset, used.version).get("mlflow_url")
        parents.append(f"[{used.asset}]({page})" if page else used.asset)
    line = f"Made from {' · '.join(parents) if parents else 'the sources of the recipe'}"

    dagster_run = manifest.labels.get("dagster_run_id")
    if dagster_run and dagster_url:
        line += f" by this [Dagster run]({dagster_url}/runs/{dagster_run})"
    return line


def description(certificate: Certificate, promoted: bool, evaluation: Path | None, made_from: str) -> str:
    """A judged version in a few lines: verdict and headline, what it was made from, and a sample.

    Args:
        evaluation: The evaluation's files, for the headline and the sample.
        made_from: See `origin`.
    """
    passed, count = sum(verdict.passed for verdict in certificate.verdicts), len(certificate.verdicts)
    verdict = f"**{verdict_of(certificate, promoted).capitalize()}**: {passed} of {count} gates passed"
    parts = [part for part in (verdict, _headline(certificate, evaluation)) if part]
    return "\n\n".join(part for part in (" · ".join(parts), made_from, _sample(evaluation)) if part)


def _headline(certificate: Certificate, evaluation: Path | None) -> str:
    judged = {verdict.name: verdict.value for verdict in certificate.verdicts}
    headline = kind_named(certificate.asset).headline({**judged, **shown_metrics(evaluation)})
    return "" if headline is None else f"{headline[0]} {number(headline[1])}"


def _sample(evaluation: Path | None) -> str:
    """The first prompt that got an answer."""
    path = evaluation / REPORT / "samples.json" if evaluation is not None else None
    rows = json.loads(path.read_bytes()) if path is not None and path.is_file() else []
    for row in rows:
        answer = " ".join(str(row.get("answer", "")).split())
        if answer:
            return f"> {_quoted(' '.join(str(row.get('prompt', '')).split()))} → {_quoted(answer)}"
    return ""


def _quoted(text: str) -> str:
    """A model's text, cut, as code: whatever it holds, it is no markup."""
    cut = text if len(text) <= _SAMPLE else text[: _SAMPLE - 1] + "…"
    return f"`` {cut.replace('``', '`` ')} ``"
