"""Building and judging one asset: the part of the graph's work that does not depend on Dagster."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.addresses import live_curve_url
from pipeline.building.code_change import changed_functions, describe_code_change
from pipeline.building.planner import Plan, plan_asset, plan_evaluation
from pipeline.building.recipe_check import check_recipe
from pipeline.gates.evidence_reader import read_evidence
from pipeline.gates.judge import certify
from pipeline.gates.promotion import settle
from pipeline.gates.report.page import write_report
from pipeline.gates.terms import terms
from pipeline.graph import kind_named
from pipeline.jobs import progress
from pipeline.jobs.launcher import Launcher, Listener, run_job
from pipeline.jobs.locks import building
from pipeline.recipes.loader import LoadedRecipe
from pipeline.tracking.delivery import begin, deliver_pending, note_published, resolve
from pipeline.tracking.outbox import is_record, open_record, records_of
from pipeline.tracking.promotions import agree_with_mlflow, record_judgement, requeue_judgement
from pipeline.tracking.tracker import Tracker
from training.errors import StoreError
from training.specs.artifacts import OVERRIDES, Certificate, Manifest
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store, utc_today
from training.store.validity import Terms, changed_since

LAST = "last_materialization"
_BASE = "base_model"
_BUDGET_AT_A_FAILURE = 5.0
_KEPT_OF_AN_ATTEMPT = {"job.json", "events.jsonl", "output.log", "result.json", "checkpoints"}


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
        still_wanted: Called while a job runs. It raises when the job is to end.
    """

    loaded: LoadedRecipe
    store: Store
    launcher: Launcher
    tracker: Tracker
    work: Path
    owner: str
    labels: dict[str, str]
    still_wanted: Callable[[], None] = lambda: None

    def build(self, asset: str, on_events: Listener, force: bool = False) -> tuple[Manifest, bool]:
        """Materialize an asset: reuse the version with its identity, or run its job.

        Args:
            on_events: Gets the job's events, as the registered displays do.
            force: Run the job even when there is a version with its identity.

        Returns:
            The version, and whether it was reused.

        Raises:
            UserError: An input is not promoted, another run builds the asset, or the job refused.
            JobFailed: The job failed.
        """
        plan = plan_asset(asset, self.loaded, self.store)
        # Without that link its builder is still delivering its record to MLflow, or was killed before it could.
        if plan.existing and not force and LAST in self.store.links(asset, plan.existing.version):
            return self._reuse(plan.existing, on_events), True

        with building(self.work, plan.recipe, asset, self.owner):
            # Another process may have built it while this one waited for the lock.
            if not force and (finished := self.store.find(asset, plan.identity)):
                return self._reuse(finished, on_events), True

            if plan.same_but_code and not force:
                self._name_the_cheap_way(plan.same_but_code, on_events)
            progress.show(asset, [{"kind": "phase", "name": "check the recipe"}])
            check_recipe(self.loaded, self.launcher.entry)

            self.tracker.warm()  # importing MLflow takes two seconds, which the start of the job hides
            tracked = _Tracked(self, plan.attempt(self.work))
            try:
                manifest = self._run(plan, on_events, tracked.live_curve)
            except BaseException as error:
                with suppress(OSError):  # on a full disk the job's own message is the one to show
                    tracked.failed(error)
                    deliver_pending(self.work, self.store, self.tracker, _BUDGET_AT_A_FAILURE)
                raise

            tracked.published(manifest)
            _clean(plan.attempt(self.work))
            links = {name: value for name, value in self.labels.items() if name != OVERRIDES}
            self.store.write_links(asset, manifest.version, links | {LAST: "built"})
            deliver_pending(self.work, self.store, self.tracker)
            _announce(asset, "built", manifest.version)
            return manifest, False

    def measure(self, manifest: Manifest, on_events: Listener) -> Judgement:
        """What the gates say of a version that was just built or reused; nothing is promoted.

        The page of a materialization cannot be changed afterwards, so the version is measured before the page is shown.
        The gates then use the same evidence. A version that was judged on today's terms is not judged again.

        Raises:
            UserError: The evaluation refused, or its evidence was edited.
            JobFailed: The evaluation failed.
        """
        asset, version = manifest.asset, manifest.version
        certificate, pointer = self.store.certificate(asset, version), self.store.promotion(asset)
        if certificate is None or self._changed_since(manifest, certificate):
            current, is_past_version = self._current(asset)
            is_past_version = is_past_version or current.version != manifest.version
            return self.examine(manifest, on_events, is_past_version=is_past_version, promote=False)

        evaluation = self.store.manifest(asset + EVALUATION_SUFFIX, certificate.evaluation_version)
        promoted = pointer is not None and pointer.version == version
        return Judgement(manifest, evaluation, certificate, promoted)

    def judge(self, asset: str, on_events: Listener) -> Judgement:
        """Measure the asset's current version, once per version and suite, judge it, and promote or refuse it.

        Raises:
            StoreError: There is no version to judge.
            UserError: The evaluation refused, or its evidence was edited.
            JobFailed: The evaluation failed.
        """
        manifest, is_past_version = self._current(asset)
        judged = self.examine(manifest, on_events, is_past_version=is_past_version)
        self._renew_promoted(asset, manifest, on_events)

        if not record_judgement(manifest, self.store, self.tracker):
            requeue_judgement(manifest, self.store)
        agree_with_mlflow(asset, self.store, self.tracker)

        _announce(asset, "promoted" if judged.promoted else "refused", manifest.version)
        return judged

    def examine(
        self, manifest: Manifest, on_events: Listener, *, is_past_version: bool, promote: bool = True
    ) -> Judgement:
        """Judge one version on today's terms, from existing evidence or from an evaluation that runs now.

        Args:
            is_past_version: The recipe asks for another version now. This one is measured beside the versions that it
                was made from, and compared with the champion that it was compared with before.
            promote: Promote it if its gates let it pass. A promoted version is settled in any case.

        Raises:
            UserError: The evaluation refused, or its evidence was edited.
            JobFailed: The evaluation failed.
        """
        asset = manifest.asset
        plan = plan_evaluation(manifest, self.loaded, self.store, is_past_version=is_past_version)
        evaluation = self._evaluate(plan, on_events)
        champion = self._champion(manifest, is_past_version, on_events)

        waivers = [
            waiver
            for waiver in self.store.waivers(asset, manifest.version)
            if (waiver.asset, waiver.version) == (asset, manifest.version) and waiver.holds(utc_today())
        ]
        today = terms(asset, self.loaded, self.store)
        earlier = self.store.certificate(asset, manifest.version)
        certificate = certify(
            manifest,
            evaluation,
            self.loaded.recipe.gates_of(asset),
            self.store,
            today,
            self.owner,
            champion,
            waivers,
            self.store.inherited_waivers(manifest),
        )

        if certificate != earlier or not self.store.gate_report(asset, manifest.version):
            self._report(certificate, manifest, evaluation, champion, today)

        pointer = self.store.promotion(asset)
        is_promoted = pointer is not None and pointer.version == manifest.version
        promoted = settle(certificate, self.store, self.owner) if promote or is_promoted else False
        return Judgement(manifest, evaluation, certificate, promoted)

    def _evaluate(self, plan: Plan, on_events: Listener) -> Manifest:
        """The evaluation of a plan: the existing one, or the one that its job makes now."""
        if plan.existing:
            return plan.existing

        with building(self.work, plan.recipe, plan.asset, self.owner):
            if finished := self.store.find(plan.asset, plan.identity):
                return finished
            manifest = self._run(plan, on_events)
            _clean(plan.attempt(self.work))
            return manifest

    def _champion(
        self, manifest: Manifest, is_past_version: bool, on_events: Listener
    ) -> tuple[Manifest, Manifest] | None:
        """The version to compare with, and its evaluation.

        That is the promoted version. Where none is promoted, where this one is, and where this one is a past version,
        it is its champion of before: else, judged again, it would be compared with itself or with nothing, and what was
        refused would pass. What was never compared is compared with the imported model that it comes from: what that
        could do must not be lost.
        """
        if all(gate.champion_margin is None for gate in self.loaded.recipe.gates_of(manifest.asset)):
            return None

        pointer = self.store.promotion(manifest.asset)
        earlier = self.store.certificate(manifest.asset, manifest.version)
        compared = earlier.compared_with if earlier else None
        if not is_past_version and pointer is not None and pointer.version != manifest.version:
            compared = pointer.asset, pointer.version
        compared = compared or self._imported(manifest.asset)
        if compared is None or compared[1] not in self.store.versions(compared[0]):
            return None

        champion = self.store.manifest(*compared)
        plan = plan_evaluation(champion, self.loaded, self.store, is_past_version=True)
        return champion, self._evaluate(plan, on_events)

    def _imported(self, asset: str) -> tuple[str, str] | None:
        """The promoted version of the imported model that a model comes from; None where none was imported."""
        model = self.loaded.recipe.base_model
        if model.from_ is None or asset == _BASE or not self.loaded.graph[asset].kind.is_model:
            return None
        pointer = self.store.promotion(_BASE)
        return None if pointer is None else (pointer.asset, pointer.version)

    def _report(
        self,
        certificate: Certificate,
        manifest: Manifest,
        evaluation: Manifest,
        champion: tuple[Manifest, Manifest] | None,
        terms_judged_on: Terms,
    ) -> None:
        page, card = write_report(
            certificate,
            read_evidence(manifest, evaluation, terms_judged_on, self.store),
            read_evidence(*champion, terms_judged_on, self.store) if champion else None,
            self.loaded.recipe.gates_of(manifest.asset),
            self.loaded.recipe.metrics(manifest.asset),
            self.store,
        )
        self.store.write_gate_report(manifest.asset, manifest.version, page, card)

    def _renew_promoted(self, asset: str, judged: Manifest, on_events: Listener) -> None:
        """Judge the promoted version on today's terms too, where it is another one, because downstream reads it."""
        pointer = self.store.promotion(asset)
        if pointer is None or pointer.version == judged.version:
            return
        if pointer.version not in self.store.versions(asset):  # deleted by hand
            self.store.withdraw(asset)
            return

        certificate = self.store.certificate(asset, pointer.version)
        manifest = self.store.manifest(asset, pointer.version)
        followed = certificate is not None and certificate.digest == pointer.certificate_digest
        if certificate is None or not followed or self._changed_since(manifest, certificate):
            self.examine(manifest, on_events, is_past_version=True)

    def _changed_since(self, manifest: Manifest, certificate: Certificate) -> str:
        """What changed since a version was judged (`training.store.validity`)."""
        on = terms(manifest.asset, self.loaded, self.store)
        return changed_since(self.store, manifest, certificate, utc_today(), on)

    def _stand_in(self, manifest: Manifest) -> tuple[Manifest, str]:
        """The version itself; where a person holds it back, the promoted one in its place and why."""
        hold, pointer = self.store.hold(manifest.asset, manifest.version), self.store.promotion(manifest.asset)
        if hold is None or pointer is None or pointer.version == manifest.version:
            return manifest, ""

        return self.store.manifest(manifest.asset, pointer.version), (
            f"{manifest.asset} {manifest.version} is held back by {hold.author} ({hold.reason}); {pointer.version} "
            f"stays promoted until `gatehouse promote -r {self.store.named} {manifest.asset} {manifest.version}`"
        )

    def _reuse(self, existing: Manifest, on_events: Listener) -> Manifest:
        manifest, held_back = self._stand_in(existing)
        if held_back:
            events = [{"kind": "log", "level": "warning", "message": held_back}]
            progress.show(manifest.asset, events)
            on_events(events)

        if self.store.links(manifest.asset, manifest.version).get(LAST) != "reused":
            self.store.write_links(manifest.asset, manifest.version, {LAST: "reused"})
        deliver_pending(self.work, self.store, self.tracker)
        _announce(manifest.asset, "reused", manifest.version)
        return manifest

    def _name_the_cheap_way(self, manifest: Manifest, on_events: Listener) -> None:
        """Say that an adoption would do, before what only other code sets apart is made anew."""
        change = describe_code_change(manifest, changed_functions(manifest, self.store), self.store)
        message = f"{manifest.asset} {manifest.version} is made anew: {change}"
        events = [{"kind": "log", "level": "warning", "message": message}]
        progress.show(manifest.asset, events)
        on_events(events)

    def _current(self, asset: str) -> tuple[Manifest, bool]:
        """The version to judge, and whether another one than the recipe asks for stands in for it."""
        plan = plan_asset(asset, self.loaded, self.store)
        if plan.existing:
            current, held_back = self._stand_in(plan.existing)
            return current, bool(held_back)

        latest = self.store.latest(asset)
        if latest is None:
            raise StoreError(f"{asset} has no version to judge; materialize it first")
        return latest, False

    def _run(self, plan: Plan, on_events: Listener, links: Callable[[], list[dict[str, Any]]] = list) -> Manifest:
        """Run a plan's job to its end; return the version that it published.

        Args:
            links: Asked with every batch of events for more of them.
        """
        job = plan.job(self.store, self.work, self.launcher.entry.execution(plan.asset), self.labels)
        before = set(self.store.versions(plan.asset))

        def listen(events: list[dict[str, Any]]) -> None:
            events = [*events, *links()]
            progress.show(plan.asset, events)
            on_events(events)

        forward_output = not progress.is_displayed()
        run_job(self.launcher, job, listen, forward_output=forward_output, raise_if_cancelled=self.still_wanted)

        # The result is what is in the store: a job that only says that it published is not believed.
        manifest = self.store.find(plan.asset, plan.identity)
        if manifest is None or manifest.version in before:
            raise StoreError(
                f"the job of {plan.asset} ended well, but its version is not in the store {self.store.root}"
            )
        return manifest


class _Tracked:
    """One build's record of what MLflow has still to be told, and the thread that tells it while the job works."""

    def __init__(self, builder: Builder, attempt: Path) -> None:
        self._store = builder.store
        self._tracker = builder.tracker
        self._curve_shown = not kind_named(attempt.parent.name).uses_gpu  # nothing else has a curve to look at
        for record in records_of(attempt):
            resolve(record, builder.store)
        self._record = open_record(attempt)
        self._follower = builder.tracker.follower(self._record, lambda: begin(self._record, builder.tracker))

    def live_curve(self) -> list[dict[str, Any]]:
        """An event with the address of a training's curves, once, as soon as MLflow has its run."""
        run_id = self._record.build.run_id
        if self._curve_shown or not run_id:
            return []
        self._curve_shown = True
        page = self._tracker.url(run_id)
        return [{"kind": "link", "name": "live curve", "url": live_curve_url(page)}] if page else []

    def published(self, manifest: Manifest) -> None:
        self._follower.close()
        note_published(self._record, manifest, self._store)

    def failed(self, error: BaseException) -> None:
        self._follower.close()
        if isinstance(error, StoreError):  # it may be published all the same; the next delivery looks
            return
        self._record.change(
            outcome="failed" if isinstance(error, Exception) else "killed", error=str(error) or type(error).__name__
        )


def _announce(asset: str, state: str, version: str) -> None:
    progress.show(asset, [{"kind": "state", "state": state, "version": version}])


def _clean(attempt: Path) -> None:
    """Remove what a published build has no use for; nobody writes there any more."""
    for path in attempt.iterdir():
        if path.name not in _KEPT_OF_AN_ATTEMPT and not is_record(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
