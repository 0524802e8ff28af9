"""How manifests and certificates are written down in MLflow. Every function may be repeated with the same arguments."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.gates.wording import GATES_HEADING, STATES, gate_state, interval_text
from pipeline.graph import DEFAULT_RECIPE, is_asset, kind_named
from pipeline.tracking.run_pages import ASSET, KEY, OUTPUT_DIGEST, RECIPE, VERSION, run_name, version_tags
from training.specs.artifacts import REPORT, Certificate, Manifest
from training.specs.evidence import REPORT_FILE, EvaluationReport
from training.store.store import MANIFEST, Store

CANDIDATE, CHAMPION = "candidate", "champion"
STORE = "store"
DIGEST_LENGTH = 36
"""MLflow's limit for a dataset's digest; the whole one is a tag."""

logger = logging.getLogger("gatehouse.tracker")

_NAME_LENGTH, _PARAM_LENGTH, _TAG_LENGTH, _PER_BATCH, _PAGE = 249, 1000, 5000, 100, 1000
_GATE_COLUMNS = "metric,value,interval,method,items,must be,threshold,champion,verdict,reason"
_UNNAMEABLE = re.compile(r"[^\w\-. /:]")


def entity_name(name: str) -> str:
    """`name` of a metric, parameter or tag with everything replaced that MLflow refuses.

    MLflow may use names as paths, so none may resolve to another one, be absolute, or lead out of a folder.
    """
    parts = [_part(part) for part in _UNNAMEABLE.sub("_", name).split("/")]
    if parts[0].startswith(".."):
        parts[0] = f"__{parts[0][2:]}"
    above, slash, last = "/".join(parts)[:_NAME_LENGTH].rpartition("/")
    return above + slash + _part(last)


def _part(part: str) -> str:
    """A part of a name, with `_` in place of one that is empty, `.` or `..`."""
    return part if part.strip(".") or len(part) > 2 else "_" * max(1, len(part))


def model_name(recipe: str, asset: str) -> str:
    """Name of the registered model: the asset, prefixed with the recipe unless that is the default one."""
    return asset if recipe == DEFAULT_RECIPE else f"{recipe}.{asset}"


def is_model(asset: str) -> bool:
    """True for assets that are registered as models."""
    return is_asset(asset) and kind_named(asset).is_model


def flat(section: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """A recipe section as MLflow parameters: dotted names, text values."""
    params: dict[str, str] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            params |= flat(value, f"{name}.")
        else:
            params[entity_name(name)] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)

    return params


def run_of(client: Any, experiment_id: str, key: str) -> str:
    """The run that carries a build's key, empty when there is none.

    A request that took too long is sent again, and the server may have created a run for each. The first run is then
    the build's, and the others are deleted.
    """
    oldest_first = ["attributes.start_time", "attributes.run_id"]
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", order_by=oldest_first)
    for run in runs[1:]:
        client.delete_run(run.info.run_id)

    return str(runs[0].info.run_id) if runs else ""


def run_of_version(client: Any, experiment_id: str, manifest: Manifest) -> str:
    """The run that shows a version, empty when there is none."""
    condition = f"tags.`{ASSET}` = '{manifest.asset}' AND tags.`{VERSION}` = '{manifest.version}'"
    runs = client.search_runs([experiment_id], condition, max_results=1)
    return str(runs[0].info.run_id) if runs else ""


def restore(client: Any, run_id: str) -> None:
    """Bring back a run that somebody deleted: MLflow refuses to write to it, and its version is still in the store."""
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        logger.warning("the run %s was deleted in MLflow, and what it shows is still there: it is restored", run_id)
        client.restore_run(run_id)


def all_runs(client: Any, experiment_id: str) -> set[str]:
    """Ids of all runs of an experiment, deleted ones too."""
    from mlflow.entities import ViewType

    run_ids: set[str] = set()
    token = None
    while True:
        page = client.search_runs([experiment_id], "", ViewType.ALL, _PAGE, page_token=token)
        run_ids.update(run.info.run_id for run in page)
        token = page.token
        if not token:
            return run_ids


def log(
    client: Any, run_id: str, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
) -> None:
    """Write parameters and tags in as many batches as MLflow's limits ask for; long values are cut."""
    from mlflow.entities import Param, RunTag

    all_params = [Param(entity_name(key), _cut(value, _PARAM_LENGTH)) for key, value in (params or {}).items()]
    all_tags = [RunTag(entity_name(key), _cut(value, _TAG_LENGTH)) for key, value in (tags or {}).items()]

    for start in range(0, max(len(all_params), len(all_tags)), _PER_BATCH):
        batch = slice(start, start + _PER_BATCH)
        client.log_batch(run_id, params=all_params[batch], tags=all_tags[batch])


def log_outcome(client: Any, run_id: str, manifest: Manifest, model_id: str | None) -> None:
    """Final metrics (prefix `result/`) and what was made, on the run and on the model."""
    finished = int((manifest.started_at + manifest.seconds) * 1000)
    _log_metrics(client, run_id, "result/", manifest.metrics, finished, model_id)
    log(client, run_id, tags=version_tags(manifest))
    client.update_run(run_id, name=run_name(manifest))


def log_inputs(client: Any, run_id: str, manifest: Manifest, store: Store) -> None:
    """The versions a run read: datasets by content digest, and the LoggedModels among them."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

    datasets, models = [], []
    for name, used in manifest.inputs.items():
        uri = store.uri(used.asset, used.version)
        source_type = urlsplit(uri).scheme or "local"
        tags = {"mlflow.data.context": name, OUTPUT_DIGEST: used.digest, VERSION: used.version}
        datasets.append(
            DatasetInput(
                Dataset(used.asset, used.digest[:DIGEST_LENGTH], source_type, json.dumps({"uri": uri})),
                [InputTag(key, value) for key, value in tags.items()],
            )
        )
        if model_id := store.links(used.asset, used.version).get("mlflow_model_id"):
            models.append(LoggedModelInput(model_id))

    if datasets:
        client.log_inputs(run_id, datasets, models)


def logged_model(client: Any, experiment_id: str, run_id: str, manifest: Manifest, folder: Path, store_uri: str) -> Any:
    """The LoggedModel of a run: an external one, which holds the manifest and the card but no weights and no pickle."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models.utils import get_external_mlflow_model_spec

    outputs = client.get_run(run_id).outputs
    if outputs is not None and outputs.model_outputs:
        return client.get_logged_model(outputs.model_outputs[0].model_id)

    # The output is written last: a model of this run without it was begun by a call that was cut short.
    tags = {**version_tags(manifest), STORE: store_uri, "mlflow.model.isExternal": "true"}
    begun = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    model = (
        begun[0]
        if begun
        else client.create_logged_model(experiment_id, manifest.asset, run_id, tags, model_type=manifest.stage)
    )

    with tempfile.TemporaryDirectory() as scratch:
        get_external_mlflow_model_spec(model).save(str(Path(scratch) / "MLmodel"))
        (Path(scratch) / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
        (Path(scratch) / "README.md").write_text(card(folder))
        client.log_model_artifacts(model.model_id, scratch)

    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def register(client: Any, name: str, run_id: str, model: Any, manifest: Manifest, folder: Path, store_uri: str) -> str:
    """The registered version of a run's model; it becomes `candidate` unless a newer one is.

    Returns:
        MLflow's version number.
    """
    registered = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'", max_results=1)
    if registered:
        return str(registered[0].version)

    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        about = f"{manifest.asset} of recipe {manifest.recipe}; `{CHAMPION}` passed its gates"
        client.create_registered_model(name, {ASSET: manifest.asset, RECIPE: manifest.recipe}, about)

    tags = {**version_tags(manifest), STORE: store_uri, "model_id": model.model_id}
    created = client.create_model_version(
        name,
        model.artifact_location,
        run_id=run_id,
        tags=tags,
        description=card(folder),
        await_creation_for=None,
        model_id=model.model_id,
    )

    # Versions may be recorded late and out of order: an older one does not take the alias from a newer one.
    newest = client.get_registered_model(name).aliases.get(CANDIDATE)
    if newest is None or client.get_model_version(name, newest).tags.get(VERSION, "") <= manifest.version:
        client.set_registered_model_alias(name, CANDIDATE, created.version)
    return str(created.version)


def describe(client: Any, name: str, version: str, text: str) -> None:
    """Set a model version's description: the card with the table of gates. A long card is cut, not the table."""
    card_part, mark, gates = text.rpartition(f"\n{GATES_HEADING}\n")
    room = max(1, _TAG_LENGTH - len(mark) - len(gates))
    client.update_model_version(name, version, _cut(_cut(card_part, room) + mark + gates, _TAG_LENGTH))


def point_champion(client: Any, name: str, version: str, deserved: bool) -> None:
    """Move the alias `champion` to a version, or take it away from that version."""
    holder = client.get_registered_model(name).aliases.get(CHAMPION)
    if deserved and str(holder) != version:
        client.set_registered_model_alias(name, CHAMPION, version)
    elif not deserved and str(holder) == version:
        client.delete_registered_model_alias(name, CHAMPION)


def log_evaluation(
    client: Any, run_id: str, model_id: str | None, certificate: Certificate, folder: Path | None
) -> None:
    """Measured values (prefix `eval/`), the table of gates, and the evaluation's report."""
    values = {verdict.name: verdict.value for verdict in certificate.verdicts if verdict.value is not None}
    if folder is not None:
        report = folder / REPORT_FILE
        values = EvaluationReport.model_validate_json(report.read_bytes()).metrics | values
        client.log_artifact(run_id, str(report), "evaluation")
        if (folder / REPORT).is_dir():
            client.log_artifacts(run_id, str(folder / REPORT), "evaluation")

    _log_metrics(client, run_id, "eval/", values, int(certificate.issued_at * 1000), model_id)
    client.log_dict(run_id, _gate_table(certificate), "gates.json")


def card(folder: Path) -> str:
    """The version's card, for MLflow's pages."""
    for path in (folder / REPORT / "card.md", folder / "model" / "README.md"):
        if path.is_file():
            return _cut(path.read_text(encoding="utf-8"), _TAG_LENGTH)
    return ""


def _log_metrics(
    client: Any, run_id: str, prefix: str, values: Mapping[str, float], timestamp: int, model_id: str | None
) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(entity_name(prefix + name), float(value), timestamp, 0, model_id=model_id)
        for name, value in values.items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _gate_table(certificate: Certificate) -> dict[str, Any]:
    """The gates in the layout of MLflow's table view."""
    rows = [
        [
            verdict.name,
            verdict.value,
            interval_text(verdict),
            verdict.method,
            verdict.count,
            verdict.must_be,
            verdict.threshold,
            verdict.champion.value if verdict.champion else None,
            STATES[gate_state(certificate, verdict)],
            verdict.reason,
        ]
        for verdict in certificate.verdicts
    ]

    return {"columns": _GATE_COLUMNS.split(","), "data": rows}


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else value[: length - 1] + "…"
