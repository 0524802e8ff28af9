"""What every training stage does around its own trainer: set up, train with resume, summarise."""

from __future__ import annotations

import logging
import statistics
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from lmkernels import Choice, LmkernelsError, choose
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from training.engine import deepspeed_config, isolation, reshard, runtime
from training.engine.batches import Batches
from training.engine.callbacks import Checkpointer, Reporter
from training.engine.checkpoints import Checkpoint, CheckpointFolder
from training.engine.divergence import Rollbacks, SkippingBatches
from training.engine.isolation import Isolation
from training.engine.out_of_memory import smaller_when_short
from training.engine.runtime import Runtime
from training.engine.trainer import Plan, StepOrdered, arguments
from training.errors import RecipeError
from training.job.context import StageContext
from training.job.outcome import JobOutcome, RestartRequested
from training.model_folder import SAFELY, load_tokenizer, plain_model
from training.specs.optimization import TrainingSection
from training.store.store import file_entry


@dataclass(frozen=True)
class Session:
    """One training job: where it runs, with which kernels, and its tokenizer.

    Attributes:
        isolation: Whether documents may share a row; None before `examine`, and where no rows are packed.
    """

    context: StageContext[Any]
    section: TrainingSection
    runtime: Runtime
    choice: Choice
    tokenizer: PreTrainedTokenizerBase
    isolation: Isolation | None = None

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad

    @property
    def end(self) -> int:
        """Id of `<|endoftext|>`, which ends a document and comes before one."""
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return end

    @property
    def alone(self) -> bool:
        """Whether every document has a row of its own: its model would let those of one row see each other."""
        assert self.isolation is not None, "examine the model first"
        return not self.isolation.isolated

    def arguments(self, batches: Batches) -> dict[str, Any]:
        """Trainer arguments that all stages share."""
        return arguments(
            self.section, self.context.execution, self.runtime, batches, self.context.seed, self.context.work
        )

    def autocast(self) -> torch.autocast:
        """What DeepSpeed does around the forward pass, for passes outside of it."""
        return torch.autocast(self.runtime.device.type, dtype=torch.bfloat16, enabled=self.choice.precision != "fp32")

    def facts(self) -> dict[str, str]:
        """What was chosen and why, and the tokenizer's digest."""
        tokenizer = self.context.input("tokenizer").folder / "tokenizer" / "tokenizer.json"
        rows = {} if self.isolation is None else {"rows": _rows_in_words(self.isolation)}
        return rows | {
            "tokenizer": file_entry(tokenizer).sha256,
            "precision": self.choice.precision,
            "kernels": self.choice.kernels,
            "attention": self.choice.attention,
            "layout": self.runtime.layout,
            "why": "; ".join(self.choice.reasons),
        }


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    Attributes:
        losses: Mean loss of every step.
        history: Logged rows.
    """

    losses: list[float]
    history: list[dict[str, Any]]
    metrics: dict[str, float]


def open_session(context: StageContext[Any], architecture: str) -> Session:
    """Set the process up and choose kernels.

    Args:
        context: The stage's.
        architecture: transformers' model type.

    Raises:
        RecipeError: The recipe asks for a precision, kernel or device that does not run here.
    """
    context.events.phase("set up")
    _quiet()
    where = runtime.start(context.execution, context.rank, context.world_size, context.seed)
    section: TrainingSection = context.section
    try:
        choice = choose(section.precision, section.kernels, where.device, architecture, _has_sdpa(architecture))
    except LmkernelsError as error:
        raise RecipeError(f"{context.asset}: {error}") from error
    context.events.log(f"{where.layout}; " + "; ".join(choice.reasons))
    choice.before_model()
    tokenizer = load_tokenizer(context.input("tokenizer").folder / "tokenizer")
    deepspeed_config.initialize(where.device)
    return Session(context, section, where, choice, tokenizer)


def examine(session: Session, model: PreTrainedModel) -> Session:
    """Find out whether documents may share a row; call it before the batches and before `convert`.

    With ZeRO 3 on GPUs the model need not fit on one of them, so a copy with fewer layers stands in.
    """
    where = session.runtime
    examined = model
    if where.zero_stage == 3 and where.device.type == "cuda":
        with torch.random.fork_rng([where.device]):
            examined = AutoModelForCausalLM.from_config(
                isolation.shrunken(model.config), dtype=torch.float32, attn_implementation=session.choice.attention
            )
    found = isolation.examine(examined.to(where.device))
    session.context.events.log(_rows_in_words(found), level="info" if found.isolated else "warning")
    return replace(session, isolation=found)


def _rows_in_words(found: Isolation) -> str:
    return f"packed: {found.reason}" if found.isolated else f"one document each, padded: {found.reason}"


def _has_sdpa(architecture: str) -> bool:
    """Whether transformers implements an architecture with torch's scaled dot product attention."""
    if architecture not in CONFIG_MAPPING or CONFIG_MAPPING[architecture] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True  # refused where the model is built
    return bool(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[architecture]]._supports_sdpa)


def _quiet() -> None:
    """Keep library chatter out of the job's log: progress bars, and warnings about what this code does on purpose."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*", category=FutureWarning)


def model_type(folder: Path) -> str:
    """transformers' model type of a saved model."""
    return str(AutoConfig.from_pretrained(plain_model(folder), local_files_only=True).model_type)


def load_parent(session: Session, asset: str) -> PreTrainedModel:
    """The model of an input artifact, in fp32: optimizers need the room below bf16's resolution."""
    folder = plain_model(session.context.input(asset).folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **SAFELY | {"attn_implementation": session.choice.attention}
    )
    assert isinstance(model, PreTrainedModel)
    return model


def convert(session: Session, model: torch.nn.Module) -> int:
    """Convert layers to FP8 where that was chosen; call it before the trainer exists.

    Returns:
        Number of converted layers.
    """
    expected = session.choice.expected_conversions(model)
    converted = session.choice.convert(model)
    assert converted == expected, f"{converted} layers run in FP8, and {expected} should"
    return converted


def fit(session: Session, trainer: StepOrdered, batches: Batches, converted: int = 0) -> Fit:
    """Train from the newest checkpoint on, or from the start.

    Raises:
        RestartRequested: The job was told to stop, diverged or was short of memory, and is to be started again.
        RecipeError: The loss diverged for good, or a single row needs more memory than there is.
        StoreError: The disk has no room for the checkpoints.
    """
    context, section, where = session.context, session.section, session.runtime
    checkpoints = CheckpointFolder(
        context.work / "checkpoints",
        context.identity,
        _layout(session),
        section.checkpoints,
        lambda line: context.events.log(line, level="warning"),
        section.divergence.skip if section.divergence.action == "rollback" else 0,
    )
    found = _newest(checkpoints, where)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    rollbacks = Rollbacks.read(context.work)
    plan = Plan(
        SkippingBatches(batches, rollbacks) if rollbacks.count else batches,
        section,
        where,
        checkpoints,
        rollbacks,
        found.step if found else 0,
        flops_counter(trainer.model),
    )
    trainer.prepare(plan)
    if where.rank == 0:
        checkpoints.require_room(
            _checkpoint_bytes(trainer, session),
            4 * parameters,
            batches.steps,
            reshards=bool(found and reshard.needs_resharding(found, where)),
        )
    folder = _restore(trainer, found, session) if found else None
    reporter, checkpointer = Reporter(plan, context.events, {"converted_layers": float(converted)}), Checkpointer(plan)
    trainer.add_callback(reporter)
    trainer.add_callback(checkpointer)
    with smaller_when_short(plan.batches, trainer.model):
        context.events.phase("dry run")
        dry_run(trainer, session)
        runtime.seed_everything(context.seed, where.rank)
        context.events.phase("train")
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
    trainer.collect_losses()
    checkpoints.settle()
    if checkpointer.preempted:
        torch.distributed.barrier()  # torchrun ends the others some time after the first rank has gone
        raise RestartRequested(
            JobOutcome(
                kind="preempted", message=f"told to stop: a checkpoint was written at step {trainer.state.global_step}"
            )
        )
    context.afterwards.append(checkpoints.retire)  # not before: killed in the export, the job goes on from the newest
    return _summary(trainer, reporter, plan, parameters, converted)


def _restore(trainer: StepOrdered, found: Checkpoint, session: Session) -> Path:
    """Take up what a checkpoint knows beside DeepSpeed's states; the folder that DeepSpeed is to load."""
    context, where, folder = session.context, session.runtime, found.folder
    trainer.restore(folder)
    told = f"resumed from the checkpoint of step {found.step}"
    if found.processes != where.world_size:
        told += f", which {found.processes} processes wrote and {where.world_size} go on from"
    if reshard.needs_resharding(found, where):
        folder = trainer.plan.checkpoints.resharded(found.step)
        if where.rank == 0:
            reshard.reshard_to(found, folder)
        torch.distributed.barrier()
        reshard.expect_resharded_states(trainer)
    context.events.log(told)
    return folder


def _checkpoint_bytes(trainer: StepOrdered, session: Session) -> int:
    """Size of a checkpoint: fp32 weights, two moments of what is trained, and with ZeRO its weights once more."""
    parameters = list(trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    weights = sum(parameter.numel() for parameter in parameters)
    return int(4 * weights + (12 if session.runtime.zero_stage else 8) * trained)


def dry_run(trainer: StepOrdered, session: Session) -> None:
    """Forward and backward once on the largest micro-batch: what cannot work fails before anything is spent.

    Weights, gradients and random numbers are as before afterwards. With ZeRO 3 on GPUs it is left out: before DeepSpeed
    has split it, the model need not fit on one of them.
    """
    where = session.runtime
    if where.zero_stage == 3 and where.device.type == "cuda":
        session.context.events.log("no dry run: ZeRO 3 divides the model only when training starts")
        return
    model = trainer.model.to(where.device)
    batch = trainer._prepare_inputs(trainer.plan.batches.longest())
    devices = [where.device] if where.device.type == "cuda" else []
    trainer.current_gradient_accumulation_steps = trainer.plan.batches.accumulation
    model.train()
    with deepspeed_config.undivided(trainer.args.hf_deepspeed_config), torch.random.fork_rng(devices):
        with session.autocast():
            loss = trainer.compute_loss(model, batch)
        loss.backward()
    model.zero_grad(set_to_none=True)
    if hasattr(trainer, "_metrics"):  # TRL counts every call of compute_loss
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
    if not torch.isfinite(loss.detach()).item():
        raise RecipeError(
            f"{session.context.asset}: the loss of the untrained model is {loss.item()}; look at the "
            "architecture and the parent model"
        )
    if devices:
        torch.cuda.empty_cache()


def flops_counter(model: PreTrainedModel) -> Any:
    """Training FLOPs per token at a context length: 6 per weight of a matrix and 12 per layer, width and position.

    The formula of Chowdhery et al. (PaLM, 2022), appendix B.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    tied = bool(getattr(config, "tie_word_embeddings", False))
    weights = sum(parameter.numel() for parameter in model.parameters())
    weights -= 0 if tied or embedding is None else embedding.weight.numel()
    width = config.num_hidden_layers * config.hidden_size
    return lambda context: 6.0 * weights + 12.0 * width * context


def _layout(session: Session) -> dict[str, int | str]:
    where = session.runtime
    return {
        "processes": where.world_size,
        "zero_stage": where.zero_stage,
        "device": where.device.type,
        "precision": session.choice.precision,
    }


def _newest(checkpoints: CheckpointFolder, where: Runtime) -> Checkpoint | None:
    """Rank 0 verifies; all ranks use what it found."""
    answer = [checkpoints.latest() if where.rank == 0 else None]
    if where.world_size > 1:
        torch.distributed.broadcast_object_list(answer, src=0)
    return answer[0]


def _summary(trainer: StepOrdered, reporter: Reporter, plan: Plan, parameters: int, converted: int) -> Fit:
    losses, steps = trainer.losses, plan.batches.steps
    assert len(losses) == steps, f"{len(losses)} losses after {steps} steps"
    tokens = plan.batches.tokens_before(steps)
    trained = tokens - plan.batches.tokens_before(plan.first_step)
    tail = losses[-max(1, steps // 10) :]
    trainer.store_flos()
    metrics = {
        "train_loss_first": losses[0],
        "train_loss": statistics.fmean(tail),
        "steps": float(steps),
        "tokens": float(tokens),
        "tokens_per_second": trained / max(reporter.seconds, 1e-9),
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
