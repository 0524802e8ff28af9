"""Promotion: from a certificate to the pointer that downstream reads."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import date

from training.specs.artifacts import Certificate, Promotion, Waiver
from training.store.store import Store, utc_today
from training.store.validity import lets_pass


def settle(certificate: Certificate, store: Store, by: str, today: date | None = None) -> bool:
    """Move the promotion pointer to what the certificate says; return whether the version is promoted now.

    A version that fails, or that rests on a waiver that has expired, loses the pointer if it had it; a pointer to
    another version stays. A version that is held back does not get it.
    """
    pointer = store.promotion(certificate.asset)
    is_promoted = pointer is not None and pointer.version == certificate.version

    if not lets_pass(certificate, today or utc_today()):
        if is_promoted:
            store.withdraw(certificate.asset)
        return False
    if not is_promoted and store.hold(certificate.asset, certificate.version):
        return False

    named = (pointer.version, pointer.digest, pointer.certificate_digest) if pointer else ()
    # A promotion is a record with a date: one that is there already is not written again.
    if named != (certificate.version, certificate.artifact_digest, certificate.digest):
        store.promote(promotion_of(certificate, by), today)
    return True


def describe_waivers(waivers: Iterable[Waiver]) -> list[str]:
    """Waivers in words, one each, for pages and tags."""
    return [
        f"{waiver.gate} of {waiver.asset} {waiver.version} until {waiver.until} by {waiver.author}: {waiver.reason}"
        for waiver in waivers
    ]


def promotion_of(certificate: Certificate, by: str) -> Promotion:
    """The pointer to a certified version."""
    return Promotion(
        asset=certificate.asset,
        version=certificate.version,
        digest=certificate.artifact_digest,
        certificate_digest=certificate.digest,
        promoted_at=time.time(),
        promoted_by=by,
    )
