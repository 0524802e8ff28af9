"""Judging: from an evaluation report to a certificate, and from a certificate to the promotion pointer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from training.errors import InputRefused
from training.specs.artifacts import Certificate, Manifest, Promotion
from training.specs.base import digest_of
from training.specs.gates import Gate
from training.store import Store, file_entry

REPORT_FILE = "report.json"


def certify(manifest: Manifest, evaluation: Manifest, gates: Sequence[Gate], store: Store,
            issued_by: str) -> Certificate:
    """Judge a version by its evaluation and keep the certificate; equal evidence keeps the earlier one.

    Raises:
        InputRefused: The evaluation belongs to another version, or its bytes have changed.
    """
    measured = evaluation.inputs["artifact"]
    if (measured.asset, measured.version, measured.digest) != (manifest.asset, manifest.version, manifest.digest):
        raise InputRefused(f"the evaluation {evaluation.version} measured {measured.asset} {measured.version}, not "
                           f"{manifest.asset} {manifest.version}")
    folder = store.verified_folder(evaluation.asset, evaluation.version, evaluation.digest)
    metrics = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["metrics"]
    suite = evaluation.inputs.get("evaluation_sets")
    certificate = Certificate(
        asset=manifest.asset, version=manifest.version, artifact_digest=manifest.digest,
        suite_digest=suite.digest if suite else None, evaluator_fingerprint=evaluation.fingerprint,
        report_digest=file_entry(folder / REPORT_FILE).sha256,
        thresholds_digest=thresholds_digest(gates),
        verdicts=tuple(gate.judge(_number(metrics.get(gate.metric))) for gate in gates),
        issued_at=time.time(), issued_by=issued_by)
    earlier = store.certificate(manifest.asset, manifest.version)
    if earlier is not None and _evidence(earlier) == _evidence(certificate):
        return earlier
    store.write_certificate(certificate)
    return certificate


def settle(certificate: Certificate, store: Store, by: str) -> bool:
    """Move the promotion pointer to what the certificate says; return whether the version is promoted now.

    A version that fails loses the pointer if it had it; a pointer to another version stays.
    """
    pointer = store.promotion(certificate.asset)
    if certificate.passed:
        wanted = (certificate.version, certificate.digest)
        if pointer is None or (pointer.version, pointer.certificate_digest) != wanted:
            store.promote(Promotion(asset=certificate.asset, version=certificate.version,
                                    digest=certificate.artifact_digest, certificate_digest=certificate.digest,
                                    promoted_at=time.time(), promoted_by=by))
        return True
    if pointer is not None and pointer.version == certificate.version:
        store.withdraw(certificate.asset)
    return False


def thresholds_digest(gates: Sequence[Gate]) -> str:
    """Digest of an asset's gates."""
    return digest_of([gate.model_dump(mode="json") for gate in gates])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _evidence(certificate: Certificate) -> dict[str, object]:
    return certificate.model_dump(mode="json", exclude={"issued_at", "issued_by"})
