"""Metrics, lineage and the model registry, kept in MLflow. Nothing here is needed for a run to succeed.

How a version is shown: one MLflow run per job, in the experiment of the recipe. Its dataset inputs are the versions it
was made from, by content digest; the tag `digest` names what it made. A model is also a LoggedModel
(output of its run, input of its child's) and a version of a registered model: alias `candidate` is the newest,
`champion` the promoted one. The weights stay in the store; no pickle is written.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.addresses import TRAINING_VIEW, run_url
from pipeline.tracking import records, run_pages
from pipeline.tracking.connection import PATIENCE, Connection, logger
from pipeline.tracking.metrics_follower import MetricsFollower, deliver
from pipeline.tracking.outbox import OutboxRecord
from training.specs.artifacts import REPORT, Certificate, Manifest
from training.store.store import MANIFEST, Store

_NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""


class InputLike(Protocol):
    """What a run shows of an input."""

    @property
    def asset(self) -> str:
        """Name of the asset."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def digest(self) -> str:
        """Its content digest."""


class BuildLike(Protocol):
    """What a run shows of what it made or is to make: a job, or a manifest."""

    @property
    def asset(self) -> str:
        """Name of the asset."""

    @property
    def recipe(self) -> str:
        """Name of the recipe."""

    @property
    def identity(self) -> str:
        """Its identity."""

    @property
    def section(self) -> Mapping[str, Any]:
        """The recipe's section."""

    @property
    def seed(self) -> int:
        """The recipe's seed."""

    @property
    def inputs(self) -> Mapping[str, InputLike]:
        """What it is made from."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Among them the Dagster run's id."""


class Tracker:
    """One recipe's experiment.

    No method raises because tracking is down: it logs a warning and returns None (or an empty value) within seconds.
    Every method takes the None that `begin` then returned. All of them may be repeated.

    Args:
        uri: `sqlite:///<file>`, another database's URL, or the URL of an MLflow server.
        experiment: Name of the recipe.
        dagster_url: Address of Dagster's page, for links.
        mlflow_url: Address of MLflow's page, for links.
        patience: Seconds after which one step is given up on a slow server.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        dagster_url: str | None = None,
        mlflow_url: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.experiment = experiment
        self._connection = Connection(uri, patience)
        self._dagster_url = dagster_url.rstrip("/") if dagster_url else None
        self._mlflow_url = mlflow_url.rstrip("/") if mlflow_url else None
        self._experiment_id: str | None = None

    def warm(self) -> None:
        """Import MLflow and open the store in the background: two seconds that a job's start can hide."""
        threading.Thread(
            target=self._connection.attempt,
            args=("open the store", lambda client: client, None),
            name="gatehouse-tracker",
            daemon=True,
        ).start()

    def begin(self, key: str, build: BuildLike, existing: str = "", started: float | None = None) -> str | None:
        """The MLflow run of a build: the one that is named, or that carries its key, else a new one.

        Args:
            existing: The run of this build, if it was begun before. It is shown as running again.
            started: When the build began, in seconds since the epoch; now by default.

        Returns:
            The run id, or None when tracking is down.
        """
        params = {"seed": str(build.seed), **records.flat(build.section)}
        tags = {
            run_pages.ASSET: build.asset,
            run_pages.RECIPE: build.recipe,
            run_pages.IDENTITY: build.identity,
            run_pages.KEY: key,
            "mlflow.source.name": "gatehouse",
        }
        if dagster_run := build.labels.get("dagster_run_id"):
            tags[run_pages.DAGSTER_RUN] = dagster_run

        def call(client: Any) -> str:
            experiment_id = self._experiment(client)
            # By its key: the answer to an earlier request may have been lost after MLflow had made the run.
            run_id = existing or records.run_of(client, experiment_id, key)
            missing = params
            if run_id:
                records.restore(client, run_id)
                client.update_run(run_id, "RUNNING")
                run = client.get_run(run_id)
                # MLflow refuses to change a parameter.
                missing = {name: value for name, value in params.items() if name not in run.data.params}
                if run_pages.ERROR in run.data.tags:
                    client.delete_tag(run_id, run_pages.ERROR)
            else:
                start = int(1000 * (started or time.time()))
                run_id = str(client.create_run(experiment_id, start, tags, build.asset).info.run_id)

            records.log(client, run_id, params=missing, tags=tags)
            return run_id

        return self._connection.attempt(f"begin the run of {build.asset}", call, None)

    def follower(self, record: OutboxRecord, begin: Callable[[], bool], interval: float = 2.0) -> MetricsFollower:
        """Carries a build's events to its run, in the background."""
        return MetricsFollower(self._connection, record, begin, interval)

    def deliver(self, record: OutboxRecord, stop: Callable[[], bool] = lambda: False) -> bool:
        """Send a build's run the points that it lacks, until `stop`; return whether it has them all."""
        return deliver(self._connection, record, stop)

    def runs(self) -> set[str] | None:
        """Ids of the experiment's runs, deleted ones too; None when tracking is down."""
        return self._connection.attempt(
            "list its runs", lambda client: records.all_runs(client, self._experiment(client)), None
        )

    def model_versions(self, asset: str) -> set[str] | None:
        """MLflow's numbers of the versions of a registered model; None when tracking is down."""
        name = records.model_name(self.experiment, asset)

        def call(client: Any) -> set[str]:
            versions = client.search_model_versions(f"name = '{name}'", max_results=10000)
            return {str(version.version) for version in versions}

        return self._connection.attempt(f"list the versions of {name}", call, None)

    def publish(self, run_id: str | None, manifest: Manifest, folder: Path, store: Store) -> dict[str, str]:
        """Record a published version: final metrics, report, inputs by digest, and for models the registry.

        Args:
            run_id: From `begin`; None takes the run that shows this version, or makes one from the manifest.
            folder: The version's files. Only its report and its manifest are copied.
            store: Holds the inputs; their MLflow models are found through its links.

        Returns:
            What to write with `store.write_links`: `mlflow_run_id`, `mlflow_url` and, for models, `mlflow_model_id`,
            `mlflow_model_version`, `mlflow_model_url`. Empty when tracking is down.
        """
        if run_id is None:
            run_id = self.begin(manifest.version, manifest, self._run_of(manifest), manifest.started_at)
        if run_id is None:
            return {}
        target = run_id  # mypy does not narrow a variable in a function below

        def call(client: Any) -> dict[str, str]:
            links = {"mlflow_run_id": target}
            if records.is_model(manifest.asset):
                links |= self._register(client, target, manifest, folder, store)

            records.log_outcome(client, target, manifest, links.get("mlflow_model_id"))
            records.log_inputs(client, target, manifest, store)
            if (folder / REPORT).is_dir():
                client.log_artifacts(target, str(folder / REPORT), "report")
            client.log_artifact(target, str(folder / MANIFEST))
            records.log(client, target, tags={_NOTE: self._origin(manifest, store)})
            return links

        nothing: dict[str, str] = {}
        links = self._connection.attempt(f"record {manifest.asset} {manifest.version}", call, nothing)
        if links and (page := self.url(run_id)):
            links["mlflow_url"] = page
        return links

    def judged(
        self,
        manifest: Manifest,
        links: Mapping[str, str],
        certificate: Certificate,
        evaluation_folder: Path | None,
        promoted: bool,
        store: Store,
        pages: tuple[str, str] | None = None,
    ) -> bool:
        """Record a judgement on the version's run and in the registry, and move or remove the alias `champion`.

        Args:
            store: For the links to what the version was made from.
            pages: The judgement's page, kept with the run, and the card with the table of gates, which describes the
                model's version.

        Returns:
            True when all of it was recorded.
        """
        run_id = links.get("mlflow_run_id")
        if run_id is None:
            return False

        tags = run_pages.verdict_tags(certificate, promoted)
        note = run_pages.description(certificate, promoted, evaluation_folder, self._origin(manifest, store))
        name = run_pages.run_name(manifest, tags[run_pages.VERDICT])

        def call(client: Any) -> bool:
            records.restore(client, run_id)
            records.log_evaluation(client, run_id, links.get("mlflow_model_id"), certificate, evaluation_folder)
            if pages is not None:
                client.log_text(run_id, pages[0], "gates.html")

            # By this tag MLflow shows gates.json as a table on the run's page.
            table = json.dumps([{"path": "gates.json", "type": "table"}])
            records.log(client, run_id, tags=tags | {"mlflow.loggedArtifacts": table, _NOTE: note})
            if run_pages.WAIVERS not in tags and run_pages.WAIVERS in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, run_pages.WAIVERS)
            client.update_run(run_id, name=name)

            version = links.get("mlflow_model_version")
            if version is not None:
                model = records.model_name(self.experiment, manifest.asset)
                for key, value in {run_pages.WAIVERS: "none", **tags}.items():
                    client.set_model_version_tag(model, version, key, value)
                if pages is not None:
                    records.describe(client, model, version, pages[1])
                records.point_champion(client, model, version, certificate.passed and promoted)

            return True

        return self._connection.attempt(f"record the gates of {manifest.asset} {manifest.version}", call, False)

    def finish(self, run_id: str | None, ended: float | None = None) -> bool:
        """Mark a run as finished; return whether it is.

        Args:
            ended: When its job did, in seconds since the epoch; now by default.
        """
        return self._terminate(run_id, "FINISHED", {}, ended)

    def fail(self, run_id: str | None, message: str, killed: bool = False) -> bool:
        """Mark a run as failed, or killed, with the reason as a tag; return whether it is."""
        return self._terminate(run_id, "KILLED" if killed else "FAILED", {run_pages.ERROR: message})

    def url(self, run_id: str | None) -> str | None:
        """Address of a run's page."""
        if run_id is None or self._mlflow_url is None:
            return None
        experiment_id = self._connection.attempt("find its experiment", self._experiment, None)
        return experiment_id and run_url(self._mlflow_url, experiment_id, run_id)

    def model_url(self, asset: str, version: str) -> str | None:
        """Address of the page of a registered model's version (MLflow's number)."""
        if self._mlflow_url is None:
            return None
        name = records.model_name(self.experiment, asset)
        return f"{self._mlflow_url}/#/models/{name}/versions/{version}{TRAINING_VIEW}"

    # Parts

    def _experiment(self, client: Any) -> str:
        if self._experiment_id is None:
            from mlflow.exceptions import MlflowException

            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                logger.warning(
                    "the experiment %s was deleted in MLflow, and what it shows is still there: it is restored",
                    self.experiment,
                )
                client.restore_experiment(experiment.experiment_id)

            if experiment is None:
                try:
                    self._experiment_id = client.create_experiment(self.experiment, self._connection.artifact_location)
                except MlflowException:  # another process created it in between
                    experiment = client.get_experiment_by_name(self.experiment)
                    if experiment is None:
                        raise
            if experiment is not None:
                self._experiment_id = experiment.experiment_id

        assert self._experiment_id is not None
        return self._experiment_id

    def _origin(self, manifest: Manifest, store: Store) -> str:
        return run_pages.origin(manifest, store, self._dagster_url)

    def _run_of(self, manifest: Manifest) -> str:
        """The run that shows a version already, empty when there is none or MLflow does not say."""
        return self._connection.attempt(
            f"find the run of {manifest.asset} {manifest.version}",
            lambda client: records.run_of_version(client, self._experiment(client), manifest),
            "",
        )

    def _register(self, client: Any, run_id: str, manifest: Manifest, folder: Path, store: Store) -> dict[str, str]:
        store_uri = store.uri(manifest.asset, manifest.version)
        model = records.logged_model(client, self._experiment(client), run_id, manifest, folder, store_uri)
        name = records.model_name(self.experiment, manifest.asset)
        version = records.register(client, name, run_id, model, manifest, folder, store_uri)
        links = {"mlflow_model_id": model.model_id, "mlflow_model_version": version}
        if page := self.model_url(manifest.asset, version):
            links["mlflow_model_url"] = page
        return links

    def _terminate(self, run_id: str | None, status: str, tags: dict[str, str], ended: float | None = None) -> bool:
        if run_id is None:
            return False

        def call(client: Any) -> bool:
            records.log(client, run_id, tags=tags)
            client.set_terminated(run_id, status, int(1000 * (ended or time.time())))
            return True

        return self._connection.attempt(f"mark run {run_id} as {status.lower()}", call, False)
