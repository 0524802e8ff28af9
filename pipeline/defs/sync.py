"""MLflow and Dagster follow the store: what they show of a promotion is made to agree with the pointer.

A promotion is one file in the store. MLflow's alias and Dagster's record follow it, and that may be cut short: whoever
comes next does the rest. What MLflow has is noted beside the asset, and the note is written last; Dagster is asked.

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

from pipeline.building.adoption import describe_adoption
from pipeline.defs.metadata import assessment_of, check_description, check_metadata, materialization_metadata
from pipeline.gates.wording import gate_state
from pipeline.graph import Graph
from pipeline.jobs.locks import LOCK_FILE, is_held
from pipeline.tracking.promotions import agree_with_mlflow, is_current
from pipeline.tracking.tracker import Tracker
from training.specs.artifacts import Certificate, Manifest
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store, utc_today
from training.store.validity import lets_pass


def reconcile(
    store: Store, tracker: Tracker, instance: dg.DagsterInstance, graph: Graph, prefix: Sequence[str], work: Path
) -> list[str]:
    """Make MLflow and Dagster show the promoted version of every asset; return the assets of which they did not.

    MLflow being down is no error: it follows next time. An asset that a run is working at is left to that run.

    Args:
        graph: The recipe's assets.
        prefix: Their key prefix.
        work: Folder of the attempts, where the builders' locks are.
    """
    repaired = []
    for asset, key in _idle_assets(store, instance, graph, prefix, work):
        mlflow_followed = not is_current(asset, store) and agree_with_mlflow(asset, store, tracker)
        if _agree_with_dagster(asset, store, instance, key) or mlflow_followed:
            repaired.append(asset)

    return repaired


def agree_with_dagster(
    store: Store, instance: dg.DagsterInstance, graph: Graph, prefix: Sequence[str], work: Path
) -> None:
    """Do the half of `reconcile` that is Dagster's.

    A run calls it at its end. Another run that was refused meanwhile, because this one was building, has planned the
    same checks: they stand in front of this run's verdicts and will never be evaluated.
    """
    for asset, key in _idle_assets(store, instance, graph, prefix, work):
        _agree_with_dagster(asset, store, instance, key)


def _idle_assets(
    store: Store, instance: dg.DagsterInstance, graph: Graph, prefix: Sequence[str], work: Path
) -> Iterator[tuple[str, dg.AssetKey]]:
    """The assets that have a version and that no run is working at."""
    for asset in graph:
        key = dg.AssetKey([*prefix, asset])
        if store.latest(asset) is not None and not _is_in_progress(asset, store, instance, key, work):
            yield asset, key


def _is_in_progress(asset: str, store: Store, instance: dg.DagsterInstance, key: dg.AssetKey, work: Path) -> bool:
    """Whether a process builds or measures an asset, or an unfinished run has still to build or to judge it."""
    locks = (work / store.recipe / name / LOCK_FILE for name in (asset, asset + EVALUATION_SUFFIX))
    if any(is_held(lock) for lock in locks):
        return True

    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(_check_keys(asset, store, key))
    run_ids = {record.run_id for record in records.values() if record.status == AssetCheckExecutionRecordStatus.PLANNED}
    for entry in (record.asset_entry for record in instance.get_asset_records([key])):
        made = entry.last_materialization_record
        if entry.last_run_id and (made is None or made.run_id != entry.last_run_id):
            run_ids.add(entry.last_run_id)

    runs = [instance.get_run_by_id(run_id) for run_id in run_ids]
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
    shown = _shown_version(instance, key)
    to_show = _to_show(asset, store, shown)
    if to_show is None:
        return False

    manifest, certificate = to_show
    moved = manifest.version != shown
    if moved:
        instance.report_runless_asset_event(_materialization(manifest, certificate, store, key))

    shown_verdicts = {} if moved else _shown_verdicts(instance, key, certificate)
    passed = {verdict.name: gate_state(certificate, verdict) != "failed" for verdict in certificate.verdicts}
    verdicts = [verdict for verdict in certificate.verdicts if shown_verdicts.get(verdict.name) != passed[verdict.name]]
    if not verdicts:
        return moved

    target = _target(instance, key)
    links, report = store.links(asset, manifest.version), store.gate_report(asset, manifest.version)
    for verdict in verdicts:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=verdict.name,
            passed=passed[verdict.name],
            blocking=True,
            severity=dg.AssetCheckSeverity.ERROR,
            description=check_description(verdict, certificate),
            metadata=check_metadata(verdict, certificate, links=links, report=report),
            target_materialization_data=target,
        )
        instance.report_runless_asset_event(evaluation)

    return True


def _to_show(asset: str, store: Store, shown: str) -> tuple[Manifest, Certificate] | None:
    """The version that Dagster is to show: the promoted one, or a newer one that its gates refused.

    Args:
        shown: The version that it shows now.
    """
    pointer = store.promotion(asset)
    certificate = store.certificate(asset, shown) if shown in store.versions(asset) else None
    if pointer is not None and (
        shown < pointer.version
        or (shown > pointer.version and certificate is not None and lets_pass(certificate, utc_today()))
    ):
        shown, certificate = pointer.version, store.certificate(asset, pointer.version)

    return (store.manifest(asset, shown), certificate) if certificate else None


def _shown_verdicts(instance: dg.DagsterInstance, key: dg.AssetKey, certificate: Certificate) -> dict[str, bool]:
    """What Dagster shows of the gates on the asset's newest materialization.

    A check that was planned and never finished is shown as not evaluated. So is one of an earlier materialization.
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
    records = instance.fetch_materializations(key, limit=1).records
    if not records:
        return None

    newest = records[0]
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp
    )


def _shown_version(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
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
        assessment_of(store, manifest, certificate),
        reused=True,
        store_uri=store.uri(asset, version),
        links=store.links(asset, version),
        code=[describe_adoption(adoption) for adoption in store.adoptions(asset, version)],
    )

    # The same tags as a run would write: Dagster tells by them what is stale.
    tags = {DATA_VERSION_TAG: manifest.digest, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    for used in manifest.inputs.values():
        tags[get_input_data_version_tag(dg.AssetKey([*key.path[:-1], used.asset]))] = used.digest

    return dg.AssetMaterialization(
        asset_key=key,
        description=f"{manifest.version} is promoted",
        tags=tags,
        metadata=page | {"certificate": dg.MetadataValue.text(certificate.digest)},
    )
