"""Adoption: a version that only a change of code sets apart is taken over, after a proof, instead of made anew."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.building.builder import Builder
from pipeline.building.code_change import changed_functions, explain_change
from pipeline.building.planner import Plan, plan_adoption
from pipeline.graph import kind_named, require_asset
from pipeline.humanize import age
from pipeline.jobs import progress
from pipeline.jobs.launcher import Listener, run_job
from pipeline.jobs.locks import building
from training.errors import InputRefused, RecipeError, StoreError
from training.specs.artifacts import Adoption, Manifest, Proof
from training.specs.execution import Execution
from training.specs.job import Job, ProofRequest
from training.specs.losses import FIRST_LOSSES, FirstLosses
from training.specs.proofs import LONGEST_PROOF, PROOF_FILE, PROVING, WRITTEN_IN_ORDER
from training.store.store import Store

_LAYOUT = re.compile(r"(\d+) process(?:es)? x (\d+) threads? on (cpu|cuda), ZeRO ([0-3])")


def adopt(
    builder: Builder, asset: str, reason: str, author: str, on_events: Listener, seconds: float = LONGEST_PROOF
) -> Adoption | None:
    """Prove that today's code makes what a version holds, and take the version over under that code.

    Args:
        seconds: How long the proof may take.

    Returns:
        The adoption; None when the version that is asked for is there already.

    Raises:
        RecipeError: There is no such asset, or no reason is given.
        InputRefused: More than the code differs, or there is no version at all.
        JobRefused: The proof failed; the message says where.
        JobFailed: The proof ended with a fault.
    """
    require_asset(asset, builder.loaded.graph)
    if not reason.strip() or not author.strip():
        raise RecipeError("an adoption needs a --reason, and an --author where the login name is not known")
    store = builder.store
    plan = plan_adoption(asset, builder.loaded, store)
    if plan.existing:
        return None
    if plan.same_but_code is None:
        raise InputRefused(_why_not_adoptable(plan, store))

    manifest = plan.same_but_code
    _require_time(manifest, seconds)
    functions = changed_functions(manifest, store)
    with building(builder.work, plan.recipe, asset, builder.owner):
        proof = _prove(builder, plan, manifest, on_events, seconds)
        adoption = Adoption(
            asset=asset,
            version=manifest.version,
            digest=manifest.digest,
            made_as=manifest.identity,
            identity=plan.identity,
            made_by=manifest.fingerprint,
            fingerprint=plan.fingerprint,
            functions=functions,
            reason=reason.strip(),
            author=author,
            adopted_at=time.time(),
            proof=proof,
        )
        store.write_adoption(adoption)
    return adoption


def describe_adoption(adoption: Adoption) -> str:
    """An adoption in a sentence, for pages and tables."""
    day = time.strftime("%Y-%m-%d", time.gmtime(adoption.adopted_at))
    return (
        f"{adoption.asset} {adoption.version} was adopted on {day} by {adoption.author}: {adoption.reason}; proof: "
        f"{adoption.proof.compared}, in {age(adoption.proof.seconds)}; code {adoption.made_by[:12]} became "
        f"{adoption.fingerprint[:12]}"
    )


def _why_not_adoptable(plan: Plan, store: Store) -> str:
    build = f"`gatehouse run -r {store.named} --select {plan.asset}` builds it"
    latest = store.latest(plan.asset)
    if latest is None:
        return f"{plan.asset} was never built, so there is nothing to adopt: {build}"
    return (
        f"{plan.asset} {latest.version} cannot be adopted: {explain_change(plan, latest)}. Recipe, inputs, files, "
        f"sources and seed are never adopted; {build}"
    )


def _require_time(manifest: Manifest, seconds: float) -> None:
    """Refuse the proof of a data stage that has no part of its own and that took longer than the proof may take."""
    if kind_named(manifest.asset).uses_gpu or manifest.stage in WRITTEN_IN_ORDER or manifest.seconds <= seconds:
        return
    raise InputRefused(
        f"{manifest.asset} is proven by making all of it again, which took {age(manifest.seconds)}, and the proof may "
        f"take {age(seconds)}: give it more with --seconds {2 * manifest.seconds:.0f}"
    )


def _prove(builder: Builder, plan: Plan, manifest: Manifest, on_events: Listener, seconds: float) -> Proof:
    """Run the proof as a job of its own, in a folder that is empty before and gone afterwards."""
    attempt = plan.attempt(builder.work).with_name(f"proof-{plan.identity[:16]}")
    shutil.rmtree(attempt, ignore_errors=True)
    execution = _execution(builder, manifest)
    job = plan.job(builder.store, builder.work, execution, {}).model_copy(
        update={"attempt": str(attempt), "proof": ProofRequest(version=manifest.version, seconds=seconds)}
    )
    _launch(builder, job, on_events, seconds)
    try:
        proof = Proof.model_validate_json((attempt / PROOF_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise StoreError(f"the proof of {plan.asset} ended well, but {attempt / PROOF_FILE} says nothing") from error
    shutil.rmtree(attempt, ignore_errors=True)
    return proof


def _launch(builder: Builder, job: Job, on_events: Listener, seconds: float) -> None:
    began: list[float] = []

    def still_wanted() -> None:
        builder.still_wanted()
        is_done = (Path(job.attempt) / PROOF_FILE).exists()  # torch takes some seconds to end
        if began and not is_done and time.monotonic() - began[0] > seconds:
            raise InputRefused(
                f"the proof of {job.asset} was not done after {age(seconds)}, so nothing was adopted; give it more "
                f"with --seconds, its output is in {job.attempt}"
            )

    def listen(events: list[dict[str, Any]]) -> None:
        if any(event["kind"] == "phase" and event["name"] == PROVING for event in events):
            began.append(time.monotonic())
        progress.show(job.asset, events)
        on_events(events)

    forward_output = not progress.is_displayed()
    run_job(builder.launcher, job, listen, forward_output=forward_output, raise_if_cancelled=still_wanted)


def _execution(builder: Builder, manifest: Manifest) -> Execution:
    """The layout that a model was trained on, which decides the last digits of its losses; today's for data."""
    today = builder.launcher.entry.execution(manifest.asset)
    layout = _LAYOUT.fullmatch(manifest.facts.get("layout", ""))
    if layout is None:
        return today
    update: dict[str, object] = {
        "processes": int(layout[1]),
        "threads": int(layout[2]),
        "device": layout[3],
        "zero_stage": int(layout[4]),
    }
    if micro_batch := _micro_batch(builder.store, manifest):
        update["micro_batch_tokens"] = micro_batch
    return today.model_copy(update=update)


def _micro_batch(store: Store, manifest: Manifest) -> int:
    """The launcher's micro-batch of a training, 0 where it was not recorded."""
    if FIRST_LOSSES not in manifest.files:
        return 0
    path = store.place(manifest.asset, manifest.version) / FIRST_LOSSES
    try:
        return FirstLosses.model_validate_json(store.storage.read(path) or b"").micro_batch_tokens
    except ValidationError:  # the job, which compares the file with its manifest, says so
        return 0
