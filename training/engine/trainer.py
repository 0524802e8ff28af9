"""What the four trainers share: arguments, ordered data, schedule, exact losses, checkpoints.

transformers' Trainer runs the loop and DeepSpeed the optimizer. This module decides what they read, what they keep and
what they write.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from lmkernels import Overflows
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from training.engine import deepspeed_config, reshard
from training.engine.batches import SHARE, SOURCE_TOKENS, Batch, Batches, loader
from training.engine.checkpoints import CheckpointFolder
from training.engine.divergence import Rollbacks, what_is_wrong
from training.engine.runtime import Runtime
from training.engine.schedule import rate_factor
from training.errors import RecipeError
from training.job.outcome import JobOutcome, RestartRequested
from training.specs.execution import Execution
from training.specs.optimization import TrainingSection

PROGRESS_FILE = "progress.json"
_STATE_FILE = "trainer_state.json"
_RATES = ("A_log", "A", "D")
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos")  # of torch.save's error on a full disk


@dataclass(frozen=True)
class Plan:
    """What a trainer needs beside its model.

    Attributes:
        batches: The data of the whole run, without the batches that `rollbacks` skip.
        rollbacks: The rollbacks of earlier starts of the job.
        first_step: Step at which this process begins; above 0 after a resume.
        flops_per_token: Training FLOPs per token at a context length.
    """

    batches: Batches
    section: TrainingSection
    runtime: Runtime
    checkpoints: CheckpointFolder
    rollbacks: Rollbacks
    first_step: int
    flops_per_token: Callable[[int], float]


def arguments(
    section: TrainingSection, execution: Execution, runtime: Runtime, batches: Batches, seed: int, work: Path
) -> dict[str, Any]:
    """Arguments for `TrainingArguments` and TRL's descendants of it.

    Args:
        section: The recipe's.
        execution: ZeRO stage.
        runtime: Where this rank computes.
        batches: Their number of steps and their accumulation.
        seed: The job's.
        work: The attempt's folder.
    """
    optimizer = section.optimizer
    fused = execution.zero_stage == 0 or runtime.device.type == "cuda"
    return {
        "output_dir": str(work / "trainer"),
        "deepspeed": deepspeed_config.build(section, execution, batches.accumulation, runtime.world_size),
        "use_cpu": runtime.device.type == "cpu",
        "max_steps": batches.steps,
        "per_device_train_batch_size": 1,  # the loader hands out whole micro-batches
        "gradient_accumulation_steps": batches.accumulation,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.epsilon,
        "max_grad_norm": optimizer.clip_norm,
        "optim": "adamw_torch_fused" if fused else "adamw_torch",
        "bf16": False,  # DeepSpeed's autocast does it
        "average_tokens_across_devices": True,  # the loss is a mean over the tokens of all ranks
        "ignore_data_skip": True,  # the loader begins at the right step by itself
        "seed": seed % 2**32,  # NumPy takes no larger one; `runtime.seed_everything` mixes all of it
        "logging_strategy": "steps",
        "logging_steps": section.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "save_strategy": "no",  # `Checkpointer` asks for checkpoints
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,  # the batches hold nothing but the model's inputs
    }


class StepOrdered(Trainer):  # type: ignore[misc]  # transformers is untyped
    """A Trainer, and a mixin before TRL's descendants of it.

    Data is a function of the step; every step's loss is kept; checkpoints are published whole. Call `prepare` before
    `train`. One optimizer step, on every rank:

    1. `get_train_dataloader` hands out `accumulation` micro-batches, int64 [rows, context] each.
    2. `training_step` runs forward and backward on each; its loss is already divided by the tokens of the whole batch.
    3. DeepSpeed sums the gradients over the ranks, clips their norm, and takes a step of AdamW.
    4. `create_scheduler`'s schedule sets the next step's rate.
    5. `_AfterStep` keeps the gradient's norm, and `Checkpointer` decides whether this step is logged and saved.
    6. `log`, every `log_every` steps: `collect_losses` moves the losses off the device and looks for a divergence.
    7. `_save_checkpoint`, where one is due; it is published in a thread while training goes on.

    Attributes:
        losses: Mean loss of every step so far, over all ranks; those before a resume included.
        clipped: Steps whose gradient was clipped.
        gradient_norms: Norms of the steps whose losses were not collected yet.
        source_names: Names of the sources whose tokens are counted; none by default.
        source_tokens: Tokens that were learned from each source, of all ranks and of the steps before a resume, as they
            were counted last.
        overflows: Counts FP8 products that are not finite, of this process and this rank.
        earlier_overflows: The same of all ranks before a resume.
        checkpoint_seconds: Seconds that training waited for checkpoints.
    """

    plan: Plan
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    losses: list[float]
    clipped: int
    gradient_norms: list[Any]
    source_names: tuple[str, ...] = ()
    source_tokens: tuple[int, ...]
    overflows: Overflows
    earlier_overflows: int
    checkpoint_seconds: float
    _saved_step: int
    _logged: tuple[int, int]  # steps and clipped ones, up to the last log
    _earlier_source_tokens: torch.Tensor  # before a resume, of all ranks; int64 [sources]
    _own_source_tokens: torch.Tensor  # since then, of this rank; int64 [sources]
    _pending: list[torch.Tensor]  # losses of steps that are still on the device, float32 [] each
    _step_loss: torch.Tensor | None  # sum of the micro-batches' shares of the current step's loss

    def prepare(self, plan: Plan) -> None:
        """Give the trainer its plan, and set its counts to those of a run that has not begun."""
        self.plan = plan
        self.losses, self.gradient_norms = [], []
        self.clipped = 0
        self._logged = (0, 0)
        self.source_tokens = (0,) * len(self.source_names)
        self._earlier_source_tokens = torch.zeros(len(self.source_names), dtype=torch.int64)
        self._own_source_tokens = torch.zeros(len(self.source_names), dtype=torch.int64)
        self.overflows, self.earlier_overflows = Overflows(self.model), 0
        self._pending = []
        self._step_loss = None
        self._saved_step = plan.first_step
        self.checkpoint_seconds = 0.0

        self.remove_callback(PrinterCallback)
        self.add_callback(_AfterStep(self))

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """This rank's micro-batches from the first step on; accelerate must neither shard nor replay them."""
        return loader(self.plan.batches, self.plan.first_step, self.plan.runtime.rank)

    def create_scheduler(
        self,
        num_training_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's schedule, the same for every trainer; see `training.engine.schedule`."""
        if self.lr_scheduler is None:
            factor = partial(rate_factor, self.plan.section.optimizer, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the matrices: those of the Trainer's own choice, without biases and norms, for which `is_matrix`."""
        chosen = set(super().get_decay_parameter_names(model))
        return [name for name, parameter in model.named_parameters() if name in chosen and is_matrix(name, parameter)]

    def floating_point_ops(self, inputs: Batch) -> int:
        """FLOPs of forward and backward over a micro-batch."""
        ids = inputs["input_ids"]
        return int(ids.numel() * self.plan.flops_per_token(ids.shape[1]))

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss, float [], stays on the device."""
        source_tokens = inputs.pop(SOURCE_TOKENS, None)
        # Looking at every layer's result costs a pass over it, so only the steps that are logged are looked at.
        self.overflows.active = (self.state.global_step + 1) % self.plan.section.log_every == 0
        share: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.overflows.active = False
        if source_tokens is not None:
            self._own_source_tokens += source_tokens.cpu()

        self._step_loss = share.clone() if self._step_loss is None else self._step_loss + share
        if self.accelerator.sync_gradients:
            self._pending.append(self._step_loss.float())
            self._step_loss = None
        return share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the mean loss over all ranks and the share of clipped steps since the last log."""
        fresh = self.collect_losses()
        if fresh and "loss" in logs:
            logs["loss"] = math.fsum(fresh) / len(fresh)
            steps, clipped = self._logged
            self._logged = len(self.losses), self.clipped
            logs["clipped_share"] = (self.clipped - clipped) / (len(self.losses) - steps)
            if len(self.source_names) > 1:
                tokens = self.count_source_tokens()
                read = zip(self.source_names, tokens, strict=True)
                logs |= {f"{SHARE}{name}": count / max(sum(tokens), 1) for name, count in read}
        super().log(logs, start_time)

    def collect_losses(self) -> list[float]:
        """Move the steps' losses off the device; the only place where training waits for it.

        Returns:
            Mean loss over all ranks of each step since the last call.

        Raises:
            RecipeError: The loss or its gradient diverged, and the recipe says to stop.
            RestartRequested: One of them diverged; the next start of the job begins before it.
        """
        if not self._pending:
            return []
        stacked, norms = torch.stack(self._pending), [float(norm) for norm in self.gradient_norms]
        self._pending, self.gradient_norms = [], []

        if self.plan.runtime.world_size > 1:
            torch.distributed.all_reduce(stacked)
            stacked /= self.plan.runtime.world_size
        fresh = [float(value) for value in stacked.tolist()]

        # Every rank comes to the same conclusion, because all of them have the same losses and norms.
        for value, norm in zip(fresh, norms, strict=True):
            self.losses.append(value)
            self.clipped += norm > self.plan.section.optimizer.clip_norm
            if problem := what_is_wrong(self.losses, norm, self.plan.section.divergence):
                self._stop_or_roll_back(problem)
        return fresh

    def _stop_or_roll_back(self, problem: str) -> NoReturn:
        """End the job after a divergence: for good, or to start again before it without the last batches."""
        plan, rule, step = self.plan, self.plan.section.divergence, len(self.losses)
        if rule.action == "stop" or plan.rollbacks.count == rule.max_rollbacks:
            after = f" after {rule.max_rollbacks} rollbacks" if plan.rollbacks.count else ""
            raise RecipeError(
                f"{problem} at step {step}{after}, so training stopped: lower optimizer.learning_rate, raise "
                "optimizer.warmup_steps, use precision bf16 or fp32, or set divergence.action to rollback to skip "
                "batches; checkpoints before this step are kept"
            )

        first = max(0, step - rule.skip)
        batches = [plan.rollbacks.batch_of(number) for number in range(first, step)]
        if plan.runtime.rank == 0:
            plan.checkpoints.remove_after(first)
            plan.rollbacks.skip(batches)
        torch.distributed.barrier()  # torchrun ends all ranks when one ends, and rank 0 may be writing
        message = (
            f"{problem} at step {step}: going back to a checkpoint of step {first} or before, and skipping the batches "
            f"{', '.join(map(str, batches))}"
        )
        raise RestartRequested(JobOutcome(kind="rolled_back", message=message))

    def restore(self, checkpoint: Path) -> None:
        """Take over the losses and counts of the steps before a resume.

        Args:
            checkpoint: Folder of a verified checkpoint.
        """
        progress = json.loads((checkpoint / PROGRESS_FILE).read_text())
        self.losses, self.earlier_overflows = list(progress["losses"]), int(progress["fp8_overflows"])
        self.clipped = int(progress["clipped"])
        self._earlier_source_tokens = torch.tensor(progress["source_tokens"], dtype=torch.int64)
        self._logged = len(self.losses), self.clipped  # a checkpoint's step is logged

    def count_overflows(self) -> int:
        """FP8 products that were not finite, of all ranks and of the steps before a resume; all ranks must call it.

        Only the steps that are logged are looked at.
        """
        count = torch.tensor(self.overflows.count())
        if self.plan.runtime.world_size > 1:
            count = count.to(self.plan.runtime.device)
            torch.distributed.all_reduce(count)
        return self.earlier_overflows + int(count.item())

    def count_source_tokens(self) -> tuple[int, ...]:
        """Tokens that were learned from each source so far, of all ranks and starts; all ranks must call it."""
        counts = self._own_source_tokens
        if self.plan.runtime.world_size > 1 and len(counts):
            counts = counts.to(self.plan.runtime.device, copy=True)
            torch.distributed.all_reduce(counts)
        self.source_tokens = tuple((self._earlier_source_tokens + counts.cpu()).tolist())
        return self.source_tokens

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint:
            reshard.fix_loaded_optimizer(self.deepspeed, Path(resume_from_checkpoint))
        if self.deepspeed.zero_optimization_stage() == 0:  # the other stages keep the norm themselves
            _keep_gradient_norm(self.deepspeed)
        return model, train_dataloader

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """All ranks write into a hidden folder; rank 0 makes it durable and gives it its name."""
        started = time.monotonic()
        checkpoints, step = self.plan.checkpoints, self.state.global_step
        folder, is_first_rank = checkpoints.staging(step), self.plan.runtime.rank == 0
        self.collect_losses()  # a divergence must not get into a checkpoint
        progress = {"losses": self.losses, "clipped": self.clipped, "fp8_overflows": self.count_overflows()}
        progress["source_tokens"] = self.count_source_tokens()
        self.store_flos()

        if is_first_rank:
            checkpoints.clear_staging()
            folder.mkdir(parents=True)
        torch.distributed.barrier()
        try:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            if is_first_rank:
                self.state.save_to_json(str(folder / _STATE_FILE))
                (folder / PROGRESS_FILE).write_text(json.dumps(progress))
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_CANNOT_WRITE):
                raise
            raise checkpoints.unwritten(error) from error
        torch.distributed.barrier()

        if is_first_rank:
            fresh = self.losses[self._saved_step :]
            checkpoints.publish(step, math.fsum(fresh) / len(fresh))
        self._saved_step = step
        self.checkpoint_seconds += time.monotonic() - started

    def _send_telemetry(self) -> None:
        """TRL reports every training run to its authors; Gatehouse does not."""


class _AfterStep(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Keeps the norm of every step's gradient; DeepSpeed overwrites it with the next one's."""

    def __init__(self, trainer: StepOrdered) -> None:
        self._trainer = trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Keep it: an infinite one, or one that is no number, is how a divergence shows at every ZeRO stage."""
        self._trainer.gradient_norms.append(self._trainer.deepspeed.get_global_grad_norm())


class PretrainingTrainer(StepOrdered):
    """The Trainer of `base_model`."""


def pretraining_trainer(model: torch.nn.Module, settings: dict[str, Any]) -> PretrainingTrainer:
    """A Trainer for next-token prediction.

    Args:
        model: In fp32, with its FP8 layers where there are any.
        settings: As `arguments` gives them.
    """
    return PretrainingTrainer(model=model, args=TrainingArguments(**settings))


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter multiplies what comes in, and so may be drawn towards zero by weight decay.

    Scales and shifts may not. Nor may the rates of state-space and linear attention layers (Gu and Dao, Mamba, 2023),
    even where they are stored as a table.
    """
    last = name.rsplit(".", 1)[-1]
    return parameter.dim() >= 2 and last not in _RATES and not last.startswith("time_")


def _keep_gradient_norm(engine: Any) -> None:
    """Keep the gradient's norm at ZeRO 0 in fp32, where DeepSpeed clips the gradients and throws the norm away."""
    parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    engine.clip_fp32_gradients = clip
