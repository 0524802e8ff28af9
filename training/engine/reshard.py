"""Resuming under another number of processes: ZeRO's shards are written anew for it.

By way of DeepSpeed's universal checkpoints (Lian et al., 2024, "Universal Checkpointing: Efficient and Flexible
Checkpointing for Large Scale Distributed Training").
"""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from training.engine.checkpoints import Checkpoint
from training.engine.runtime import Runtime

_STEP_FOLDERS = "global_step*"


def needs_resharding(checkpoint: Checkpoint, runtime: Runtime) -> bool:
    """Whether a checkpoint's shards are for another number of processes; without ZeRO there are no shards."""
    return checkpoint.processes != runtime.world_size and runtime.zero_stage > 0


def reshard_to(checkpoint: Checkpoint, target: Path) -> None:
    """Write a checkpoint's states in a form that any number of processes can load; one process must call it.

    Args:
        checkpoint: A verified checkpoint.
        target: Folder to resume from, made anew.
    """
    from deepspeed.checkpoint import ds_to_universal

    # Everything but the shards stays as it is; the shards' folder keeps its name, which DeepSpeed looks for.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoint.folder, target, ignore=shutil.ignore_patterns(_STEP_FOLDERS))
    (shards,) = checkpoint.folder.glob(_STEP_FOLDERS)

    with redirect_stdout(io.StringIO()):  # the converter prints its progress
        ds_to_universal.main(
            Namespace(
                input_folder=str(shards),
                output_folder=str(target / shards.name),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def expect_resharded_states(trainer: Trainer) -> None:
    """Have DeepSpeed load such states when training begins."""
    trainer.args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}


def fix_loaded_optimizer(engine: Any, folder: Path) -> None:
    """Undo two mistakes of DeepSpeed 0.19.8 in loading resharded states at ZeRO 3.

    It gives every parameter group the settings of the first one, so that the norms get a weight decay. And it gives all
    parameters one and the same step counter, which each of them then counts up. Does nothing for other states.

    Args:
        engine: DeepSpeed's, after it has loaded.
        folder: What it loaded.
    """
    if not engine.load_universal_checkpoint() or not engine.zero_optimization_partition_weights():
        return
    (states,) = folder.glob(f"{_STEP_FOLDERS}/zero/optimizer_state.pt")
    saved = torch.load(states, weights_only=False)["param_groups"]  # `reshard_to` wrote it, from verified files
    optimizer = engine.optimizer.optimizer

    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group |= {name: value for name, value in settings.items() if name != "params"}
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()
