"""The one DeepSpeed configuration of all four trainers, and DeepSpeed's start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from training.specs.execution import Execution
from training.specs.optimization import TrainingSection


def build(section: TrainingSection, execution: Execution, accumulation: int, world_size: int) -> dict[str, Any]:
    """The configuration DeepSpeed starts from.

    Weights stay in fp32, and for bf16 and fp8 the forward pass runs under bf16 autocast. So the sum of the gradients
    over micro-batches is fp32 at every ZeRO stage; DeepSpeed's own bf16 mode sums them in bf16 at ZeRO 0.

    Args:
        section: Precision and clipping.
        execution: ZeRO stage.
        accumulation: Micro-batches per rank and optimizer step.
        world_size: Ranks.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # one whole micro-batch of packed rows counts as one sample
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world_size,
        "gradient_clipping": section.optimizer.clip_norm,
        "zero_optimization": {
            "stage": execution.zero_stage,
            "overlap_comm": False,  # overlapping buckets may sum in another order from run to run
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        # No module counts as safe in bf16 for communication: ZeRO 3 on several ranks otherwise gathers some weights
        # rounded to bf16 in training and unrounded after a resume (a tied embedding, for one), and the two differ.
        "torch_autocast": {
            "enabled": section.precision != "fp32",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31 - 1,  # never: events show the progress
        "wall_clock_breakdown": False,
    }


def initialize(device: torch.device) -> None:
    """Join DeepSpeed to torch's process group; on a CPU without its shared-memory collectives.

    DeepSpeed compiles these with g++ at their first use, which takes 45 to 75 s and a compiler. They serve tensor
    parallel inference; gloo does everything that training asks for. `TorchBackend` builds an operator only if
    `deepspeed.ops.__compatible_ops__` lists it. That table is filled when it is first read, by running the compiler; an
    empty table, set before that, means "none".
    """
    with _without_mlflow():
        import deepspeed
        import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


@contextmanager
def undivided(configuration: Any) -> Iterator[None]:
    """Use a model before DeepSpeed has divided it.

    As soon as a ZeRO 3 configuration exists, TRL and transformers take every weight for a fragment. Before training
    starts, all of them are whole.

    Args:
        configuration: `hf_deepspeed_config` of the training arguments.
    """
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(configuration)


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Hide MLflow from DeepSpeed's autotuner. Importing it takes 1.7 s of each job's start, and no job needs it."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        yield
    finally:
        del sys.modules["mlflow"]
