"""Fitting a model, the same for every training stage: resume, dry run, train, summarise."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from training.engine import deepspeed_config, reshard, runtime
from training.engine.batches import Batches
from training.engine.callbacks import Checkpointer, Reporter
from training.engine.checkpoints import Checkpoint, CheckpointFolder
from training.engine.divergence import Rollbacks, SkippingBatches
from training.engine.out_of_memory import smaller_when_short
from training.engine.runtime import Runtime
from training.engine.session import Session
from training.engine.trainer import Plan, StepOrdered
from training.errors import RecipeError
from training.job.outcome import JobOutcome, RestartRequested


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    Attributes:
        losses: Mean loss of every step, those before a resume included.
        history: Logged rows, as in report/training.jsonl.
        metrics: The run in numbers; those of time differ from run to run.
    """

    losses: list[float]
    history: list[dict[str, Any]]
    metrics: dict[str, float]


def fit(session: Session, trainer: StepOrdered, batches: Batches, converted: int = 0) -> Fit:
    """Train from the newest checkpoint on, or from the start.

    Args:
        session: The job.
        trainer: Has the model; it gets its plan and its callbacks here.
        batches: The data of the whole run.
        converted: Number of FP8 layers, for the metrics.

    Raises:
        RestartRequested: The job was told to stop, diverged or was short of memory, and is to be started again.
        RecipeError: The loss diverged for good, or a single row needs more memory than there is.
        StoreError: The disk has no room for the checkpoints.
    """
    context, rank = session.context, session.runtime.rank
    checkpoints = _checkpoint_folder(session)
    checkpoint = _newest(checkpoints, session.runtime)
    plan = _plan(session, trainer.model, batches, checkpoints, checkpoint)
    trainer.prepare(plan)

    # Counted here: once training has begun, ZeRO 3 leaves each rank with a part of every parameter.
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    if rank == 0:
        reshards = checkpoint is not None and reshard.needs_resharding(checkpoint, session.runtime)
        checkpoints.require_room(_checkpoint_bytes(trainer, session), 4 * parameters, batches.steps, reshards)
    folder = _restore(trainer, checkpoint, session) if checkpoint else None
    reporter, checkpointer = Reporter(plan, context.events, {"converted_layers": float(converted)}), Checkpointer(plan)
    trainer.add_callback(reporter)
    trainer.add_callback(checkpointer)

    with smaller_when_short(plan.batches, trainer.model):
        context.events.phase("dry run")
        dry_run(trainer, session)
        # Seeded anew, so that training draws the same random numbers with and without the dry run.
        runtime.seed_everything(context.seed, rank)
        context.events.phase("train")
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
    trainer.collect_losses()
    checkpoints.settle()

    if checkpointer.preempted:
        torch.distributed.barrier()  # torchrun ends the other ranks some time after the first one has ended
        message = f"told to stop: a checkpoint was written at step {trainer.state.global_step}"
        raise RestartRequested(JobOutcome(kind="preempted", message=message))
    # Not before the version is published: a job that is killed in the export resumes from the newest checkpoint.
    context.afterwards.append(checkpoints.retire)
    return _summary(trainer, reporter, plan, parameters, converted)


def dry_run(trainer: StepOrdered, session: Session) -> None:
    """Forward and backward once on the largest micro-batch: what cannot work fails before anything is spent.

    Weights, gradients and random numbers are as before afterwards. It is left out with ZeRO 3 on GPUs: before DeepSpeed
    has divided it, the model need not fit on one of them.

    Raises:
        RecipeError: The loss is not finite.
    """
    device = session.runtime.device
    if session.runtime.zero_stage == 3 and device.type == "cuda":
        session.context.events.log("no dry run: ZeRO 3 divides the model only when training starts")
        return

    model = trainer.model.to(device)
    batch = trainer._prepare_inputs(trainer.plan.batches.longest())
    gpus = [device] if device.type == "cuda" else []
    trainer.current_gradient_accumulation_steps = trainer.plan.batches.accumulation
    model.train()
    with deepspeed_config.undivided(trainer.args.hf_deepspeed_config), torch.random.fork_rng(gpus):
        with session.autocast():
            loss = trainer.compute_loss(model, batch)
        loss.backward()

    model.zero_grad(set_to_none=True)
    if hasattr(trainer, "_metrics"):  # TRL counts every call of compute_loss
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
    if not torch.isfinite(loss.detach()).item():
        raise RecipeError(
            f"{session.context.asset}: the loss of the untrained model is {loss.item()}; look at the architecture and "
            "the parent model"
        )
    if gpus:
        torch.cuda.empty_cache()


def flops_counter(model: PreTrainedModel) -> Callable[[int], float]:
    """Training FLOPs per token as a function of the context length in tokens.

    6 per weight of a matrix, and 12 per layer, width and position: the formula of Chowdhery et al. (PaLM, 2022),
    appendix B. An input embedding is looked up and not multiplied, so it counts only where it is the head as well.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    tied = bool(getattr(config, "tie_word_embeddings", False))

    weights = sum(parameter.numel() for parameter in model.parameters())
    weights -= 0 if tied or embedding is None else embedding.weight.numel()
    width = config.num_hidden_layers * config.hidden_size
    return lambda context: 6.0 * weights + 12.0 * width * context


def _checkpoint_folder(session: Session) -> CheckpointFolder:
    context, divergence = session.context, session.section.divergence
    layout: dict[str, int | str] = {
        "processes": session.runtime.world_size,
        "zero_stage": session.runtime.zero_stage,
        "device": session.runtime.device.type,
        "precision": session.choice.precision,
    }
    return CheckpointFolder(
        context.work / "checkpoints",
        context.identity,
        layout,
        session.section.checkpoints,
        lambda line: context.events.log(line, level="warning"),
        divergence.skip if divergence.action == "rollback" else 0,
    )


def _newest(checkpoints: CheckpointFolder, job_runtime: Runtime) -> Checkpoint | None:
    """The newest good checkpoint. Rank 0 verifies, and all ranks resume from the one that it chose."""
    choice = [checkpoints.latest() if job_runtime.rank == 0 else None]
    if job_runtime.world_size > 1:
        torch.distributed.broadcast_object_list(choice, src=0)
    return choice[0]


def _plan(
    session: Session,
    model: PreTrainedModel,
    batches: Batches,
    checkpoints: CheckpointFolder,
    checkpoint: Checkpoint | None,
) -> Plan:
    rollbacks = Rollbacks.read(session.context.work)
    return Plan(
        batches=SkippingBatches(batches, rollbacks) if rollbacks.count else batches,
        section=session.section,
        runtime=session.runtime,
        checkpoints=checkpoints,
        rollbacks=rollbacks,
        first_step=checkpoint.step if checkpoint else 0,
        flops_per_token=flops_counter(model),
    )


def _restore(trainer: StepOrdered, checkpoint: Checkpoint, session: Session) -> Path:
    """Take over what a checkpoint holds beside DeepSpeed's states; return the folder that DeepSpeed is to load."""
    context, job_runtime, folder = session.context, session.runtime, checkpoint.folder
    trainer.restore(folder)
    message = f"resumed from the checkpoint of step {checkpoint.step}"
    if checkpoint.processes != job_runtime.world_size:
        message += f", written by {checkpoint.processes} processes and continued by {job_runtime.world_size}"

    if reshard.needs_resharding(checkpoint, job_runtime):
        folder = trainer.plan.checkpoints.resharded(checkpoint.step)
        if job_runtime.rank == 0:
            reshard.reshard_to(checkpoint, folder)
        torch.distributed.barrier()
        reshard.expect_resharded_states(trainer)
    context.events.log(message)
    return folder


def _checkpoint_bytes(trainer: StepOrdered, session: Session) -> int:
    """Size of a checkpoint: fp32 weights, two moments of what is trained, and with ZeRO its weights once more."""
    parameters = list(trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    weights = sum(parameter.numel() for parameter in parameters)
    return int(4 * weights + (12 if session.runtime.zero_stage else 8) * trained)


def _summary(trainer: StepOrdered, reporter: Reporter, plan: Plan, parameters: int, converted: int) -> Fit:
    losses, steps = trainer.losses, plan.batches.steps
    assert len(losses) == steps, f"{len(losses)} losses after {steps} steps"

    tokens = plan.batches.tokens_before(steps)
    tokens_since_start = tokens - plan.batches.tokens_before(plan.first_step)
    last_tenth = losses[-max(1, steps // 10) :]  # one step's loss is noise
    trainer.store_flos()
    trainer.count_source_tokens()
    metrics = {
        "train_loss_first": losses[0],
        "train_loss": statistics.fmean(last_tenth),
        "steps": float(steps),
        "tokens": float(tokens),
        "tokens_per_second": tokens_since_start / max(reporter.seconds, 1e-9),
        "seconds": reporter.seconds,
        "parameters": float(parameters),
        "flops": float(trainer.state.total_flos),
        "converted_layers": float(converted),
        "checkpoint_seconds": trainer.checkpoint_seconds,
        "rollbacks": float(plan.rollbacks.count),
        "fp8_overflows": float(trainer.count_overflows()),
        "clipped_share": trainer.clipped / steps,
        "skipped_batches": float(len(plan.rollbacks.skipped)),
    }
    return Fit(losses, [row for row in trainer.state.log_history if "loss" in row], metrics)
