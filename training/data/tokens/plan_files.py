"""The packing plans of a training on disk: made once, and mapped by every process that reads rows.

::

    plans.json               the phases with their order, size and SHA-256 of every file, a checksum of itself
    0000/row_offsets.npy     unsigned [rows + 1]; row r holds the pieces `row_offsets[r] : row_offsets[r + 1]`
    0000/document.npy        unsigned [pieces], number of the document
    0000/start.npy           unsigned [pieces], first token within the document, in rows' worth of tokens
    0000/length.npy          unsigned [pieces], tokens

Each array has 16 bits where they are enough, and else 32. A piece begins a whole number of rows' worth of tokens after
the beginning of its document. The one document that an earlier phase has begun is the exception: its pieces have an
offset, which plans.json holds.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from training.data.tokens.order import RowOrder
from training.data.tokens.packing import Packing, PackingPlan, Pieces
from training.data.tokens.passes import Keep, PhaseRows, Portion
from training.data.tokens.shards import Int64, ranges, unsigned_dtype
from training.errors import StoreError
from training.specs.artifacts import FileEntry
from training.specs.base import Spec, canonical_json, digest_of
from training.store.storage import fsync, write_durably
from training.store.store import file_entry

_RECORD = "plans.json"
_MEANINGS = {
    "row_offsets": "its pieces",
    "document": "the numbers of its documents",
    "start": "where a piece begins in its document",
    "length": "the tokens of a piece",
}
Make = Callable[[Keep], tuple[PhaseRows, ...]]
Unsigned = npt.NDArray[np.unsignedinteger]


class _Plan(Spec):
    """One plan of `plans.json`.

    Attributes:
        used: Places of the rows that hold a token.
        begun: Document that an earlier phase has begun, and the tokens by which its pieces are shifted.
    """

    context: int
    rows: int
    tokens: int
    used: int
    begun: tuple[int, int]


class _Portion(Spec):
    """`passes.Portion` with the number of its plan."""

    first: int
    plan: int
    key: int
    epoch: int


class _Phase(Spec):
    """`passes.PhaseRows`."""

    context: int
    row_counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    portions: tuple[tuple[_Portion, ...], ...]


class _Plans(Spec):
    """`plans.json`.

    Attributes:
        made_for: Digest of all that decides about the plans.
        checksum: Digest of everything else.
    """

    made_for: str
    phases: tuple[_Phase, ...]
    plans: tuple[_Plan, ...]
    files: dict[str, FileEntry]
    checksum: str = ""

    def sealed(self) -> _Plans:
        """With its checksum."""
        return self.model_copy(update={"checksum": digest_of(self.model_copy(update={"checksum": ""}))})


@dataclass(frozen=True)
class MappedPlan:
    """A plan whose arrays stay on disk; as `packing.Packing`."""

    record: _Plan
    row_offsets: Unsigned
    document: Unsigned
    start: Unsigned
    length: Unsigned

    @property
    def context(self) -> int:
        """As `Packing.context`."""
        return self.record.context

    @property
    def rows(self) -> int:
        """As `Packing.rows`."""
        return self.record.rows

    @property
    def tokens(self) -> int:
        """As `Packing.tokens`."""
        return self.record.tokens

    @property
    def efficiency(self) -> float:
        """As `Packing.efficiency`."""
        return self.record.used / (self.rows * self.context) if self.rows else 1.0

    def pieces(self, indices: Int64) -> Pieces:
        """As `Packing.pieces`."""
        first = self.row_offsets[indices].astype(np.int64)
        counts = self.row_offsets[indices + 1].astype(np.int64) - first
        places = ranges(first, counts)

        document = self.document[places].astype(np.int64)
        start = self.start[places].astype(np.int64) * (self.context - 1)
        begun, shift = self.record.begun
        start[document == begun] += shift
        return Pieces(counts, document, start, self.length[places].astype(np.int64))


def kept_phases(folder: Path, made_for: str, make: Make) -> tuple[PhaseRows, ...]:
    """The phases of a training from their files, which the first process that asks for them makes.

    Every process of the job calls it. One makes the files, and the others wait for it. Files that are damaged, or were
    made for something else, are made again.

    Args:
        folder: Where they are kept.
        made_for: Digest of all that decides about them.
        make: Packs the training; gets what is to be called with each plan.

    Raises:
        InputRefused: A document or a plan is larger than 32 bits can count.
        StoreError: The files cannot be read after they were written.
    """
    phases = _read(folder, made_for)
    if phases is not None:
        return phases

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        phases = _read(folder, made_for)  # another process may have made them meanwhile
        if phases is None:
            _make(folder, made_for, make)
            phases = _read(folder, made_for)
    if phases is None:
        raise StoreError(f"{folder}: what was written is not what can be read; check the disk, and start the job again")
    return phases


def _make(folder: Path, made_for: str, make: Make) -> None:
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir()

    writer = _Writer(unfinished)
    writer.finish(made_for, make(writer.keep))
    try:
        unfinished.rename(folder)
    except OSError:
        # Where the file system has no locks, a process on another node may have made them at the same time.
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)
    fsync(folder.parent)


class _Writer:
    """Writes plans as they are made, so that only one of them is in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plans: list[_Plan] = []
        self._mapped: list[Packing] = []
        self._files: dict[str, FileEntry] = {}

    def keep(self, packing: PackingPlan) -> Packing:
        """Write a plan; return it as it lies on disk."""
        place = self._folder / _name(len(self._plans))
        place.mkdir()
        start, begun = _in_rows_worth(packing)
        arrays = {
            "row_offsets": (packing.row_offsets, len(packing.length)),
            "document": (packing.document, _largest(packing.document)),
            "start": (start, _largest(start)),
            "length": (packing.length, packing.context - 1),
        }
        for name, (values, most) in arrays.items():
            what = f"a plan of rows of {packing.context} tokens: {_MEANINGS[name]}"
            path = place / f"{name}.npy"
            np.save(path, values.astype(unsigned_dtype(most, what)))
            fsync(path)
            self._files[f"{place.name}/{path.name}"] = file_entry(path)

        record = _Plan(
            context=packing.context, rows=packing.rows, tokens=packing.tokens, used=packing.used, begun=begun
        )
        self._plans.append(record)
        self._mapped.append(_map(place, record))
        return self._mapped[-1]

    def finish(self, made_for: str, phases: tuple[PhaseRows, ...]) -> None:
        """Write plans.json, the last of the files."""
        numbers = {id(packing): number for number, packing in enumerate(self._mapped)}
        written = tuple(
            _Phase(
                context=phase.context,
                row_counts=phase.order.row_counts,
                weights=phase.order.weights,
                seed=phase.order.seed,
                portions=tuple(
                    tuple(
                        _Portion(
                            first=portion.first,
                            plan=numbers[id(portion.packing)],
                            key=portion.key,
                            epoch=portion.epoch,
                        )
                        for portion in portions
                    )
                    for portions in phase.portions
                ),
            )
            for phase in phases
        )
        record = _Plans(made_for=made_for, phases=written, plans=tuple(self._plans), files=self._files).sealed()
        write_durably(self._folder / _RECORD, canonical_json(record.model_dump(mode="json")).encode())


def _in_rows_worth(packing: PackingPlan) -> tuple[Int64, tuple[int, int]]:
    """Where every piece begins, in rows' worth of tokens, and which document's pieces are shifted by how much."""
    start, shift = np.divmod(packing.start, packing.context - 1)
    shifted = np.flatnonzero(shift)
    if not len(shifted):
        return start, (0, 0)

    begun = int(packing.document[shifted[0]]), int(shift[shifted[0]])
    of_begun = packing.document == begun[0]
    assert (shift == np.where(of_begun, begun[1], 0)).all(), "more than one document was begun by an earlier phase"
    return start, begun


def _largest(values: Int64) -> int:
    return int(values.max()) if len(values) else 0


def _read(folder: Path, made_for: str) -> tuple[PhaseRows, ...] | None:
    """The phases; None where they are missing, damaged or made for something else."""
    try:
        record = _Plans.model_validate_json((folder / _RECORD).read_bytes())
        is_good = record.made_for == made_for and record.sealed() == record
        if not is_good or any(file_entry(folder / name) != entry for name, entry in record.files.items()):
            return None
    except (OSError, ValidationError):
        return None

    plans = [_map(folder / _name(number), plan) for number, plan in enumerate(record.plans)]
    return tuple(
        PhaseRows(
            phase.context,
            RowOrder(phase.row_counts, phase.weights, phase.seed),
            tuple(
                tuple(Portion(portion.first, plans[portion.plan], portion.key, portion.epoch) for portion in portions)
                for portions in phase.portions
            ),
        )
        for phase in record.phases
    )


def _name(number: int) -> str:
    return f"{number:04d}"


def _map(place: Path, record: _Plan) -> MappedPlan:
    arrays: list[Unsigned] = [np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _MEANINGS]
    return MappedPlan(record, *arrays)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            # A file system without locks: the work may be done twice, and the files are whole all the same.
        yield
