"""Pays what MLflow is owed, oldest build first: runs, metrics, lineage, versions and judgements.

MLflow may have been down when a build began, in its middle, at its end, or for a whole chain of builds. The next build,
the next `gatehouse run` or `up`, and `gatehouse sync` all come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from pipeline.graph import GRAPH
from pipeline.jobs.attempt import JOB_FILE
from pipeline.jobs.locks import LOCK_FILE, is_held
from pipeline.tracking.connection import logger
from pipeline.tracking.outbox import Debt, debts, settling
from pipeline.tracking.promotions import LINKS, record
from pipeline.tracking.records import is_model
from pipeline.tracking.tracker import Tracker
from training.errors import UserError
from training.specs.artifacts import Manifest
from training.specs.job import Job
from training.store.store import Store

BUDGET = 20.0
_LOST = "its process ended without a word"


@dataclass
class Settlement:
    """What was paid and what is still owed, one line for each build."""

    paid: list[str] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)


def pay_debts(
    work: Path, store: Store, tracker: Tracker, budget: float = BUDGET, say: Callable[[str], None] = lambda _line: None
) -> Settlement:
    """Pay what the builds of a recipe owe MLflow. A build that is going on now is left to its own process.

    A version is recorded after those that it was made from, so that its run can name theirs.

    Args:
        work: Folder of the attempts.
        store: The recipe's.
        budget: Seconds after which the rest is left for the next time, so that a slow server holds up no run.
        say: Is told what was paid.
    """
    done, unpaid = Settlement(), set[tuple[str, str]]()
    deadline = time.monotonic() + budget
    if not any(debt.is_owed for debt in debts(work, store.recipe)):
        return done
    with settling(work / store.recipe, budget) as our_turn:
        for debt in debts(work, store.recipe):
            name = f"{_asset(debt)} {debt.build.version or debt.attempt.name}"
            try:
                if not debt.build.outcome and is_held(debt.attempt.parent / LOCK_FILE):
                    continue
                resolve(debt, store)
                if not debt.is_owed:
                    continue
                paid = our_turn and _pay(debt, store, tracker, unpaid, lambda: time.monotonic() > deadline)
            except (OSError, UserError) as error:
                logger.warning("what MLflow is owed of %s cannot be paid: %s", name, error)
                paid = False
            (done.paid if paid else done.owed).append(name)
            if paid:
                say(name)
            else:
                unpaid.add((_asset(debt), debt.build.version))
    return done


def begin(debt: Debt, tracker: Tracker) -> bool:
    """Begin the run of a build that is going on; return whether it has one now. It waits for no settlement."""
    with settling(debt.attempt.parents[1], 0) as our_turn:
        return our_turn and _begin(debt, _job(debt), tracker)


def resolve(debt: Debt, store: Store) -> None:
    """Note how a build ended whose process was killed before it could: its version may be published all the same."""
    if debt.build.outcome:
        return
    job = _job(debt)
    made = store.find(job.asset, job.identity) if job else None
    if made is not None and made.started_at >= debt.build.started:
        note_published(debt, made, store)
    else:
        debt.change(outcome="killed", error=_LOST, told=job is None)


def note_published(debt: Debt, manifest: Manifest, store: Store) -> None:
    """Note which version a build has made, and on the version where its events are."""
    store.write_links(manifest.asset, manifest.version, {"attempt": str(debt.attempt)})
    debt.change(outcome="published", version=manifest.version, error="", end=debt.end, told=False)


def forget_missing(work: Path, store: Store, tracker: Tracker, runs: set[str]) -> int:
    """Make everything owed again that an MLflow does not hold, as when its database was lost or is another one now.

    Args:
        runs: Those that it has.

    Returns:
        How many builds and versions it lacks.
    """
    lost = {
        (_asset(debt), debt.build.version)
        for debt in debts(work, store.recipe)
        if debt.build.run_id and debt.build.run_id not in runs
    }
    for asset in GRAPH:
        registered = tracker.model_versions(asset) if is_model(asset) else None
        for version in store.versions(asset):
            links = store.links(asset, version)
            number = links.get("mlflow_model_version")
            unregistered = registered is not None and bool(number) and number not in registered
            if unregistered or (links.get("mlflow_run_id") and links["mlflow_run_id"] not in runs):
                store.write_links(asset, version, {name: "" for name in LINKS if name in links})
                lost.add((asset, version))
    for debt in debts(work, store.recipe):
        if (_asset(debt), debt.build.version) not in lost or not debt.build.run_id:
            continue
        if debt.build.run_id in runs:
            debt.change(told=False)
        else:
            debt.change(run_id="", delivered=debt.build.start, told=False)
    return len(lost)


def _pay(debt: Debt, store: Store, tracker: Tracker, unpaid: set[tuple[str, str]], late: Callable[[], bool]) -> bool:
    asset, version = _asset(debt), debt.build.version
    manifest = store.manifest(asset, version) if version and version in store.versions(asset) else None
    if manifest and any((used.asset, used.version) in unpaid for used in manifest.inputs.values()):
        return False
    if late() or not _begin(debt, manifest or _job(debt), tracker) or not tracker.deliver(debt, late):
        return False
    run_id = debt.build.run_id
    if debt.build.outcome != "published":
        told = tracker.fail(run_id, debt.build.error, killed=debt.build.outcome == "killed")
    elif manifest is None:  # deleted since
        told = tracker.finish(run_id)
    else:
        links = tracker.publish(run_id, manifest, store.folder(asset, version), store)
        if links:
            store.write_links(asset, version, links)
        ended = manifest.started_at + manifest.seconds
        told = bool(links) and tracker.finish(run_id, ended) and record(manifest, store, tracker)
    if told:
        debt.change(told=True)
    return told


def _begin(debt: Debt, subject: Job | Manifest | None, tracker: Tracker) -> bool:
    if subject is None:
        return False
    run_id = tracker.begin(debt.build.key, subject, debt.build.run_id, debt.build.started)
    if run_id and run_id != debt.build.run_id:
        debt.change(run_id=run_id)
    return run_id is not None


def _job(debt: Debt) -> Job | None:
    """The build's job; None when it was never written, or cannot be read any more."""
    path = debt.attempt / JOB_FILE
    try:
        return Job.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("%s cannot be read, so MLflow is not told of it: %s", path, error.errors()[0]["msg"])
        return None


def _asset(debt: Debt) -> str:
    return debt.attempt.parent.name
