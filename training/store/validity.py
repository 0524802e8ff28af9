"""Whether a certificate holds today, and whether the version that an asset's pointer names may be used.

There is one rule, and everybody goes by it. `require_valid` is the whole rule. The next stage's job asks it before it
works and the planner before it plans, and `gatehouse status`, `plan`, `chat` and `verify` report its answer.
`changed_since` is the part of the rule that asks for a new judgement. A build asks it before it trusts an earlier
judgement, and `gatehouse gates` shows it. `lets_pass` is the part that a pointer moves by.

A job does not know the recipe of today. The control plane does, and adds it as `Terms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from training.errors import InputRefused
from training.specs.artifacts import Certificate, Manifest, Promotion, Waiver
from training.specs.contracts import ARTIFACT
from training.specs.evidence import ITEMS_FILE, REPORT_FILE
from training.specs.job import EVALUATION_SUFFIX
from training.store.publishing import MANIFEST

if TYPE_CHECKING:
    from training.store.store import Store


@dataclass(frozen=True)
class Terms:
    """What a version is judged by today. A certificate under other terms vouches for nothing.

    Attributes:
        thresholds: Digest of the asset's gates.
        evaluator: Fingerprint of the code that measures it.
        suite: Digest of what it is measured on, and of the recipe's section on how.
    """

    thresholds: str
    evaluator: str
    suite: str

    def outdated(self, certificate: Certificate) -> list[str]:
        """What is not as it was when a certificate was issued."""
        return [
            name
            for name, now, then in (
                ("the asset's gates", self.thresholds, certificate.thresholds_digest),
                ("the evaluator's code", self.evaluator, certificate.evaluator_fingerprint),
                (
                    "the evaluation sets, what else it is measured with, or the recipe's section `evaluation`",
                    self.suite,
                    certificate.suite_digest,
                ),
            )
            if now != then
        ]


def require_valid(
    store: Store,
    asset: str,
    version: str,
    digest: str,
    planned_on: str,
    today: date,
    terms: Callable[[], Terms] | None = None,
) -> Certificate:
    """Refuse a version unless it is promoted, its certificate holds and vouches for these very bytes.

    Args:
        planned_on: Digest of the certificate that a job was planned on; empty when nothing was planned yet.
        today: The day for which waivers must hold, UTC.
        terms: What the recipe asks for today. It is called last, and may raise InputRefused itself.

    Returns:
        The certificate.

    Raises:
        InputRefused: With the reason, the gate that refused it where there is one, and what to do.
        StoreError: A record that decides about it is damaged.
    """
    pointer = store.promotion(asset)
    if pointer is None or pointer.version != version:
        raise InputRefused(store.explain_unpromoted(asset, wanted=version))

    # While it is judged again, the judgement that it was promoted with counts until the pointer has followed.
    certificate = store.promoted_with(pointer)
    if not store.storage.exists(store.place(asset, version) / MANIFEST):
        raise InputRefused(
            f"{asset} {version} is promoted and its files are gone; `gatehouse run -r {store.named} "
            f"--select {asset}` makes it anew"
        )

    manifest = store.manifest(asset, version)
    again = f"`{manifest.run_command(store.named)}` judges it again and trains nothing"
    if certificate is None:
        raise InputRefused(f"{asset} {version} has no certificate: {again}")
    if fault := _binding_fault(certificate, pointer, digest):
        raise InputRefused(f"{asset} {version}: {fault}: {again}")
    if planned_on and planned_on != certificate.digest:
        raise InputRefused(
            f"{asset} {version}: the job was planned on the certificate {planned_on[:12]}, and its "
            f"certificate is {certificate.digest[:12]}: it was judged again since, or job.json was "
            "edited; start the asset again through Gatehouse"
        )

    if not lets_pass(certificate, today):
        raise InputRefused(store.explain_unpromoted(asset, wanted=version, today=today))
    if fault := evidence_fault(store, certificate):
        raise InputRefused(f"{asset} {version}: {fault}")
    # What the recipe asks for costs the most to find out, so it is asked last.
    if changes := _changed_terms(store, manifest, certificate, terms() if terms else None):
        raise InputRefused(f"{asset} {version} was judged on other terms: {', '.join(changes)} changed since; {again}")
    return certificate


def lets_pass(certificate: Certificate, today: date) -> bool:
    """Whether a judgement allows promotion: every gate passed or is waived today, and no input is refused."""
    return certificate.passed and not certificate.expired(today)


def changed_since(store: Store, manifest: Manifest, certificate: Certificate, today: date, terms: Terms) -> str:
    """What changed since a version was judged, whatever its judgement said; empty when that still holds.

    Args:
        terms: What the recipe asks for today.

    Raises:
        StoreError: A record that decides about it is damaged.
    """
    changes = _changed_terms(store, manifest, certificate, terms)

    changes += [
        f"the waiver of {waiver.gate} of {waiver.asset} {waiver.version}, which ended on {waiver.until}"
        for waiver in certificate.expired(today)
    ]
    if evidence_fault(store, certificate):
        changes.append("its evidence")
    return ", ".join(changes)


def why_invalid(store: Store, pointer: Promotion, today: date) -> str:
    """Why the next stage would refuse what an asset's pointer names; empty when it would not.

    Raises:
        StoreError: A record that decides about it is damaged.
    """
    try:
        require_valid(store, pointer.asset, pointer.version, pointer.digest, "", today)
    except InputRefused as error:
        return str(error)
    return ""


def explain_unpromoted(store: Store, asset: str, asked_version: str | None, today: date) -> str:
    """Why an asset, or the version of it that was asked for, is not promoted, in one sentence that says what to do."""
    latest = store.latest(asset)
    if latest is None:
        return f"{asset} was never built: materialize {asset} first"
    version = asked_version or latest.version
    certificate = store.certificate(asset, version)
    if certificate is None:
        return f"{asset} {version} was never judged: materialize {asset} so that its gates run"

    waived = {waiver.gate for waiver in certificate.waivers}
    refused = [verdict.reason for verdict in certificate.verdicts if not verdict.passed and verdict.name not in waived]
    if refused:
        return f"{asset} {version} is not promoted; its gate refused it: {'; '.join(refused)}"
    if certificate.unfounded:
        return (
            f"{asset} {version} is not promoted: it was made from {', '.join(certificate.unfounded)}, which is "
            "refused now; materialize that first"
        )
    if expired := certificate.expired(today):
        return f"{asset} {version} rests on {_explain_expired(expired[0], asset, store.named)}"
    if hold := store.hold(asset, version):
        return (
            f"{asset} {version} is held back by {hold.author}: {hold.reason}; `gatehouse promote -r "
            f"{store.recipe} {asset} {version}` promotes it"
        )

    pointer = store.promotion(asset)
    if pointer is not None and pointer.version != version:
        return f"{asset} {version} is not promoted, {pointer.version} is: start again to work on that one"
    return f"{asset} {version} is not promoted: materialize {asset} to have it judged again"


def evidence_fault(store: Store, certificate: Certificate) -> str:
    """What is wrong with the evaluation that a certificate rests on, and what to do; empty when it is as it was judged.

    Raises:
        StoreError: The evaluation's manifest is damaged.
    """
    asset, version = certificate.asset + EVALUATION_SUFFIX, certificate.evaluation_version
    run = f"`gatehouse run -r {store.named} --select {certificate.asset}`"
    if not version or not store.storage.exists(store.place(asset, version) / MANIFEST):
        return (
            f"its certificate rests on the evidence {asset} {version}, which is gone; {run} measures and judges it "
            "again"
        )

    evaluation = store.manifest(asset, version)
    measured = evaluation.inputs.get(ARTIFACT)
    if measured is None or (measured.asset, measured.version, measured.digest) != (
        certificate.asset,
        certificate.version,
        certificate.artifact_digest,
    ):
        return (
            f"its certificate rests on {asset} {version}, which is evidence of another version; {run} judges it again"
        )

    # The manifest vouches for the files, and the certificate for the two that were judged.
    judged = {REPORT_FILE: certificate.report_digest, ITEMS_FILE: certificate.items_digest}
    if any(name not in evaluation.files or evaluation.files[name].sha256 != digest for name, digest in judged.items()):
        return f"its certificate rests on another report than {asset} {version} holds; {run} judges it again"
    if fault := store.fault_of(evaluation, tuple(judged)):
        return (
            f"its evidence is not what was judged: {fault}; delete {store.uri(asset, version)}, then {run} "
            "measures and judges it again"
        )
    return ""


def _changed_terms(store: Store, manifest: Manifest, certificate: Certificate, terms: Terms | None) -> list[str]:
    """What a version would be judged by now and was not judged by then."""
    changes = terms.outdated(certificate) if terms else []
    # Its inputs may rest on other waivers by now, or may be refused.
    standing = (store.inherited_waivers(manifest), store.unfounded(manifest))
    if standing != (certificate.inherited, certificate.unfounded):
        changes.append("the standing of what it was made from")
    return changes


def _binding_fault(certificate: Certificate, pointer: Promotion, digest: str) -> str:
    """How certificate, pointer and content fail to belong together; empty when they do."""
    if (certificate.asset, certificate.version) != (pointer.asset, pointer.version):
        return f"its certificate belongs to {certificate.asset} {certificate.version}"
    if certificate.digest != pointer.certificate_digest:
        return (
            f"its certificate is not the one it was promoted with (digest {certificate.digest[:12]}, promoted.json "
            f"says {pointer.certificate_digest[:12]}): one of the two was changed since"
        )
    if not certificate.artifact_digest == pointer.digest == digest:
        return (
            f"its certificate vouches for content {certificate.artifact_digest[:12]} and promoted.json for "
            f"{pointer.digest[:12]}, not for {digest[:12]}"
        )
    return ""


def _explain_expired(waiver: Waiver, asset: str, named: str) -> str:
    then = "" if waiver.asset == asset else f", then `gatehouse run -r {named} --select {asset}`,"
    return (
        f"a waiver that has expired: {waiver.author} waived {waiver.gate} of {waiver.asset} {waiver.version} until "
        f"{waiver.until} ({waiver.reason}); renew it with `gatehouse waive -r {named} {waiver.asset} --version "
        f"{waiver.version} --gate {waiver.gate} --reason ... --until ...`{then} or build a version that passes"
    )
