"""What the four training sections share: optimizer, schedule, precision, checkpoints."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from training.specs.base import Spec

Precision = Literal["fp32", "bf16", "fp8"]
Kernels = Literal["auto", "torch", "liger"]


class Optimizer(Spec):
    """AdamW with warm-up and a decay to a share of the peak rate."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    warmup_steps: int = Field(20, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = Field(0.1, ge=0, le=1, description="Final learning rate over the peak.")
    clip_norm: float = Field(1.0, gt=0)


class Checkpoints(Spec):
    """When a checkpoint is written and which are kept. It never changes the result, so identity leaves it out."""

    every_steps: int = Field(50, gt=0)
    keep: int = Field(2, gt=0, description="The newest ones: what a killed job goes on from. They go when it is done.")
    keep_every: int | None = Field(None, gt=0, description="Beside these, for good: one at each multiple of this.")
    keep_best: int = Field(
        0,
        ge=0,
        description="Beside these, for good: so many with the lowest mean training loss since the checkpoint before.",
    )

    def for_good(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good, whatever its loss."""
        return self.keep_every is not None and step % self.keep_every == 0

    def written(self, steps: int) -> int:
        """Number of checkpoints that are written in so many steps."""
        if self.keep_every is None:
            return steps // self.every_steps

        both = steps // math.lcm(self.every_steps, self.keep_every)
        return steps // self.every_steps + steps // self.keep_every - both

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after a step."""
        return step % self.every_steps == 0 or self.for_good(step)


class Divergence(Spec):
    """What happens when the loss is not finite any more, or leaps.

    A rollback skips the batches of the last steps, as in the training of PaLM (Chowdhery et al., 2022, section 5.1). It
    goes back to a checkpoint from before them and continues with the data after them. The result depends on this rule
    and the seed, not on when checkpoints were written.
    """

    action: Literal["stop", "rollback"] = "stop"
    spike: float | None = Field(
        None,
        gt=1,
        description="A loss above this many times the median of the last `window` "
        "losses is a leap; none is looked for by default.",
    )
    window: int = Field(50, gt=1)
    skip: int = Field(8, gt=0, description="Steps whose batches a rollback skips, the bad one being the last.")
    max_rollbacks: int = Field(3, gt=0, description="One more stops the job.")


class TrainingSection(Spec):
    """The settings that every training stage has."""

    steps: int = Field(gt=0, description="Optimizer steps.")
    optimizer: Optimizer
    precision: Precision = "bf16"
    kernels: Kernels = "auto"
    divergence: Divergence = Divergence()
    checkpoints: Checkpoints = Checkpoints()
    log_every: int = Field(5, gt=0, description="Steps between two logged metrics.")

    @property
    def is_trained(self) -> bool:
        """Whether the stage trains."""
        return True

    @model_validator(mode="after")
    def _fits_the_steps(self) -> Self:
        problems = []
        if not self.steps:  # a model that is imported as it is, or whose steps follow from its parameters
            return self
        if self.optimizer.warmup_steps >= self.steps:
            problems.append(
                f"optimizer.warmup_steps: {self.optimizer.warmup_steps} is not below steps, {self.steps}: "
                "the learning rate would never reach its peak"
            )
        kept = self.checkpoints.keep_every
        if kept is not None and kept >= self.steps:
            problems.append(
                f"checkpoints.keep_every: {kept} is not below steps, {self.steps}: no checkpoint would be "
                "kept, and the last step's weights are the model itself"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def identity_fields(self) -> dict[str, Any]:
        """All fields but those of checkpoints and logs, which do not change the result."""
        return self.model_dump(mode="json", exclude={"checkpoints", "log_every"})
