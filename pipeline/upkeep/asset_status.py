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
            built, or when what is there cannot be read.
        promoted: Whether the next stage may use it (`training.store.validity`).
        fresh: True when the promoted version is what materializing would give now.
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
            "gates": [
                {
                    "name": verdict.name,
                    "passed": verdict.passed,
                    "value": verdict.value,
                    "must_be": verdict.must_be,
                    "threshold": verdict.threshold,
                }
                for verdict in verdicts
            ],
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
    return "" if value is None else f"{metric} {value:,.5g}" if abs(value) < 1e4 else f"{metric} {value:,.0f}"


def survey(loaded: LoadedRecipe, store: Store) -> list[AssetStatus]:
    """The status of every asset, in the order of the graph. What cannot be read of one is said in its own row.

    Raises:
        StoreError: Nothing can be read of any of them.
    """
    found: dict[str, AssetStatus] = {}
    errors = []
    for asset in GRAPH:
        try:
            found[asset] = _status(asset, loaded, store, found)
        except StoreError as error:
            errors.append(error)
            found[asset] = AssetStatus(asset, None, None, False, False, str(error), None, {}, "")
    if len(errors) == len(GRAPH):
        raise errors[0]
    return list(found.values())


def _status(asset: str, loaded: LoadedRecipe, store: Store, upstream: dict[str, AssetStatus]) -> AssetStatus:
    pointer, latest = store.promotion(asset), store.latest(asset)
    problem = why_invalid(store, pointer, utc_today()) if pointer else store.explain_unpromoted(asset)
    there = pointer is not None and pointer.version in store.versions(asset)
    shown = store.manifest(asset, pointer.version) if pointer and there else latest
    if shown is None:
        return AssetStatus(asset, None, None, False, False, problem if pointer else "never built", None, {}, "")

    why = _why_not_fresh(asset, loaded, store, shown, problem, upstream)
    return AssetStatus(
        asset,
        shown,
        latest,
        not problem,
        not why,
        why,
        store.certificate(asset, shown.version),
        store.links(asset, shown.version),
        store.uri(asset, shown.version),
    )


def _why_not_fresh(
    asset: str, loaded: LoadedRecipe, store: Store, shown: Manifest, problem: str, upstream: dict[str, AssetStatus]
) -> str:
    """Why the next stage would refuse what is shown, or a run would build or judge it again; empty when neither.

    Args:
        problem: Why it is not promoted, or not validly.
    """
    stale = [name for name in GRAPH[asset].inputs if not upstream[name].fresh]
    if stale:
        return f"upstream is not fresh: {', '.join(stale)}"
    try:
        plan = plan_asset(asset, loaded, store)
        held_back = plan.existing is not None and store.hold(asset, plan.existing.version) is not None
        if plan.identity != shown.identity and not held_back:  # then the promoted version stands in for it
            return explain_change(plan, shown)
        if problem:
            return problem
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
    return f"changed: {', '.join(changed)}" if changed else "changed: source files or safety prompts"
