"""A proof: a job computes again, with today's code, what a version holds. It compares, and publishes nothing.

A data stage makes its files again, in a scratch folder, and their bytes are compared. A training repeats its first
steps from the same seed, and their losses are compared digit by digit. Both run the stage as a build does: they only
listen to its events, and end it there once enough was seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from training.errors import InputRefused, UserError
from training.job.context import StageContext
from training.job.events import EventWriter
from training.job.parts import PARTS
from training.specs.artifacts import REPORT, Manifest, Proof
from training.specs.job import Job, StageResult
from training.specs.losses import FIRST_LOSSES, FIRST_STEPS, HISTORY, FirstLosses
from training.specs.optimization import Checkpoints, TrainingSection
from training.specs.proofs import PROVING, WRITTEN_IN_ORDER
from training.store.storage import relative_files
from training.store.store import Store, file_entry

_SHARE_OF_TIME = 0.8  # of the time that a proof has, after which it ends at the next chance
_FEWEST_LOSSES = 2  # the first one is of a model that no step has changed yet
_NEVER = 10**9
_SHOWN_NAMES = 5
_CHUNK = 1 << 20


class ProofFailed(UserError):
    """Today's code makes something else than the version holds, or nothing could be compared."""


class _Enough(Exception):
    """What was seen is enough for the proof."""


def prove(job: Job, context: StageContext[Any], run: Callable[[StageContext[Any]], StageResult | None]) -> Proof | None:
    """Run the stage, or the beginning of it, and compare.

    Args:
        context: As for a build, with a scratch folder for the files.
        run: The stage.

    Returns:
        What was compared; None on other ranks than the first.

    Raises:
        ProofFailed: Something differs; the message says where.
        InputRefused: The version's own records are not what was published.
    """
    assert job.proof is not None
    store = Store(job.store, job.recipe, cache=Path(job.cache) if job.cache else None)
    manifest = store.manifest(job.asset, job.proof.version)
    context.events.phase(PROVING)
    deadline = time.time() + _SHARE_OF_TIME * job.proof.seconds
    if isinstance(context.section, TrainingSection) and context.section.is_trained:
        proof = _prove_training(context, run, store, manifest, deadline)
    else:
        proof = _prove_data(context, run, store, manifest, deadline)
    return proof if context.rank == 0 else None


class _Listener(EventWriter):
    """Passes a stage's events on, and hears them."""

    def __init__(self, events: EventWriter) -> None:
        super().__init__(None)
        self._events = events

    def _write(self, kind: str, **fields: Any) -> None:
        self._events._write(kind, **fields)


# Data


class _UntilDeadline(_Listener):
    """Ends a stage when it tells of its progress after the deadline."""

    def __init__(self, events: EventWriter, deadline: float) -> None:
        super().__init__(events)
        self._deadline = deadline

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        super().progress(done, total, unit, note)
        if time.time() > self._deadline:
            raise _Enough


def _prove_data(
    context: StageContext[Any],
    run: Callable[[StageContext[Any]], StageResult | None],
    store: Store,
    manifest: Manifest,
    deadline: float,
) -> Proof:
    """Make the files again and compare their bytes; where time ends before, those that were made until then."""
    started = time.time()
    # An earlier proof may have left parts that other code made.
    shutil.rmtree(context.work / PARTS, ignore_errors=True)
    is_whole = True
    in_order = manifest.stage in WRITTEN_IN_ORDER
    events = _UntilDeadline(context.events, deadline) if in_order else context.events
    try:
        run(replace(context, events=events))
    except _Enough:
        is_whole = False

    context.events.phase("compare")
    name = f"{manifest.asset} {manifest.version}"
    recorded = {path: entry for path, entry in manifest.files.items() if not path.startswith(REPORT)}
    made = sorted(path for path in relative_files(context.out) if not path.startswith(REPORT))
    apart = set(made) ^ set(recorded) if is_whole else set(made) - set(recorded)
    if apart:
        shown = ", ".join(sorted(apart)[:_SHOWN_NAMES])
        raise ProofFailed(f"{name}: today's code makes other files; only one of the two has {shown}")

    for path in made:
        if file_entry(context.out / path) != recorded[path]:
            where = _difference(context.out / path, store.folder(manifest.asset, manifest.version) / path)
            raise ProofFailed(f"{name}: {path} is not what today's code makes: {where}")
    size = sum(recorded[path].bytes for path in made)
    if not made:
        raise ProofFailed(f"{name}: nothing was made in the time that the proof has; give it more with --seconds")
    files = "its only file" if len(recorded) == 1 else f"all {len(made)} files"
    if not is_whole:
        files = f"{len(made)} of {len(recorded)} files, those that the stage makes first"
    return Proof(
        method="rebuilt" if is_whole else "sample",
        compared=f"{files}, {size:,} bytes, equal byte for byte",
        files=len(made),
        bytes=size,
        seconds=time.time() - started,
    )


def _difference(ours: Path, theirs: Path) -> str:
    """Where two files differ first, in words."""
    at = _first_byte(ours, theirs)
    if ours.suffix == ".parquet":
        try:
            return _differing_row(ours, theirs) or f"all rows are equal, and byte {at:,} differs"
        except (OSError, ValueError):  # one of them is no table any more
            return f"byte {at:,} differs"
    line = ours.read_bytes()[:at].count(b"\n") + 1 if ours.suffix in (".json", ".jsonl", ".yaml", ".md") else 0
    return f"byte {at:,} differs" + (f", in line {line:,}" if line else "")


def _differing_row(ours: Path, theirs: Path) -> str:
    """The first row in which two tables differ, in words; empty when none does."""
    for number, (mine, recorded) in enumerate(zip_longest(_rows(ours), _rows(theirs)), 1):
        if mine != recorded:
            return f"row {number:,} differs ({_columns(mine or {}, recorded or {})})"
    return ""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq  # takes half a second, and a training needs none of it

    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=512):
            yield from batch.to_pylist()


def _columns(mine: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """The columns in which two rows differ."""
    if not mine or not recorded:
        return "only one of the two has it"
    return ", ".join(name for name in {**recorded, **mine} if mine.get(name) != recorded.get(name))


def _first_byte(ours: Path, theirs: Path) -> int:
    """The number of bytes that two files have in common from their beginnings."""
    at = 0
    with ours.open("rb") as first, theirs.open("rb") as second:
        while True:
            one, other = first.read(_CHUNK), second.read(_CHUNK)
            if one != other or not one:
                shorter = min(len(one), len(other))
                return at + next((i for i in range(shorter) if one[i] != other[i]), shorter)
            at += len(one)


# Training


def _prove_training(
    context: StageContext[Any],
    run: Callable[[StageContext[Any]], StageResult | None],
    store: Store,
    manifest: Manifest,
    deadline: float,
) -> Proof:
    """Repeat the first steps and compare their losses with the recorded ones."""
    started = time.time()

    def recorded(name: str) -> bytes:
        return _read(store, manifest, name)

    # A proof that was told to stop begins anew: the losses that it had compared are gone with its process.
    if context.rank == 0:
        shutil.rmtree(context.work / "checkpoints", ignore_errors=True)
    watch = _Losses(context, manifest, recorded, deadline)
    # Every step is logged, and no checkpoint is written: neither decides anything about a result.
    section = context.section.model_copy(
        update={"log_every": 1, "checkpoints": Checkpoints(every_steps=_NEVER, keep=1)}
    )
    try:
        run(replace(context, events=watch, section=section, recorded=recorded))
    except _Enough:
        _leave_process_group()
    return watch.proof(time.time() - started)


class _Losses(_Listener):
    """Compares every step's loss with what the version recorded, and ends the training after the first steps.

    A version's history holds one figure for several steps, their mean. It is taken of these steps' losses again, in the
    same way, so that its digits must be the same.
    """

    def __init__(
        self, context: StageContext[Any], manifest: Manifest, recorded: Callable[[str], bytes], deadline: float
    ) -> None:
        super().__init__(context.events)
        self._name = f"{manifest.asset} {manifest.version}"
        self._steps = min(int(manifest.metrics["steps"]), FIRST_STEPS)
        self._deadline = deadline
        self._world_size = context.world_size
        self._rollbacks = int(manifest.metrics.get("rollbacks", 0))
        history = [json.loads(line) for line in recorded(HISTORY).splitlines()]
        self._means = {int(row["step"]): float(row["loss"]) for row in history}
        self._singles: tuple[float, ...] = ()
        if FIRST_LOSSES in manifest.files:
            self._singles = FirstLosses.model_validate_json(recorded(FIRST_LOSSES)).losses
        self._losses: list[float] = []
        self._window = 0
        self._compared = self._of_several = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Compare; the values are a training's own, so they are not passed on as those of a build."""
        self._losses.append(float(values["loss"]))
        if step <= len(self._singles):
            self._compare(step, self._losses[-1], self._singles[step - 1], "")
        if step in self._means:
            window = self._losses[self._window :]
            several = f", the mean of {len(window)} steps" if len(window) > 1 else ""
            if several or step > len(self._singles):
                self._compare(step, math.fsum(window) / len(window), self._means[step], several)
                self._of_several += bool(several)
            self._window = step

        is_late = self._compared >= _FEWEST_LOSSES and time.time() > self._deadline
        if step >= self._steps or self._everyone(is_late):
            raise _Enough

    def proof(self, seconds: float) -> Proof:
        """What was compared.

        Raises:
            ProofFailed: Nothing was.
        """
        if not self._compared:
            raise ProofFailed(f"{self._name}: it recorded no loss that could be compared")
        steps = len(self._losses)
        several = f" ({self._of_several} of them means of several steps)" if self._of_several else ""
        return Proof(
            method="losses",
            compared=f"{self._compared} recorded losses of the first {steps} steps{several}, equal in every digit",
            steps=steps,
            losses=self._compared,
            seconds=seconds,
        )

    def _compare(self, step: int, ours: float, theirs: float, several: str) -> None:
        self._compared += 1
        if ours != theirs and not (math.isnan(ours) and math.isnan(theirs)):
            self._fail(step, ours, theirs, several)

    def _fail(self, step: int, ours: float, theirs: float, several: str) -> NoReturn:
        skipped = (
            f"; it went back over {self._rollbacks} divergences, and batches that it skipped are not skipped here"
            if self._rollbacks
            else ""
        )
        raise ProofFailed(
            f"{self._name}: the loss of step {step}{several} is {ours!r} with today's code, and the version recorded "
            f"{theirs!r}{skipped}"
        )

    def _everyone(self, is_late: bool) -> bool:
        """What the first rank says: clocks differ, and all ranks must end at the same step."""
        if self._world_size == 1:
            return is_late
        import torch

        answer = [is_late]
        torch.distributed.broadcast_object_list(answer, src=0)
        return answer[0]


def _read(store: Store, manifest: Manifest, name: str) -> bytes:
    """A file of a version, compared with its manifest; the other files of a large model need not be fetched."""
    entry = manifest.files.get(name)
    if entry is None:
        raise InputRefused(f"{manifest.asset} {manifest.version} has no file {name} to compare with")
    data = b"".join(store.storage.chunks(store.place(manifest.asset, manifest.version) / name))
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputRefused(
            f"{manifest.asset} {manifest.version}: {name} has changed since it was published; {store.remake(manifest)}"
        )
    return data


def _leave_process_group() -> None:
    """A training that was ended leaves it open, and torch warns about that at exit."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
