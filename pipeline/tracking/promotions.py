"""MLflow follows the store: the judgement of every version, and which one is promoted.

What MLflow was sent is noted beside the asset, and the note is written last: whoever comes next knows what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.paths import work
from pipeline.tracking.outbox import OutboxRecord, records_of
from pipeline.tracking.tracker import Tracker
from training.specs.artifacts import Manifest, Promotion
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store

_PROMOTED = "promoted"
"""The links, beside those of the versions, that note which promotion MLflow has."""

_JUDGEMENT = "tracked_judgement"
LINKS = ("mlflow_run_id", "mlflow_url", "mlflow_model_id", "mlflow_model_version", "mlflow_model_url", _JUDGEMENT)
"""What a version's links say about MLflow."""


def agree_with_mlflow(asset: str, store: Store, tracker: Tracker) -> bool:
    """Let MLflow show which version is promoted, and that the one before is not; return whether it does now."""
    if is_current(asset, store):
        return True

    pointer, before = store.promotion(asset), store.links(asset, _PROMOTED).get("version", "")
    changed = dict.fromkeys(version for version in (before, pointer.version if pointer else "") if version)
    existing = store.versions(asset)
    # A list: every one of them is tried, also after one that failed.
    if not all(
        [record_judgement(store.manifest(asset, version), store, tracker) for version in changed if version in existing]
    ):
        return False

    shown = {"version": pointer.version if pointer else "", "certificate": _digest(pointer)}
    store.write_links(asset, _PROMOTED, shown)
    return True


def record_judgement(manifest: Manifest, store: Store, tracker: Tracker) -> bool:
    """Record a version's newest judgement, and whether it is promoted, in MLflow; return whether it has it now."""
    asset, version = manifest.asset, manifest.version
    certificate = store.certificate(asset, version)
    if certificate is None:
        return True

    pointer = store.promotion(asset)
    promoted = pointer is not None and pointer.version == version
    state = _state(certificate.digest, promoted)
    if store.links(asset, version).get(_JUDGEMENT) == state:
        return True
    if not publish_late(manifest, store, tracker):
        return False

    links = store.links(asset, version)
    evaluation = store.folder(asset + EVALUATION_SUFFIX, certificate.evaluation_version)
    pages = store.gate_pages(asset, version)
    if not tracker.judged(manifest, links, certificate, evaluation, promoted, store, pages):
        return False

    store.write_links(asset, version, {_JUDGEMENT: state})
    return True


def publish_late(manifest: Manifest, store: Store, tracker: Tracker) -> bool:
    """Record a version in MLflow that is not recorded there; return whether it is now.

    A version whose attempt is still there is left to its delivery, which has its metrics too.
    """
    asset, version = manifest.asset, manifest.version
    links = store.links(asset, version)
    if links.get("mlflow_run_id"):
        return True
    if any(record.build.version == version for record in _records(links)):
        return False

    late = tracker.publish(None, manifest, store.folder(asset, version), store)
    if not late or not tracker.finish(late["mlflow_run_id"], manifest.started_at + manifest.seconds):
        return False

    store.write_links(asset, version, late)
    return True


def requeue_judgement(manifest: Manifest, store: Store) -> None:
    """Note that MLflow lacks a version's newest judgement; whoever comes to MLflow next delivers it."""
    for record in _records(store.links(manifest.asset, manifest.version)):
        if record.build.version == manifest.version:
            record.change(outcome_delivered=False)


def _records(links: Mapping[str, str]) -> list[OutboxRecord]:
    """The outbox of the attempt that made a version.

    The folder is looked for where the attempts are now: a home that was copied writes nothing into the old one.
    """
    recorded = links.get("attempt")
    return records_of(work() / Path(*Path(recorded).parts[-3:])) if recorded else []


def is_current(asset: str, store: Store) -> bool:
    """Whether MLflow shows the pointer as it is, with all that belongs to it."""
    pointer = store.promotion(asset)
    if store.links(asset, _PROMOTED).get("certificate", "") != _digest(pointer):
        return False
    return pointer is None or store.links(asset, pointer.version).get(_JUDGEMENT) == _state(_digest(pointer), True)


def _state(certificate: str, promoted: bool) -> str:
    return f"{certificate}:{promoted}"


def _digest(pointer: Promotion | None) -> str:
    return pointer.certificate_digest if pointer else ""
