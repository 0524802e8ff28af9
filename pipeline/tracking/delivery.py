"""Delivers the outbox to MLflow, oldest build first: runs, metrics, lineage, versions and judgements.

MLflow may have been down when a build began, in its middle, at its end, or for a whole chain of builds. The next build,
the next `gatehouse run` or `up`, and `gatehouse sync` all come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from pipeline.graph import stored_assets
from pipeline.jobs.attempt import JOB_FILE
from pipeline.jobs.locks import LOCK_FILE, is_held
from pipeline.tracking.connection import logger
from pipeline.tracking.outbox import OutboxRecord, delivery_turn, outbox
from pipeline.tracking.promotions import LINKS, record_judgement
from pipeline.tracking.records import is_model
from pipeline.tracking.tracker import Tracker
from training.errors import UserError
from training.specs.artifacts import Manifest
from training.specs.job import Job
from training.store.store import Store

BUDGET = 20.0
_LOST = "its process ended unexpectedly"


@dataclass
class Delivery:
    """What was delivered and what is still pending, one line for each build."""

    delivered: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


def deliver_pending(
    work: Path,
    store: Store,
    tracker: Tracker,
    budget: float = BUDGET,
    on_delivered: Callable[[str], None] = lambda _build: None,
) -> Delivery:
    """Deliver to MLflow what it lacks of a recipe's builds. A build that is going on is left to its own process.

    A version is recorded after those that it was made from, so that its run can name theirs.

    Args:
        work: Folder of the attempts.
        store: The recipe's.
        budget: Seconds after which the rest is left for the next time, so that a slow server holds up no run.
        on_delivered: Gets the name of each build that is delivered now.
    """
    delivery = Delivery()
    if all(record.is_delivered for record in outbox(work, store.recipe)):
        return delivery

    deadline = time.monotonic() + budget
    pending = set[tuple[str, str]]()
    with delivery_turn(work / store.recipe, budget) as our_turn:
        for record in outbox(work, store.recipe):  # read again: another process may have delivered meanwhile
            name = f"{record.asset} {record.build.version or record.attempt.name}"
            try:
                if not record.build.outcome and is_held(record.attempt.parent / LOCK_FILE):
                    continue
                resolve(record, store)
                if record.is_delivered:
                    continue
                delivered = our_turn and _deliver(record, store, tracker, pending, lambda: time.monotonic() > deadline)
            except (OSError, UserError) as error:
                logger.warning("%s cannot be delivered to MLflow: %s", name, error)
                delivered = False

            if delivered:
                delivery.delivered.append(name)
                on_delivered(name)
            else:
                delivery.pending.append(name)
                pending.add((record.asset, record.build.version))

    return delivery


def begin(record: OutboxRecord, tracker: Tracker) -> bool:
    """Begin the run of a build that is going on; return whether it has one now. It waits for nobody's delivery."""
    with delivery_turn(record.attempt.parents[1], 0) as our_turn:
        return our_turn and _begin(record, _job(record), tracker)


def resolve(record: OutboxRecord, store: Store) -> None:
    """Note how a build ended whose process was killed before it could: its version may be published all the same."""
    if record.build.outcome:
        return

    job = _job(record)
    made = store.find(job.asset, job.identity) if job else None
    # An older version of the same identity was made by another build, as when this one was forced.
    if made is not None and made.started_at >= record.build.started:
        note_published(record, made, store)
    else:
        record.change(outcome="killed", error=_LOST, outcome_delivered=job is None)


def note_published(record: OutboxRecord, manifest: Manifest, store: Store) -> None:
    """Note which version a build has made, and on the version where its events are."""
    store.write_links(manifest.asset, manifest.version, {"attempt": str(record.attempt)})
    record.change(outcome="published", version=manifest.version, error="", end=record.end, outcome_delivered=False)


def requeue_missing(work: Path, store: Store, tracker: Tracker, runs: set[str]) -> int:
    """Put everything into the outbox again that an MLflow does not hold, as when its database was lost or replaced.

    Args:
        runs: Those that it has.

    Returns:
        How many builds and versions it lacks.
    """
    missing = {
        (record.asset, record.build.version)
        for record in outbox(work, store.recipe)
        if record.build.run_id and record.build.run_id not in runs
    }
    for asset in stored_assets(store):
        registered = tracker.model_versions(asset) if is_model(asset) else None
        for version in store.versions(asset):
            links = store.links(asset, version)
            if _is_missing(links, runs, registered):
                store.write_links(asset, version, {name: "" for name in LINKS if name in links})
                missing.add((asset, version))

    for record in outbox(work, store.recipe):
        if (record.asset, record.build.version) not in missing or not record.build.run_id:
            continue
        if record.build.run_id in runs:
            record.change(outcome_delivered=False)
        else:
            record.change(run_id="", delivered=record.build.start, outcome_delivered=False)

    return len(missing)


def _is_missing(links: Mapping[str, str], runs: set[str], registered: set[str] | None) -> bool:
    """Whether MLflow lacks the run or the registered model that a version's links name.

    Args:
        registered: MLflow's versions of the asset's model; None where it has none or is down.
    """
    number, run_id = links.get("mlflow_model_version"), links.get("mlflow_run_id")
    is_unregistered = registered is not None and bool(number) and number not in registered
    return is_unregistered or (bool(run_id) and run_id not in runs)


def _deliver(
    record: OutboxRecord, store: Store, tracker: Tracker, pending: set[tuple[str, str]], late: Callable[[], bool]
) -> bool:
    """Deliver one build; return whether MLflow has all of it now.

    Args:
        pending: Assets and versions that could not be delivered before it.
        late: Whether the budget is spent.
    """
    asset, version = record.asset, record.build.version
    manifest = store.manifest(asset, version) if version and version in store.versions(asset) else None
    if manifest and any((used.asset, used.version) in pending for used in manifest.inputs.values()):
        return False
    if late() or not _begin(record, manifest or _job(record), tracker) or not tracker.deliver(record, late):
        return False

    run_id = record.build.run_id
    if record.build.outcome != "published":
        delivered = tracker.fail(run_id, record.build.error, killed=record.build.outcome == "killed")
    elif manifest is None:  # deleted since
        delivered = tracker.finish(run_id)
    else:
        links = tracker.publish(run_id, manifest, store.folder(asset, version), store)
        if links:
            store.write_links(asset, version, links)
        ended = manifest.started_at + manifest.seconds
        delivered = bool(links) and tracker.finish(run_id, ended) and record_judgement(manifest, store, tracker)

    if delivered:
        record.change(outcome_delivered=True)
    return delivered


def _begin(record: OutboxRecord, subject: Job | Manifest | None, tracker: Tracker) -> bool:
    if subject is None:
        return False

    run_id = tracker.begin(record.build.key, subject, record.build.run_id, record.build.started)
    if run_id and run_id != record.build.run_id:
        record.change(run_id=run_id)
    return run_id is not None


def _job(record: OutboxRecord) -> Job | None:
    """The build's job; None when it was never written, or cannot be read any more."""
    path = record.attempt / JOB_FILE
    try:
        return Job.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("%s cannot be read, so MLflow does not get this build: %s", path, error.errors()[0]["msg"])
        return None
