"""Where and how a job runs; never part of an artifact's identity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.specs.base import Spec
from training.specs.kinds import kind_of


class Execution(Spec):
    """The layout of one job's processes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = Field(1, gt=0, description="Ranks; above 1 they are started by torchrun.")
    threads: int | None = Field(None, gt=0, description="CPU threads per rank; all cores shared evenly by default.")
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_tokens: int = Field(
        8192, gt=0, description="Tokens per rank and forward pass; the rest of the batch is gradient accumulation."
    )
    ray: str | None = Field(
        None,
        min_length=1,
        description="Address of a Ray cluster that works on the parts of data stages, or `auto`; its nodes share the "
        "folders of attempts, store and sources.",
    )
    memory_megabytes: int = Field(
        2_000, ge=500, description="What each process of a data stage may allocate; there is one for each thread."
    )


class Launcher(Spec):
    """One entry of launchers.yaml."""

    kind: Literal["local"] = "local"
    grace_seconds: float = Field(20, gt=0, description="Time between SIGTERM and SIGKILL.")
    default: Execution = Execution()
    stages: dict[str, Execution] = Field({}, description="Asset name to its own layout.")

    def execution(self, asset: str) -> Execution:
        """The layout for an asset's job; a listed adapter without one of its own has that of `lora_model`."""
        return self.stages.get(asset) or self.stages.get(kind_of(asset), self.default)
