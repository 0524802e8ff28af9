"""What counts as a divergence, and which batches a rollback skips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.engine.divergence import Rollbacks, SkippingBatches, what_is_wrong
from training.engine.trainer import Plan, StepOrdered
from training.errors import RecipeError, StoreError
from training.specs.optimization import Divergence, Optimizer

RULE = Divergence(spike=2.0, window=4)


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([1.0, math.nan], "the loss became nan"),
        ([math.inf], "the loss became inf"),
        ([1.0, 1.0, 1.0, 1.0, 2.1], "the loss leapt to 2.1, 2.1 times the median of the 4 before"),
        ([9.0, 1.0, 1.0, 1.0, 1.0, 2.1], "the loss leapt"),
        ([1.0, 1.0, 1.0, 1.0, 2.0], None),
        ([1.0, 1.0, 1.0, 9.0], None),  # too few to tell
        ([5.0, 5.0, 1.0, 1.0, 5.0], None),
        ([0.0, 0.0, 0.0, 0.0, 1.0], None),  # nothing to compare with
    ],
)
def test_what_is_wrong(losses: list[float], wrong: str | None) -> None:
    found = what_is_wrong(losses, 1.0, RULE)
    assert found == wrong if wrong is None else found is not None and found.startswith(wrong)


def test_no_leap_is_looked_for_by_default() -> None:
    assert what_is_wrong([1.0] * 100 + [1e9], 1.0, Divergence()) is None


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_a_divergence(norm: float) -> None:
    assert what_is_wrong([1.0], norm, Divergence()) == f"the gradient's norm became {norm}"


@pytest.mark.parametrize("norm", [math.inf, torch.tensor(math.nan)])
def test_the_trainer_looks_at_every_gradient(norm: Any) -> None:
    trainer = StepOrdered.__new__(StepOrdered)
    section = SimpleNamespace(divergence=Divergence(), optimizer=Optimizer(learning_rate=1))
    trainer.plan = Plan(None, section, SimpleNamespace(world_size=1), None, Rollbacks(Path()), 0, float)
    trainer.losses, trainer.clipped, trainer._pending = [], 0, [torch.tensor(2.0), torch.tensor(1.5)]
    trainer.gradient_norms = [torch.tensor(0.5), norm]
    with pytest.raises(RecipeError, match=r"the gradient's norm became (inf|nan) at step 2, so training stopped"):
        trainer.collect_losses()


def test_rollbacks_are_kept_and_add_up(tmp_path: Path) -> None:
    first = Rollbacks.read(tmp_path)
    assert [first.batch_of(step) for step in range(4)] == [0, 1, 2, 3]
    first.skip([2, 3])
    second = Rollbacks.read(tmp_path)
    assert [second.batch_of(step) for step in range(5)] == [0, 1, 4, 5, 6]
    second.skip([second.batch_of(step) for step in (2, 3)])
    third = Rollbacks.read(tmp_path)
    assert (third.count, third.skipped) == (2, (2, 3, 4, 5))
    assert [third.batch_of(step) for step in range(4)] == [0, 1, 6, 7]


def test_a_damaged_record_stops_the_job(tmp_path: Path) -> None:
    (tmp_path / "rollbacks.json").write_text('{"count": 1}')
    with pytest.raises(StoreError, match=r"rollbacks\.json is damaged"):
        Rollbacks.read(tmp_path)


@dataclass(frozen=True)
class Numbered:
    """Batch `n` holds the number n and n + 1 tokens."""

    steps: int = 10
    accumulation: int = 1
    micro_tokens: int = 1

    def smaller(self) -> int | None:
        return None

    def micro_batch(self, step: int, micro: int, rank: int) -> dict[str, torch.Tensor]:
        return {"number": torch.tensor(step)}

    def tokens_before(self, step: int) -> int:
        return step * (step + 1) // 2

    def longest(self, pad: int | None = None) -> dict[str, torch.Tensor]:
        return {"number": torch.tensor(self.steps), "pad": torch.tensor(pad or 0)}


def test_skipped_batches_are_neither_read_nor_counted(tmp_path: Path) -> None:
    batches = SkippingBatches(Numbered(), Rollbacks(tmp_path, (2, 3), 1))
    read = [int(batches.micro_batch(step, 0, 0)["number"]) for step in range(5)]
    assert read == [0, 1, 4, 5, 6]
    assert int(batches.longest(pad=-1)["pad"]) == -1  # the export's probe asks for it after a rollback too
    assert [batches.tokens_before(step) for step in range(5)] == [0, 1, 1 + 2, 1 + 2 + 5, 1 + 2 + 5 + 6]
