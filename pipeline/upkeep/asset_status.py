"""The state of every asset: what is promoted, what is newest, and whether it is what the recipe asks for today."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipeline.building.builder import LAST
from pipeline.building.planner import Plan, plan_asset, promoted_input
from pipeline.graph import GRAPH
from pipeline.recipes.loader import LoadedRecipe
from training.errors import StoreError, UserError
from training.specs.artifacts import Certificate, Manifest
from training.store.store import Store, utc_today
from training.store.validity import why_invalid


@dataclass(frozen=True)
class AssetStatus:
    """One asset, as `gatehouse status` shows it.

    Attributes:
        shown: The version that the pointer names, or the newest one when there is no pointer; None when nothing was
            built or nothing can be read.
        promoted: Whether the next stage's job would accept it (`training.store.validity`).
        fresh: True when the promoted version is what materializing would give now, and the next stage may use it.
        why: Why it is not fresh; empty when it is.
    """

    asset: str
    shown: Manifest | None
    latest: Manifest | None
    promoted: bool
    fresh: bool
    why: str
    certificate: Certificate | None
    links: dict[str, str]
    path: str

    def headline(self) -> str:
        """The measured metric that sums the asset up, with its value."""
        return headline(self.shown, self.certificate) if self.shown else ""

    def as_json(self) -> dict[str, Any]:
        """The object that `gatehouse status --json` lists."""
        shown = self.shown
        verdicts = self.certificate.verdicts if self.certificate else ()
        gates = [
            {
                "name": verdict.name,
                "passed": verdict.passed,
                "value": verdict.value,
                "must_be": verdict.must_be,
                "threshold": verdict.threshold,
            }
            for verdict in verdicts
        ]

        return {
            "asset": self.asset,
            "version": shown.version if shown else None,
            "latest": self.latest.version if self.latest else None,
            "digest": shown.digest if shown else None,
            "identity": shown.identity if shown else None,
            "promoted": self.promoted,
            "reused": self.links.get(LAST) == "reused",
            "fresh": self.fresh,
            "why": self.why,
            "inputs": {name: record.digest for name, record in shown.inputs.items()} if shown else {},
            "gates": gates,
            "metrics": shown.metrics if shown else {},
            "mlflow_run_id": self.links.get("mlflow_run_id"),
            "bytes": shown.bytes if shown else 0,
            "age_seconds": time.time() - shown.started_at - shown.seconds if shown else None,
            "path": self.path,
        }


def headline(manifest: Manifest, certificate: Certificate | None) -> str:
    """The metric that sums a version up, with its value: as measured, or the builder's own count before that."""
    metric = GRAPH[manifest.asset].headline
    measured = {verdict.name: verdict.value for verdict in certificate.verdicts} if certificate else {}
    value = measured.get(metric)
    if value is None:
        value = manifest.metrics.get(metric)

    if value is None:
        return ""
    return f"{metric} {value:,.5g}" if abs(value) < 1e4 else f"{metric} {value:,.0f}"


def survey(loaded: LoadedRecipe, store: Store) -> list[AssetStatus]:
    """The status of every asset, in the order of the graph. What cannot be read of one is said in its own row.

    Raises:
        StoreError: Nothing can be read of any of them.
    """
    statuses: dict[str, AssetStatus] = {}
    errors = []
    for asset in GRAPH:
        try:
            statuses[asset] = _status(asset, loaded, store, statuses)
        except StoreError as error:
            errors.append(error)
            statuses[asset] = _without_version(asset, str(error))

    # One damaged record is its asset's own row. When every row is an error, the store itself cannot be read.
    if len(errors) == len(GRAPH):
        raise errors[0]
    return list(statuses.values())


def _status(asset: str, loaded: LoadedRecipe, store: Store, upstream: dict[str, AssetStatus]) -> AssetStatus:
    pointer, latest = store.promotion(asset), store.latest(asset)
    problem = why_invalid(store, pointer, utc_today()) if pointer else ""
    is_stored = pointer is not None and pointer.version in store.versions(asset)
    shown = store.manifest(asset, pointer.version) if pointer and is_stored else latest
    if shown is None:
        return _without_version(asset, problem or "never built")

    why = _why_not_fresh(asset, loaded, store, shown, upstream)
    return AssetStatus(
        asset,
        shown,
        latest,
        promoted=pointer is not None and not problem,
        fresh=not why,
        why=why,
        certificate=store.certificate(asset, shown.version),
        links=store.links(asset, shown.version),
        path=store.uri(asset, shown.version),
    )


def _without_version(asset: str, why: str) -> AssetStatus:
    return AssetStatus(asset, None, None, promoted=False, fresh=False, why=why, certificate=None, links={}, path="")


def _why_not_fresh(
    asset: str, loaded: LoadedRecipe, store: Store, shown: Manifest, upstream: dict[str, AssetStatus]
) -> str:
    """Why a run would build or judge what is shown again, or the next stage would refuse it; empty when neither."""
    stale = [name for name in GRAPH[asset].inputs if not upstream[name].fresh]
    if stale:
        return f"upstream is not fresh: {', '.join(stale)}"

    try:
        plan = plan_asset(asset, loaded, store)
        # In place of a version that is held back, the promoted one is what the recipe gives.
        held_back = plan.existing is not None and store.hold(asset, plan.existing.version) is not None
        if plan.identity != shown.identity and not held_back:
            return explain_change(plan, shown)

        # The planner of the next stage asks the same, so nothing that it refuses is called fresh.
        promoted_input(asset, loaded, store)
    except UserError as error:
        return str(error)
    return ""


def explain_change(plan: Plan, shown: Manifest) -> str:
    """What differs between a plan and a version that was built, in a few words."""
    changed = [
        f"recipe {plan.asset}.{key}" for key, value in sorted(plan.section.items()) if shown.section.get(key) != value
    ]
    changed += [
        f"input {name}"
        for name, used in plan.inputs.items()
        if name not in shown.inputs or shown.inputs[name].digest != used.digest
    ]

    if plan.fingerprint != shown.fingerprint:
        changed.append("code")
    if plan.seed != shown.seed:
        changed.append("seed")
    # The identity differs, and of all that goes into it only these files are not in the manifest.
    return f"changed: {', '.join(changed)}" if changed else "changed: source files or safety prompts"
