"""MLflow and Dagster follow the store: what they show of a promotion is made to agree with the pointer.

A promotion is one file in the store. MLflow's alias and Dagster's record follow it, and that may be cut short: whoever
comes next does the rest. What MLflow was told is kept beside the asset and written last; Dagster is asked.

An asset that a run is working at is left alone: its verdicts are that run's to report. Dagster shows the newest row of
a check. A row that somebody else reports in the meantime would stay in front of the run's own verdict for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
)
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from pipeline.defs.metadata import check_description, check_metadata, materialization_metadata, standing_of
from pipeline.gates.wording import gate_state
from pipeline.graph import GRAPH
from pipeline.jobs.locks import LOCK_FILE, is_held
from pipeline.tracking.promotions import agree_with_mlflow, is_current
from pipeline.tracking.tracker import Tracker
from training.specs.artifacts import Certificate, Manifest
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store, utc_today
from training.store.validity import lets_pass


def reconcile(
    store: Store, tracker: Tracker, instance: dg.DagsterInstance, prefix: Sequence[str], work: Path
) -> list[str]:
    """Make MLflow and Dagster show the promoted version of every asset; return the assets of which they did not.

    MLflow being down is no error: it is told next time. An asset that a run is working at is left to that run.

    Args:
        prefix: Key prefix of the recipe's assets.
        work: Folder of the attempts, where the builders' locks are.
    """
    repaired = []
    for asset, key in _settled(store, instance, prefix, work):
        told = not is_current(asset, store) and agree_with_mlflow(asset, store, tracker)
        if _agree_with_dagster(asset, store, instance, key) or told:
            repaired.append(asset)
    return repaired


def agree_with_dagster(store: Store, instance: dg.DagsterInstance, prefix: Sequence[str], work: Path) -> None:
    """Do the half of `reconcile` that is Dagster's.

    A run calls it at its end: another one that was refused meanwhile, since this one was building, has planned the same
    checks. Those stand in front of this run's verdicts and will never be evaluated.
    """
    for asset, key in _settled(store, instance, prefix, work):
        _agree_with_dagster(asset, store, instance, key)


def _settled(
    store: Store, instance: dg.DagsterInstance, prefix: Sequence[str], work: Path
) -> Iterator[tuple[str, dg.AssetKey]]:
    """The assets that have a version and that no run is working at."""
    for asset in GRAPH:
        key = dg.AssetKey([*prefix, asset])
        if store.latest(asset) is not None and not _is_in_progress(asset, store, instance, key, work):
            yield asset, key


def _is_in_progress(asset: str, store: Store, instance: dg.DagsterInstance, key: dg.AssetKey, work: Path) -> bool:
    """Whether a process builds or measures an asset, or an unfinished run has still to build or to judge it."""
    locks = (work / store.recipe / name / LOCK_FILE for name in (asset, asset + EVALUATION_SUFFIX))
    if any(is_held(lock) for lock in locks):
        return True

    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(_check_keys(asset, store, key))
    awaited = {record.run_id for record in records.values() if record.status == AssetCheckExecutionRecordStatus.PLANNED}
    for entry in (record.asset_entry for record in instance.get_asset_records([key])):
        made = entry.last_materialization_record
        if entry.last_run_id and (made is None or made.run_id != entry.last_run_id):
            awaited.add(entry.last_run_id)

    runs = [instance.get_run_by_id(run_id) for run_id in awaited]
    return any(run is not None and not run.is_finished for run in runs)


def _check_keys(asset: str, store: Store, key: dg.AssetKey) -> list[dg.AssetCheckKey]:
    """The gates by which an asset's newest and its promoted version were judged."""
    pointer, versions = store.promotion(asset), store.versions(asset)
    judged = {*versions[-1:], *([pointer.version] if pointer else [])}
    certificates = (store.certificate(asset, version) for version in judged)
    gates = {verdict.name for certificate in certificates if certificate for verdict in certificate.verdicts}
    return [dg.AssetCheckKey(key, gate) for gate in sorted(gates)]


def _agree_with_dagster(asset: str, store: Store, instance: dg.DagsterInstance, key: dg.AssetKey) -> bool:
    """Report the promoted version, and the verdicts that differ, as events without a run; return whether any was."""
    shown = _shown(instance, key)
    wanted = _to_show(asset, store, shown)
    if wanted is None:
        return False
    manifest, certificate = wanted
    moved = manifest.version != shown
    if moved:
        instance.report_runless_asset_event(_materialization(manifest, certificate, store, key))
    known = {} if moved else _known_verdicts(instance, key, certificate)
    verdicts = [
        verdict
        for verdict in certificate.verdicts
        if known.get(verdict.name) is not (gate_state(certificate, verdict) != "failed")
    ]
    target = _target(instance, key) if verdicts else None
    for verdict in verdicts:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=verdict.name,
                passed=gate_state(certificate, verdict) != "failed",
                blocking=True,
                severity=dg.AssetCheckSeverity.ERROR,
                description=check_description(verdict, certificate),
                metadata=check_metadata(
                    verdict,
                    certificate,
                    links=store.links(asset, manifest.version),
                    report=store.gate_report(asset, manifest.version),
                ),
                target_materialization_data=target,
            )
        )
    return moved or bool(verdicts)


def _to_show(asset: str, store: Store, shown: str) -> tuple[Manifest, Certificate] | None:
    """The version that Dagster is to show: the promoted one, or a newer one that its gates refused."""
    pointer = store.promotion(asset)
    certificate = store.certificate(asset, shown) if shown in store.versions(asset) else None
    if pointer is not None and (
        shown < pointer.version
        or (shown > pointer.version and certificate is not None and lets_pass(certificate, utc_today()))
    ):
        shown, certificate = pointer.version, store.certificate(asset, pointer.version)
    return (store.manifest(asset, shown), certificate) if certificate else None


def _known_verdicts(instance: dg.DagsterInstance, key: dg.AssetKey, certificate: Certificate) -> dict[str, bool]:
    """What Dagster shows of the gates on the asset's newest materialization.

    It shows a check that was planned and never finished as not evaluated, and so it does one of an earlier
    materialization.
    """
    keys = [dg.AssetCheckKey(key, verdict.name) for verdict in certificate.verdicts]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    newest = _target(instance, key)
    finished = (AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED)
    return {
        check.name: record.status == AssetCheckExecutionRecordStatus.SUCCEEDED
        for check, record in records.items()
        if record.status in finished and _is_about(record, newest)
    }


def _is_about(record: AssetCheckExecutionRecord, newest: AssetCheckEvaluationTargetMaterializationData | None) -> bool:
    """Whether Dagster counts a verdict for a materialization; its own rule is `targets_latest_materialization`."""
    if newest is None or record.run_id == newest.run_id:
        return True
    target = record.evaluation.target_materialization_data if record.evaluation else None
    return newest.timestamp < record.create_timestamp if target is None else target.storage_id == newest.storage_id


def _target(instance: dg.DagsterInstance, key: dg.AssetKey) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The asset's newest materialization, as verdicts name it."""
    found = instance.fetch_materializations(key, limit=1).records
    return (
        AssetCheckEvaluationTargetMaterializationData(
            storage_id=found[0].storage_id, run_id=found[0].run_id, timestamp=found[0].timestamp
        )
        if found
        else None
    )


def _shown(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    event = instance.get_latest_materialization_event(key)
    made = event.asset_materialization if event else None
    version = made.metadata.get("version") if made else None
    return str(version.value) if version is not None else ""


def _materialization(
    manifest: Manifest, certificate: Certificate, store: Store, key: dg.AssetKey
) -> dg.AssetMaterialization:
    asset, version = manifest.asset, manifest.version
    page = materialization_metadata(
        manifest,
        store.folder(asset, version),
        standing_of(store, manifest, certificate),
        reused=True,
        store_uri=store.uri(asset, version),
        links=store.links(asset, version),
    )
    tags = {DATA_VERSION_TAG: manifest.digest, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    for used in manifest.inputs.values():
        tags[get_input_data_version_tag(dg.AssetKey([*key.path[:-1], used.asset]))] = used.digest
    return dg.AssetMaterialization(
        asset_key=key,
        description=f"{manifest.version} is promoted",
        tags=tags,
        metadata=page | {"certificate": dg.MetadataValue.text(certificate.digest)},
    )
