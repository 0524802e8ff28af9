"""What a person may decide about versions: promote one, roll back, waive a gate."""

from __future__ import annotations

import time
from datetime import date, timedelta

from pipeline.building.builder import Builder, Judgement
from pipeline.gates.promotion import promotion_of
from pipeline.graph import require_asset
from pipeline.humanize import nearest
from pipeline.jobs.launcher import Listener
from training.errors import InputRefused, RecipeError
from training.specs.artifacts import Certificate, Hold, Manifest, Waiver
from training.store.store import Store, utc_today
from training.store.validity import lets_pass

LONGEST_WAIVER = timedelta(days=366)


def promote(builder: Builder, asset: str, version: str, author: str, on_events: Listener) -> Certificate:
    """Promote a version that its gates let pass, by today's terms; a newer one that was promoted is held back.

    Raises:
        RecipeError: There is no such asset.
        StoreError: There is no such version.
        InputRefused: It was never judged, a gate refuses it, it rests on an expired waiver, or its bytes have changed.
    """
    require_asset(asset, builder.loaded.graph)
    store = builder.store
    manifest = store.manifest(asset, version)
    certificate = _eligible(builder, manifest, on_events)

    left = store.promotion(asset)
    # Else the next run would take the newer version again, which its gates let pass too.
    if left is not None and left.version > version:
        _hold(store, asset, left.version, f"{version} was promoted in its place", author)
    _point_to(store, certificate, author)
    return certificate


def rollback(builder: Builder, asset: str, reason: str, author: str, on_events: Listener) -> Certificate:
    """Promote the newest earlier promotion that still passes; the version that is left is held back.

    Raises:
        RecipeError: There is no such asset.
        InputRefused: Nothing is promoted, or no earlier promotion passes; the message says why of each.
    """
    require_asset(asset, builder.loaded.graph)
    store = builder.store
    left = store.promotion(asset)
    if left is None:
        raise InputRefused(
            f"nothing of {asset} is promoted, so there is nothing to leave: {store.explain_unpromoted(asset)}"
        )

    earlier = dict.fromkeys(made.version for made in reversed(store.promotions(asset)) if made.version != left.version)
    problems = []
    for version in earlier:
        if version not in store.versions(asset):
            problems.append(f"{version} is gone")
            continue
        if hold := store.hold(asset, version):
            problems.append(f"{version} is held back by {hold.author}: {hold.reason}")
            continue

        try:
            certificate = _eligible(builder, store.manifest(asset, version), on_events)
        except InputRefused as error:
            problems.append(str(error))
            continue

        _hold(store, asset, left.version, reason, author)
        _point_to(store, certificate, author)
        return certificate

    reasons = "; ".join(problems) or "no other version was ever promoted"
    raise InputRefused(
        f"there is no earlier version of {asset} to go back to: {reasons}; {left.version} stays promoted"
    )


def waive(
    builder: Builder,
    asset: str,
    gate: str,
    reason: str,
    until: date,
    author: str,
    on_events: Listener,
    version: str = "",
) -> Judgement:
    """Let one version pass a gate that refused it, until a day, and judge it again at once.

    Args:
        version: The newest one by default. The waiver is for this one alone.

    Raises:
        RecipeError: There is no such asset, gate or version, or the day is not within a year from now.
        InputRefused: The gate did not refuse the version.
    """
    manifest = _version(builder, asset, version)
    today = utc_today()
    if not today <= until <= today + LONGEST_WAIVER:
        raise RecipeError(
            f"--until {until}: a waiver ends on a day from {today} to {today + LONGEST_WAIVER}; after "
            "it, what rests on it is refused again"
        )
    if not reason.strip() or not author.strip():
        raise RecipeError("a waiver needs a --reason, and an --author where the login name is not known")

    verdicts = {verdict.name: verdict for verdict in _examine(builder, manifest, on_events).verdicts}
    if gate not in verdicts:
        raise RecipeError(
            f"--gate {gate}: {asset} has no such gate{nearest(gate, verdicts)}; its gates are {', '.join(verdicts)}"
        )
    if verdicts[gate].passed:
        refused = [name for name, verdict in verdicts.items() if not verdict.passed]
        raise InputRefused(
            f"{asset} {manifest.version} passes {gate} ({verdicts[gate].reason}): there is nothing to "
            f"waive; what refused it: {', '.join(refused) or 'no gate did'}"
        )

    builder.store.write_waiver(
        Waiver(
            asset=asset,
            version=manifest.version,
            gate=gate,
            reason=reason.strip(),
            author=author,
            until=until,
            created_at=time.time(),
        )
    )
    return _judge_again(builder, manifest, on_events)


def withdraw_waiver(builder: Builder, asset: str, gate: str, on_events: Listener, version: str = "") -> Judgement:
    """Take a waiver back, and judge the version again at once.

    Raises:
        RecipeError: There is no such asset or version.
        InputRefused: There is no such waiver.
    """
    manifest = _version(builder, asset, version)
    waived = [waiver.gate for waiver in builder.store.waivers(asset, manifest.version)]
    if gate not in waived:
        raise InputRefused(
            f"{gate} of {asset} {manifest.version} is not waived; waived is {', '.join(waived) or 'nothing'}"
        )
    builder.store.remove_waiver(asset, manifest.version, gate)
    return _judge_again(builder, manifest, on_events)


def _judge_again(builder: Builder, manifest: Manifest, on_events: Listener) -> Judgement:
    pointer = builder.store.promotion(manifest.asset)
    is_older = pointer is not None and pointer.version > manifest.version
    is_past_version = not _is_latest(builder.store, manifest)
    return builder.examine(manifest, on_events, is_past_version=is_past_version, promote=not is_older)


def _examine(builder: Builder, manifest: Manifest, on_events: Listener) -> Certificate:
    is_past_version = not _is_latest(builder.store, manifest)
    return builder.examine(manifest, on_events, is_past_version=is_past_version, promote=False).certificate


def _eligible(builder: Builder, manifest: Manifest, on_events: Listener) -> Certificate:
    """The certificate of a version that may be promoted; one on other terms is replaced by a new one first."""
    store = builder.store
    if store.certificate(manifest.asset, manifest.version) is None:
        raise InputRefused(
            f"{manifest.asset} {manifest.version} was never judged, and only a version with a "
            f"certificate can be promoted: materialize {manifest.asset} so that its gates run"
        )

    # A past version whatever it is: a person may choose one that was made from parents that are promoted no longer.
    certificate = builder.examine(manifest, on_events, is_past_version=True, promote=False).certificate
    if not lets_pass(certificate, utc_today()):
        raise InputRefused(store.explain_unpromoted(manifest.asset, wanted=manifest.version))

    store.verified_folder(manifest.asset, manifest.version, certificate.artifact_digest)
    return certificate


def _point_to(store: Store, certificate: Certificate, by: str) -> None:
    """Promote a version. The hold of the version that is left comes before, or a nightly run could undo this."""
    store.remove_hold(certificate.asset, certificate.version)
    store.promote(promotion_of(certificate, by))


def _hold(store: Store, asset: str, version: str, reason: str, author: str) -> None:
    store.write_hold(Hold(asset=asset, version=version, reason=reason, author=author, created_at=time.time()))


def _version(builder: Builder, asset: str, version: str) -> Manifest:
    require_asset(asset, builder.loaded.graph)
    store = builder.store
    if version:
        return store.manifest(asset, version)
    latest = store.latest(asset)
    if latest is None:
        raise InputRefused(store.explain_unpromoted(asset))
    return latest


def _is_latest(store: Store, manifest: Manifest) -> bool:
    return store.versions(manifest.asset)[-1] == manifest.version
