"""MLflow follows the store: the judgement of every version, and which one is promoted.

What MLflow was told is kept beside the asset and written last, so that whoever comes next knows what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.paths import work
from pipeline.tracking.outbox import Debt, debts_of
from pipeline.tracking.tracker import Tracker
from training.specs.artifacts import Manifest, Promotion
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store

_TOLD = "promoted"
_JUDGEMENT = "tracked_judgement"
LINKS = ("mlflow_run_id", "mlflow_url", "mlflow_model_id", "mlflow_model_version", "mlflow_model_url", _JUDGEMENT)
"""What a version's links say about MLflow."""


def agree_with_mlflow(asset: str, store: Store, tracker: Tracker) -> bool:
    """Tell MLflow which version is promoted, and that the one before is not any more; return whether it knows now."""
    if is_current(asset, store):
        return True
    pointer, before = store.promotion(asset), store.links(asset, _TOLD).get("version", "")
    changed = dict.fromkeys(version for version in (before, pointer.version if pointer else "") if version)
    known = store.versions(asset)
    if not all([record(store.manifest(asset, version), store, tracker) for version in changed if version in known]):
        return False
    store.write_links(asset, _TOLD, {"version": pointer.version if pointer else "", "certificate": _digest(pointer)})
    return True


def record(manifest: Manifest, store: Store, tracker: Tracker) -> bool:
    """Record a version's newest judgement, and whether it is promoted, in MLflow; return whether it knows now."""
    asset, version = manifest.asset, manifest.version
    certificate = store.certificate(asset, version)
    if certificate is None:
        return True
    pointer, links = store.promotion(asset), store.links(asset, version)
    promoted = pointer is not None and pointer.version == version
    state = _state(certificate.digest, promoted)
    if links.get(_JUDGEMENT) == state:
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

    A version whose attempt is still there waits for its settlement, which has its metrics too.
    """
    asset, version = manifest.asset, manifest.version
    links = store.links(asset, version)
    if links.get("mlflow_run_id"):
        return True
    if any(debt.build.version == version for debt in _debts(links)):
        return False
    late = tracker.publish(None, manifest, store.folder(asset, version), store)
    if not late or not tracker.finish(late["mlflow_run_id"], manifest.started_at + manifest.seconds):
        return False
    store.write_links(asset, version, late)
    return True


def owe_judgement(manifest: Manifest, store: Store) -> None:
    """Note that MLflow was not told of a version's newest judgement; whoever comes to MLflow next tells it."""
    for debt in _debts(store.links(manifest.asset, manifest.version)):
        if debt.build.version == manifest.version:
            debt.change(told=False)


def _debts(links: Mapping[str, str]) -> list[Debt]:
    """What MLflow is owed of the attempt that made a version.

    The folder is looked for where the attempts are now: a home that was copied writes nothing into the old one.
    """
    recorded = links.get("attempt")
    return debts_of(work() / Path(*Path(recorded).parts[-3:])) if recorded else []


def is_current(asset: str, store: Store) -> bool:
    """Whether MLflow was told of the pointer as it is, and finished taking it in."""
    pointer = store.promotion(asset)
    if store.links(asset, _TOLD).get("certificate", "") != _digest(pointer):
        return False
    return pointer is None or store.links(asset, pointer.version).get(_JUDGEMENT) == _state(_digest(pointer), True)


def _state(certificate: str, promoted: bool) -> str:
    return f"{certificate}:{promoted}"


def _digest(pointer: Promotion | None) -> str:
    return pointer.certificate_digest if pointer else ""
