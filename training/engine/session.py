"""What every training stage does around its own trainer: set up, train with resume, summarise."""

from __future__ import annotations

import logging
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from lmkernels import Choice, LmkernelsError, choose
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from training.context import StageContext
from training.engine import deepspeed_config, runtime
from training.engine.batches import Batches
from training.engine.callbacks import Checkpointer, Reporter
from training.engine.checkpoints import CheckpointFolder
from training.engine.runtime import Runtime
from training.engine.trainer import Plan, StepOrdered, arguments
from training.errors import EXIT_PREEMPTED, RecipeError
from training.specs.optimization import TrainingSection
from training.store import file_entry


@dataclass(frozen=True)
class Session:
    """One training job: where it runs, with which kernels, and its tokenizer."""

    context: StageContext[Any]
    section: TrainingSection
    runtime: Runtime
    choice: Choice
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad

    def arguments(self, batches: Batches) -> dict[str, Any]:
        """Trainer arguments that all stages share."""
        return arguments(self.section, self.context.execution, self.runtime, batches, self.context.seed,
                         self.context.work)

    def autocast(self) -> torch.autocast:
        """What DeepSpeed does around the forward pass, for passes outside of it."""
        return torch.autocast(self.runtime.device.type, dtype=torch.bfloat16, enabled=self.choice.precision != "fp32")

    def facts(self) -> dict[str, str]:
        """What was chosen and why, and the tokenizer's digest."""
        tokenizer = self.context.input("tokenizer").folder / "tokenizer" / "tokenizer.json"
        return {"tokenizer": file_entry(tokenizer).sha256, "precision": self.choice.precision,
                "kernels": self.choice.kernels, "attention": self.choice.attention, "layout": self.runtime.layout,
                "why": "; ".join(self.choice.reasons)}


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
        choice = choose(section.precision, section.kernels, where.device, architecture)
    except LmkernelsError as error:
        raise RecipeError(f"{context.asset}: {error}") from error
    context.events.log(f"{where.layout}; " + "; ".join(choice.reasons))
    choice.before_model()
    tokenizer = AutoTokenizer.from_pretrained(context.input("tokenizer").folder / "tokenizer", local_files_only=True)
    deepspeed_config.initialize(where.device)
    return Session(context, section, where, choice, tokenizer)


def _quiet() -> None:
    """Keep library chatter out of the job's log: progress bars, and warnings about what this code does on purpose."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*", category=FutureWarning)


def model_type(folder: Path) -> str:
    """transformers' model type of a saved model."""
    return str(AutoConfig.from_pretrained(folder, local_files_only=True).model_type)


def load_parent(session: Session, asset: str) -> PreTrainedModel:
    """The model of an input artifact, in fp32: optimizers need the room below bf16's resolution."""
    model = AutoModelForCausalLM.from_pretrained(session.context.input(asset).folder / "model", dtype=torch.float32,
                                                 attn_implementation=session.choice.attention, local_files_only=True)
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
        SystemExit: With code 75 after the last checkpoint, when the job was told to stop.
        RecipeError: The loss stopped being a number.
    """
    context, section = session.context, session.section
    checkpoints = CheckpointFolder(context.work / "checkpoints", context.identity, _layout(session),
                                   section.checkpoints.keep, lambda line: context.events.log(line, level="warning"))
    found = _newest(checkpoints, session.runtime)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    plan = Plan(batches, section, session.runtime, checkpoints, found[1] if found else 0,
                flops_counter(trainer.model))
    trainer.prepare(plan)
    if found:
        trainer.restore(Path(found[0]))
        context.events.log(f"resumed from the checkpoint of step {found[1]}")
    context.events.phase("dry run")
    dry_run(trainer, session)
    runtime.seed_everything(context.seed, session.runtime.rank)
    reporter, checkpointer = Reporter(plan, context.events, {"converted_layers": float(converted)}), Checkpointer(plan)
    trainer.add_callback(reporter)
    trainer.add_callback(checkpointer)
    context.events.phase("train")
    trainer.train(resume_from_checkpoint=found[0] if found else None)
    trainer.collect_losses()
    if checkpointer.preempted:
        context.events.log(f"told to stop: checkpoint written at step {trainer.state.global_step}", level="warning")
        raise SystemExit(EXIT_PREEMPTED)
    return _summary(trainer, reporter, plan, parameters, converted)


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
        raise RecipeError(f"{session.context.asset}: the loss of the untrained model is {loss.item()}; look at the "
                          "architecture and the parent model")
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
    return {"processes": where.world_size, "zero_stage": where.zero_stage, "device": where.device.type,
            "precision": session.choice.precision}


def _newest(checkpoints: CheckpointFolder, where: Runtime) -> tuple[str, int] | None:
    """Rank 0 verifies; all ranks use what it found."""
    answer: list[Any] = [None]
    if where.rank == 0:
        found = checkpoints.latest()
        answer = [(str(found.folder), found.step) if found else None]
    if where.world_size > 1:
        torch.distributed.broadcast_object_list(answer, src=0)
    chosen: tuple[str, int] | None = answer[0]
    return chosen


def _summary(trainer: StepOrdered, reporter: Reporter, plan: Plan, parameters: int, converted: int) -> Fit:
    losses, steps = trainer.losses, plan.batches.steps
    assert len(losses) == steps, f"{len(losses)} losses after {steps} steps"
    tokens = plan.batches.tokens_before(steps)
    trained = tokens - plan.batches.tokens_before(plan.first_step)
    tail = losses[-max(1, steps // 10):]
    trainer.store_flos()
    metrics = {"train_loss_first": losses[0], "train_loss": statistics.fmean(tail), "steps": float(steps),
               "tokens": float(tokens), "tokens_per_second": trained / max(reporter.seconds, 1e-9),
               "seconds": reporter.seconds, "parameters": float(parameters),
               "flops": float(trainer.state.total_flos), "converted_layers": float(converted)}
    return Fit(losses, [row for row in trainer.state.log_history if "loss" in row], metrics)
