"""Building and judging one asset: the part of the graph's work that does not depend on Dagster."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import progress
from pipeline.checks.judge import certify, settle
from pipeline.locks import building
from pipeline.planner import Plan, plan_asset, plan_evaluation
from pipeline.recipe import LoadedRecipe
from pipeline.resources.launchers import Listener, LocalLauncher
from pipeline.resources.metrics_follower import MetricsFollower
from pipeline.resources.tracker import Tracker
from training.errors import StoreError
from training.specs.artifacts import Certificate, Manifest
from training.specs.execution import Launcher
from training.store import Store

LAST = "last_materialization"
_KEPT_OF_AN_ATTEMPT = {"job.json", "events.jsonl", "output.log", "result.json"}


@dataclass(frozen=True)
class Judgement:
    """What the gates said of one version."""

    manifest: Manifest
    evaluation: Manifest
    certificate: Certificate
    promoted: bool


@dataclass(frozen=True)
class Builder:
    """Builds and judges the assets of one recipe.

    Attributes:
        work: Folder of the attempts.
        owner: Who builds, for locks and certificates: `run <id>`.
        labels: Recorded in manifests, never hashed.
    """

    loaded: LoadedRecipe
    store: Store
    launcher: Launcher
    tracker: Tracker
    work: Path
    owner: str
    labels: dict[str, str]

    def build(self, asset: str, say: Listener, force: bool = False) -> tuple[Manifest, bool]:
        """Materialize an asset: reuse the version with its identity, or run its job.

        Args:
            say: Gets the job's events beside the registered displays.
            force: Run the job even when a version with its identity is there.

        Returns:
            The version, and whether it was reused.

        Raises:
            UserError: An input is not promoted, another run builds the asset, or the job refused.
            JobFailed: The job failed.
        """
        plan = plan_asset(asset, self.loaded, self.store)
        if plan.existing and not force:
            return self._reused(plan.existing), True
        with building(self.work, plan.recipe, asset, self.owner):
            if not force and (finished := self.store.find(asset, plan.identity)):
                return self._reused(finished), True
            self.tracker.warm()
            tracked = _Tracked(self.tracker, plan, self.labels.get("dagster_run_id"))
            try:
                manifest = self._run(plan, tracked.beside(say))
            except BaseException as error:
                tracked.fail(error)
                raise
            links = tracked.publish(manifest, self.store) | self.labels | {LAST: "built"}
            self.store.write_links(asset, manifest.version, links)
            _announce(asset, "built", manifest.version)
            return manifest, False

    def judge(self, asset: str, say: Listener) -> Judgement:
        """Measure the asset's current version, once per version and suite, judge it, and promote or refuse it.

        Raises:
            StoreError: There is no version to judge.
            UserError: The evaluation refused.
            JobFailed: The evaluation failed.
        """
        manifest = self._current(asset)
        plan = plan_evaluation(manifest, self.loaded, self.store)
        evaluation = plan.existing
        if evaluation is None:
            with building(self.work, plan.recipe, plan.asset, self.owner):
                evaluation = self.store.find(plan.asset, plan.identity) or self._run(plan, say)
        certificate = certify(manifest, evaluation, self.loaded.recipe.gates[asset], self.store, self.owner)
        promoted = settle(certificate, self.store, self.owner)
        self._track(manifest, evaluation, certificate, promoted)
        _announce(asset, "promoted" if promoted else "refused", manifest.version)
        return Judgement(manifest, evaluation, certificate, promoted)

    def _reused(self, manifest: Manifest) -> Manifest:
        if self.store.links(manifest.asset, manifest.version).get(LAST) != "reused":
            self.store.write_links(manifest.asset, manifest.version, {LAST: "reused"})
        _announce(manifest.asset, "reused", manifest.version)
        return manifest

    def _current(self, asset: str) -> Manifest:
        plan = plan_asset(asset, self.loaded, self.store)
        current = plan.existing or self.store.latest(asset)
        if current is None:
            raise StoreError(f"{asset} has no version to judge; materialize it first")
        return current

    def _run(self, plan: Plan, say: Listener) -> Manifest:
        job = plan.job(self.store, self.work, self.launcher.execution(plan.asset), self.labels)
        before = set(self.store.versions(plan.asset))

        def listen(events: list[dict[str, Any]]) -> None:
            progress.tell(plan.asset, events)
            say(events)

        LocalLauncher(self.launcher, forward_output=not progress.is_displayed()).launch(job, listen)
        manifest = self.store.find(plan.asset, plan.identity)
        if manifest is None or manifest.version in before:
            raise StoreError(f"the job of {plan.asset} ended well, but its version is not in the store "
                             f"{self.store.root}")
        _clean(Path(job.attempt))
        return manifest

    def _track(self, manifest: Manifest, evaluation: Manifest, certificate: Certificate, promoted: bool) -> None:
        links = self.store.links(manifest.asset, manifest.version)
        state = f"{certificate.digest}:{promoted}"
        if links.get("tracked_judgement") == state:
            return
        if "mlflow_run_id" not in links:  # tracking was down when the version was built
            late = self.tracker.publish(None, manifest, self.store.folder(manifest.asset, manifest.version), self.store)
            self.tracker.finish(late.get("mlflow_run_id"))
            links |= late
            self.store.write_links(manifest.asset, manifest.version, late)
        folder = self.store.folder(evaluation.asset, evaluation.version)
        if self.tracker.judged(manifest, links, certificate, folder, promoted):
            self.store.write_links(manifest.asset, manifest.version, {"tracked_judgement": state})


class _Tracked:
    """One build's MLflow run: begun when the job first speaks, so that the job never waits for it."""

    def __init__(self, tracker: Tracker, plan: Plan, dagster_run_id: str | None) -> None:
        self._tracker = tracker
        self._plan = plan
        self._dagster_run_id = dagster_run_id
        self._run_id: str | None = None
        self._follower: MetricsFollower | None = None

    def beside(self, say: Listener) -> Listener:
        """A listener that tracks the events and passes them on."""

        def listen(events: list[dict[str, Any]]) -> None:
            self._add(events)
            say(events)

        return listen

    def _add(self, events: list[dict[str, Any]]) -> None:
        if self._follower is None:
            plan = self._plan
            self._run_id = self._tracker.begin(plan.asset, plan.recipe, plan.identity, plan.section, plan.seed,
                                               plan.inputs, self._dagster_run_id)
            self._follower = self._tracker.follower(self._run_id)
        self._follower.add(events)

    def publish(self, manifest: Manifest, store: Store) -> dict[str, str]:
        if self._follower is not None:
            self._follower.close()
        links = self._tracker.publish(self._run_id, manifest, store.folder(manifest.asset, manifest.version), store)
        self._tracker.finish(self._run_id)
        return links

    def fail(self, error: BaseException) -> None:
        if self._follower is not None:
            self._follower.close()
        self._tracker.fail(self._run_id, str(error) or type(error).__name__, killed=not isinstance(error, Exception))


def _announce(asset: str, state: str, version: str) -> None:
    progress.tell(asset, [{"kind": "state", "state": state, "version": version}])


def _clean(attempt: Path) -> None:
    for path in attempt.iterdir():
        if path.name not in _KEPT_OF_AN_ATTEMPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
