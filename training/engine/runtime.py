"""The process a training job runs in: device, threads, process group, random numbers."""

from __future__ import annotations

import os
import random
import socket
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore

from training.errors import RecipeError
from training.job.parts import available_cores
from training.specs.execution import Execution

# Keeps training's random numbers apart from those of the data's order, which are seeded with the recipe's seed itself.
_TRAINING_SEED = 0x6A7E


@dataclass(frozen=True)
class Runtime:
    """Where this rank computes.

    Attributes:
        device: `cpu` or this rank's own GPU.
        threads: CPU threads of this rank.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3.
    """

    device: torch.device
    threads: int
    rank: int
    world_size: int
    zero_stage: int

    @property
    def layout(self) -> str:
        """The layout in words, such as `1 process x 2 threads on cpu, ZeRO 0`."""
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{processes} x {threads} on {self.device.type}, ZeRO {self.zero_stage}"


def start(execution: Execution, rank: int, world_size: int, seed: int) -> Runtime:
    """Set this process up for training; call it before anything imports DeepSpeed.

    Args:
        execution: The launcher's layout.
        rank: This process's.
        world_size: Number of ranks.
        seed: The job's.

    Raises:
        RecipeError: The launcher asks for a GPU that this machine does not have.
    """
    device = _device(execution)
    threads = execution.threads or max(1, available_cores() // max(1, execution.processes))
    torch.set_num_threads(threads)

    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed reads it once, when it is imported
    _default_environment(rank, world_size)
    _deterministic(device)
    seed_everything(seed, rank)
    _join_process_group(device, rank, world_size)
    return Runtime(device, threads, rank, world_size, execution.zero_stage)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; ranks differ, so that dropout does not repeat the same mask on every rank."""
    mixed = (seed * 1_000_003 + _TRAINING_SEED + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def stop() -> None:
    """Leave the process group; without it torch warns about leaked resources at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _device(execution: Execution) -> torch.device:
    kind = execution.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")

    if not torch.cuda.is_available():
        raise RecipeError(
            "launchers.yaml asks for device cuda, and torch sees no GPU on this machine; use device cpu or auto"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise RecipeError(
            f"launchers.yaml asks for {execution.processes} processes, and this machine has "
            f"{torch.cuda.device_count()} GPUs; lower processes"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _default_environment(rank: int, world_size: int) -> None:
    """Set the variables that torchrun would have set; DeepSpeed looks for MPI when one of them is missing."""
    os.environ.setdefault("RANK", str(rank))
    os.environ.setdefault("LOCAL_RANK", str(rank))
    os.environ.setdefault("WORLD_SIZE", str(world_size))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(world_size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    if world_size == 1:  # gloo otherwise looks the machine's own name up, which fails on many laptops
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


def _deterministic(device: torch.device) -> None:
    """Choose deterministic kernels. An operation without one only warns: an error would make its models impossible."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module property


def _join_process_group(device: torch.device, rank: int, world_size: int) -> None:
    if torch.distributed.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size == 1:  # no peer: a store in memory needs no port
        torch.distributed.init_process_group(backend, store=HashStore(), rank=rank, world_size=1)
    else:
        torch.distributed.init_process_group(backend, rank=rank, world_size=world_size)
