"""The state of every asset: what is promoted, what is newest, and whether it is what the recipe asks for today."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from pipeline.building.builder import LAST
from pipeline.building.code_change import changed_functions, describe_code_change, explain_change
from pipeline.building.planner import Plan, plan_adoption, promoted_input
from pipeline.graph import kind_named
from pipeline.recipes.loader import LoadedRecipe
from training.errors import StoreError, UserError
from training.specs.artifacts import Adoption, Certificate, Manifest
from training.store.store import Store, utc_today
from training.store.validity import why_invalid

NEVER_BUILT = "never built"


@dataclass(frozen=True)
class AssetStatus:
    """One asset, as `gatehouse status` shows it.

    Attributes:
        shown: The version that the pointer names, or the newest one when there is no pointer; None when nothing was
            built or nothing can be read.
        promoted: Whether the next stage's job would accept it (`training.store.validity`).
        fresh: True when the promoted version is what materializing would give now, and the next stage may use it.
        why: Why it is not fresh; empty when it is.
        code_changed: Only the code sets a version apart from what would be made today: it can be adopted after a proof.
            It is the shown one where `is_settled`, else `why` names it.
        functions: The functions and classes that differ then; None where they were not recorded.
        is_settled: Whether it is what would be made today, but for code and judgement. What is made from it can then
            be looked at by itself.
        adoptions: The decisions by which it stands for what other code would make, oldest first.
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
    code_changed: bool = False
    functions: tuple[str, ...] | None = None
    is_settled: bool = False
    adoptions: tuple[Adoption, ...] = ()

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
            "code_changed": self.code_changed,
            "functions": list(self.functions) if self.functions is not None else None,
            "adoptions": [adoption.model_dump(mode="json") for adoption in self.adoptions],
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
    verdicts = certificate.verdicts if certificate else ()
    measured = {verdict.name: verdict.value for verdict in verdicts if verdict.value is not None}
    summed_up = kind_named(manifest.asset).headline({**manifest.metrics, **measured})
    if summed_up is None:
        return ""
    metric, value = summed_up
    return f"{metric} {value:,.5g}" if abs(value) < 1e4 else f"{metric} {value:,.0f}"


def survey(loaded: LoadedRecipe, store: Store) -> list[AssetStatus]:
    """The status of every asset, in the order of the graph. What cannot be read of one is said in its own row.

    Raises:
        StoreError: Nothing can be read of any of them.
    """
    statuses: dict[str, AssetStatus] = {}
    errors = []
    for asset in loaded.graph:
        try:
            statuses[asset] = _status(asset, loaded, store, statuses)
        except StoreError as error:
            errors.append(error)
            statuses[asset] = _without_version(asset, str(error))

    # One damaged record is its asset's own row. When every row is an error, the store itself cannot be read.
    if len(errors) == len(loaded.graph):
        raise errors[0]
    return list(statuses.values())


def _status(asset: str, loaded: LoadedRecipe, store: Store, upstream: dict[str, AssetStatus]) -> AssetStatus:
    pointer, latest = store.promotion(asset), store.latest(asset)
    problem = why_invalid(store, pointer, utc_today()) if pointer else ""
    is_stored = pointer is not None and pointer.version in store.versions(asset)
    shown = store.manifest(asset, pointer.version) if pointer and is_stored else latest
    if shown is None:
        return _without_version(asset, problem or NEVER_BUILT)

    status = AssetStatus(
        asset,
        shown,
        latest,
        promoted=pointer is not None and not problem,
        fresh=False,
        why="",
        certificate=store.certificate(asset, shown.version),
        links=store.links(asset, shown.version),
        path=store.uri(asset, shown.version),
        adoptions=tuple(store.adoptions(asset, shown.version)),
    )
    stale = [name for name in loaded.graph[asset].inputs if not upstream[name].fresh]
    why_stale = f"upstream is not fresh: {', '.join(stale)}" if stale else ""
    if not all(upstream[name].is_settled for name in stale):
        return replace(status, why=why_stale)

    # By the versions that are promoted now, on whatever terms they were judged: those that are not fresh for that alone
    # are named below, and a run would judge them again first.
    try:
        plan = plan_adoption(asset, loaded, store)
    except UserError as error:
        return replace(status, why=why_stale or str(error))
    if plan.same_but_code is not None:
        return _with_code_change(status, plan, plan.same_but_code, store)

    is_today = plan.existing is not None and plan.existing.version == shown.version
    if stale:
        return replace(status, why=why_stale, is_settled=is_today)
    why = _why_not_fresh(status, plan, loaded, store, problem)
    return replace(status, fresh=not why, why=why, is_settled=is_today)


def _without_version(asset: str, why: str) -> AssetStatus:
    return AssetStatus(asset, None, None, promoted=False, fresh=False, why=why, certificate=None, links={}, path="")


def _with_code_change(status: AssetStatus, plan: Plan, manifest: Manifest, store: Store) -> AssetStatus:
    """The status where a version would be what is asked for today, had other code not made it."""
    shown = status.shown
    assert shown is not None
    functions = changed_functions(manifest, store)
    why = describe_code_change(manifest, functions, store)
    if manifest.version != shown.version:
        why = f"{explain_change(plan, shown)}; of {manifest.version} only the {why}"
    return replace(
        status, why=why, code_changed=True, functions=functions, is_settled=manifest.version == shown.version
    )


def _why_not_fresh(status: AssetStatus, plan: Plan, loaded: LoadedRecipe, store: Store, problem: str) -> str:
    """Why the next stage would refuse what is shown, or a run would build or judge it again; empty when neither.

    Args:
        plan: On what is promoted upstream, all of which is fresh.
        problem: Why it is not promoted, or not validly.
    """
    shown = status.shown
    assert shown is not None
    # In place of a version that is held back, the promoted one is what the recipe gives.
    held_back = plan.existing is not None and store.hold(status.asset, plan.existing.version) is not None
    is_today = plan.existing is not None and plan.existing.version == shown.version
    if not is_today and plan.identity != shown.identity and not held_back:
        return explain_change(plan, shown)
    if problem:
        return problem

    # The planner of the next stage asks the same, so nothing that it refuses is called fresh.
    try:
        promoted_input(status.asset, loaded, store)
    except UserError as error:
        return str(error)
    return ""
