"""Losses that are not finite or leap, and the batches that a rollback skips."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.engine.batches import Batch, Batches
from training.errors import StoreError
from training.specs.optimization import Divergence
from training.store.storage import write_durably

_FILE = "rollbacks.json"


def what_is_wrong(losses: Sequence[float], gradient_norm: float, rule: Divergence) -> str | None:
    """Why the last step of a run is a divergence, or None.

    A gradient that is not finite is one too. At ZeRO 0 it spoils the weights; at the other stages DeepSpeed leaves the
    step out and says nothing.

    Args:
        losses: Mean loss of every step, the last one included.
        gradient_norm: Norm of the last step's gradient, before clipping.
        rule: The recipe's.
    """
    last = losses[-1]
    if not math.isfinite(last):
        return f"the loss became {last}"
    if not math.isfinite(gradient_norm):
        return f"the gradient's norm became {gradient_norm}"

    before = losses[-1 - rule.window : -1]
    if rule.spike is None or len(before) < rule.window:
        return None
    usual = statistics.median(before)
    if usual <= 0 or last <= rule.spike * usual:
        return None
    return f"the loss leapt to {last:.4g}, {last / usual:.3g} times the median of the {rule.window} before"


@dataclass(frozen=True)
class Rollbacks:
    """The rollbacks of one job, kept in its attempt folder.

    Attributes:
        skipped: Numbers of the skipped batches, ascending. Without rollbacks step `n` trains on batch `n`.
        count: How often the job went back.
    """

    folder: Path
    skipped: tuple[int, ...] = ()
    count: int = 0

    @classmethod
    def read(cls, folder: Path) -> Rollbacks:
        """Those of earlier starts of the job.

        Raises:
            StoreError: The record is damaged.
        """
        path = folder / _FILE
        if not path.exists():
            return cls(folder)
        try:
            record = json.loads(path.read_text())
            return cls(folder, tuple(int(number) for number in record["skipped"]), int(record["count"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}); delete {folder} to train from the start") from error

    def batch_of(self, step: int) -> int:
        """Number of the batch that a step trains on."""
        batch = step
        for skipped in self.skipped:
            if skipped <= batch:
                batch += 1
        return batch

    def skip(self, batches: Sequence[int]) -> None:
        """Write down, for the next start of the job, that it went back once more and skips these batches."""
        record = {"count": self.count + 1, "skipped": sorted({*self.skipped, *batches})}
        partial = self.folder / f".{_FILE}"
        write_durably(partial, json.dumps(record).encode())
        os.replace(partial, self.folder / _FILE)


@dataclass(frozen=True)
class SkippingBatches:
    """Batches without those that rollbacks skip."""

    whole: Batches
    rollbacks: Rollbacks

    @property
    def steps(self) -> int:
        """Optimizer steps; what is skipped does not count."""
        return self.whole.steps

    @property
    def accumulation(self) -> int:
        """As of the whole."""
        return self.whole.accumulation

    @property
    def micro_tokens(self) -> int:
        """As of the whole."""
        return self.whole.micro_tokens

    def smaller(self) -> int | None:
        """As of the whole."""
        return self.whole.smaller()

    def micro_batch(self, step: int, micro: int, rank: int) -> Batch:
        """As of the whole, of the step's own batch."""
        return self.whole.micro_batch(self.rollbacks.batch_of(step), micro, rank)

    def tokens_before(self, step: int) -> int:
        """Tokens that were learned from, without those of skipped batches."""
        batch = self.rollbacks.batch_of(step)
        lost = sum(
            self.whole.tokens_before(number + 1) - self.whole.tokens_before(number)
            for number in self.rollbacks.skipped
            if number < batch
        )
        return self.whole.tokens_before(batch) - lost

    def longest(self, pad: int | None = None) -> Batch:
        """As of the whole."""
        return self.whole.longest(pad)
