"""What the four training sections share: optimizer, schedule, precision, checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

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
    """When a checkpoint is written and how many are kept. Never changes the result, so it is left out of identity."""

    every_steps: int = Field(50, gt=0)
    keep: int = Field(2, gt=0)


class TrainingSection(Spec):
    """What every training stage has."""

    optimizer: Optimizer
    precision: Precision = "bf16"
    kernels: Kernels = "auto"
    checkpoints: Checkpoints = Checkpoints()
    log_every: int = Field(5, gt=0, description="Steps between two logged metrics.")

    def identity_fields(self) -> dict[str, Any]:
        """All fields but those that only decide what is written down on the way."""
        return self.model_dump(mode="json", exclude={"checkpoints", "log_every"})
