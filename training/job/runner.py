"""`python -m training.run job.json`: run one stage and publish what it made, or prove a version with it.

Started by torchrun it runs once per rank; rank 0 cleans the output folder, publishes and reports. Exit codes: 0 done,
1 a fault of the system (with its traceback), 2 a person's mistake (one message), 75 interrupted (start it again).
ending.json in the attempt folder holds the reason; see `training.job.outcome`.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from training.errors import EXIT_FAULT, EXIT_OK, EXIT_PREEMPTED, InputRefused, RecipeError, StoreError, UserError
from training.job import outcome
from training.job.code_digest import CODE_FILE, code_digests, dump_digests
from training.job.context import InputArtifact, StageContext
from training.job.events import EVENTS_FILE, EventWriter
from training.job.fingerprint import fingerprint
from training.job.outcome import JobOutcome, RestartRequested
from training.job.proof import prove
from training.specs.artifacts import InputRecord, Manifest, Proof
from training.specs.base import Spec
from training.specs.contracts import ARTIFACT, breaches
from training.specs.job import EVALUATION_SUFFIX, Input, Job, StageResult
from training.specs.proofs import PROOF_FILE
from training.store.storage import read_bounded
from training.store.store import Store, file_entry

RESULT_FILE = "result.json"
_REPORTED_LIBRARIES = (
    "torch",
    "transformers",
    "deepspeed",
    "trl",
    "peft",
    "accelerate",
    "tokenizers",
    "gigatoken",
    "trafilatura",
    "torchao",
    "liger-kernel",
    "lm-eval",
)


def main(arguments: list[str]) -> int:
    """Run the job whose file is the only argument; return the exit code."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return run_job(load_job(Path(arguments[0])))
    except UserError as error:
        with suppress(OSError):  # on a full disk the output has no room either
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def load_job(path: Path) -> Job:
    """Read job.json.

    Raises:
        RecipeError: The file is missing or is not a job.
    """
    try:
        return Job.model_validate_json(read_bounded(path))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; give the path of a job.json") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        raise RecipeError(
            f"{path}: {key}{first['msg']}; this is no job: materialize its asset again, which writes a new one"
        ) from error


def run_job(job: Job) -> int:
    """Verify the inputs, run the stage, publish. Every error is also written as an event and as the job's outcome.

    A job with a `proof` publishes nothing: it compares what the stage makes with a version (`training.job.proof`).

    Returns:
        The exit code.

    Raises:
        UserError: A person's mistake.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    attempt = Path(job.attempt)
    attempt.mkdir(parents=True, exist_ok=True)
    events = EventWriter(attempt / EVENTS_FILE if rank == 0 else None)
    started = time.time()
    earlier_handler = signal.signal(signal.SIGTERM, partial(_stop, attempt))

    try:
        context = _prepare(job, events, rank, world_size)
        if job.proof is not None:
            _write_proof(attempt, prove(job, context, _stage(job).run))
            return EXIT_OK
        code = _recorded_code(job) if rank == 0 else ""
        result: StageResult | None = _stage(job).run(context)
        if rank == 0:
            assert result is not None, f"{job.stage} returned nothing on rank 0"
            events.phase("publish")
            manifest = _publish(job, context, result, code, started)
            _write_result(attempt, manifest)
            for finish in context.afterwards:
                with suppress(OSError):  # the version is published, so the job has succeeded
                    finish()
        return EXIT_OK
    except UserError as error:
        _refuse(attempt, events, error)
        raise
    except RestartRequested as request:
        outcome.write(attempt, request.outcome)
        events.log(str(request), level="warning")
        return request.exit_code
    except Exception as error:
        refusal = _explained(job, error)
        if refusal is not None:
            _refuse(attempt, events, refusal)
            raise refusal from error
        # Written before this rank ends: torchrun then stops the others, and only the first outcome is kept.
        outcome.write(attempt, JobOutcome(kind="failed", message=traceback.format_exc()))
        events.log(traceback.format_exc(), level="error")
        traceback.print_exc()
        return EXIT_FAULT
    finally:
        signal.signal(signal.SIGTERM, earlier_handler)
        with suppress(OSError):
            events.close()


def _refuse(attempt: Path, events: EventWriter, error: UserError) -> None:
    outcome.write(attempt, JobOutcome(kind="refused", message=str(error)))
    with suppress(OSError):
        events.log(str(error), level="error")


def _stop(attempt: Path, _number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM while nothing would be lost; once training has begun, `Checkpointer` handles it instead."""
    outcome.write(attempt, JobOutcome(kind="preempted", message="told to stop"))
    raise SystemExit(EXIT_PREEMPTED)


def _explained(job: Job, error: Exception) -> UserError | None:
    """The error that says what to do about a lack of memory or of room, None for every other fault."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{error.filename or job.attempt}: {error.strerror}; make room and start {job.asset} again: it continues "
            "from its newest checkpoint"
        )

    if not outcome.is_out_of_memory(error):
        return None
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    evaluates = job.asset.endswith(EVALUATION_SUFFIX)
    remedy = " or lower evaluation.batch or evaluation.context in the recipe" if evaluates else ""
    return RecipeError(f"{job.asset} ran out of memory ({reason}): give it a machine with more memory{remedy}")


def _stage(job: Job) -> Any:
    return importlib.import_module(f"training.stages.{job.stage}")


def _prepare(job: Job, events: EventWriter, rank: int, world_size: int) -> StageContext[Any]:
    """Verify everything that the job names, before the seconds that importing a stage takes."""
    if not (Path(__file__).parents[1] / "stages" / f"{job.stage}.py").is_file():
        raise RecipeError(f"job.json: there is no stage {job.stage!r}")
    own_fingerprint = fingerprint(f"training.stages.{job.stage}")
    if own_fingerprint != job.fingerprint:
        raise InputRefused(
            f"the code of {job.stage} is not the one this job was made for (fingerprint {own_fingerprint[:12]}, "
            f"expected {job.fingerprint[:12]}); materialize {job.asset} again"
        )
    if breach := next(breaches(job), ""):
        raise InputRefused(f"job.json: {breach}; start {job.asset} through Gatehouse")

    # By the job itself and not only by the planner: going around Dagster must not go around a gate.
    events.phase("verify inputs")
    store = _store(job)
    inputs = {name: _verified(store, job, name, used) for name, used in job.inputs.items()}
    _require_one_tokenizer(job, inputs)
    for name, file in job.files.items():
        if not Path(file.path).is_file() or file_entry(Path(file.path)).sha256 != file.sha256:
            raise InputRefused(
                f"{file.path} ({name}) is missing or has changed since this job was planned; materialize {job.asset} "
                "again"
            )

    section: type[Spec] = _stage(job).Section
    out = Path(job.attempt) / "out"
    if rank == 0:  # an earlier start of the job may have left a part of its files
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    return StageContext(
        asset=job.asset,
        identity=job.identity,
        section=section.model_validate(job.section),
        seed=job.seed,
        inputs=inputs,
        files={name: Path(file.path) for name, file in job.files.items()},
        out=out,
        work=Path(job.attempt),
        execution=job.execution,
        events=events,
        rank=rank,
        world_size=world_size,
    )


def _verified(store: Store, job: Job, name: str, used: Input) -> InputArtifact:
    """An input after its promotion, its certificate and its bytes were verified.

    Raises:
        InputRefused: One of them is not as the job says.
        StoreError: The version does not exist or cannot be read.
    """
    if used.promoted:
        if not used.certificate:
            raise InputRefused(
                f"job.json: the input {name} of {job.asset} names no certificate; start {job.asset} through Gatehouse"
            )
        store.require_promoted(used.asset, used.version, used.digest, used.certificate)
    elif not _may_be_unpromoted(store, job, name, used):
        raise InputRefused(
            f"job.json: the input {name} of {job.asset} must be promoted; beside the version that it measures, an "
            "evaluation may read only what that one was made from"
        )
    folder = store.verified_folder(used.asset, used.version, used.digest)
    return InputArtifact(folder, store.manifest(used.asset, used.version))


def _may_be_unpromoted(store: Store, job: Job, name: str, used: Input) -> bool:
    """Whether an input of an evaluation is the version that it measures, or one that this version was made from."""
    measured = job.inputs[ARTIFACT]
    made_from = store.manifest(measured.asset, measured.version).inputs.get(name)
    return name == ARTIFACT or (
        made_from is not None
        and (made_from.asset, made_from.version, made_from.digest) == (used.asset, used.version, used.digest)
    )


def _require_one_tokenizer(job: Job, inputs: dict[str, InputArtifact]) -> None:
    """Refuse inputs made with different tokenizers: their token ids mean different things."""
    digests = {
        name: artifact.manifest.facts["tokenizer"]
        for name, artifact in inputs.items()
        if "tokenizer" in artifact.manifest.facts
    }
    if len(set(digests.values())) > 1:
        by_input = ", ".join(f"{name} with {digest[:12]}" for name, digest in digests.items())
        raise InputRefused(
            f"{job.asset}: its inputs were made with different tokenizers: {by_input}; materialize the older ones again"
        )


def _recorded_code(job: Job) -> str:
    """The digests of the code that runs; empty for an evaluation, which is measured again and never adopted.

    They are taken when the job starts: a training takes days, and its sources may be edited meanwhile.
    """
    if job.asset.endswith(EVALUATION_SUFFIX):
        return ""
    return dump_digests(code_digests(f"training.stages.{job.stage}"))


def _publish(job: Job, context: StageContext[Any], result: StageResult, code: str, started: float) -> Manifest:
    if code:
        (context.report / Path(CODE_FILE).name).write_text(code)
    inputs = {
        name: InputRecord(asset=used.asset, version=used.version, digest=used.digest)
        for name, used in job.inputs.items()
    }
    draft = Manifest(
        asset=job.asset,
        version="",
        stage=job.stage,
        recipe=job.recipe,
        identity=job.identity,
        fingerprint=job.fingerprint,
        digest="",
        files={},
        inputs=inputs,
        metrics=result.metrics,
        headline=result.headline,
        facts=result.facts,
        section=job.section,
        seed=job.seed,
        versions=library_versions(),
        labels=job.labels,
        started_at=started,
        seconds=time.time() - started,
    )
    return _store(job).publish(context.out, draft)


def _store(job: Job) -> Store:
    return Store(job.store, job.recipe, cache=Path(job.cache) if job.cache else None)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _write_proof(attempt: Path, proof: Proof | None) -> None:
    if proof is not None:
        (attempt / PROOF_FILE).write_text(proof.model_dump_json())


def _write_result(attempt: Path, manifest: Manifest) -> None:
    """Tell the launcher which version was published; result.json exists whole or not at all."""
    temporary = attempt / f".{RESULT_FILE}"
    temporary.write_text(json.dumps({"asset": manifest.asset, "version": manifest.version, "digest": manifest.digest}))
    temporary.replace(attempt / RESULT_FILE)
