"""The set-up of a training job: process, kernels, tokenizer, the parent's model, and whether documents share rows."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from lmkernels import Choice, LmkernelsError, choose
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from training.data.conversations.chat_format import ChatFormat
from training.engine import deepspeed_config, isolation, runtime
from training.engine.batches import Batches
from training.engine.isolation import Isolation
from training.engine.runtime import Runtime
from training.engine.trainer import arguments
from training.errors import RecipeError
from training.job.context import StageContext
from training.model_folder import SAFELY, best_attention, plain_model
from training.specs.optimization import TrainingSection
from training.store.store import file_entry
from training.tokenizer_folder import has_template, load_tokenizer, start_of_text, tokenizer_ends


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

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How conversations become token ids."""
        return ChatFormat.of(self.tokenizer)

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.chat_format.pad

    @property
    def end(self) -> int:
        """Id of the token that ends a document."""
        if has_template(self.tokenizer):
            return self.chat_format.end_of_text
        return int(self.tokenizer.eos_token_id)  # an imported base model needs no chat template

    @property
    def before_document(self) -> int:
        """Id of the token before a document: the model's start, or else the end of the document before."""
        if has_template(self.tokenizer):
            return self.chat_format.before_document
        start = start_of_text(self.tokenizer)
        return self.end if start is None else start

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end a turn or a text."""
        of_turns = self.chat_format.stops if has_template(self.tokenizer) else ()
        return tuple(dict.fromkeys([*tokenizer_ends(self.tokenizer), *of_turns]))

    @property
    def alone(self) -> bool:
        """Whether every document needs a row of its own, because the model would let those of one row see each other.

        Call `examine` before.
        """
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
        """The manifest's facts: the tokenizer's SHA-256, and what was chosen and why."""
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


def open_session(context: StageContext[Any], architecture: str) -> Session:
    """Set the process up and choose precision, kernels and attention. Call it before a model is built.

    Args:
        context: The stage's.
        architecture: transformers' model type.

    Raises:
        RecipeError: The recipe asks for a precision, kernel or device that does not run here.
    """
    context.events.phase("set up")
    _quiet()
    job_runtime = runtime.start(context.execution, context.rank, context.world_size, context.seed)

    section: TrainingSection = context.section
    has_sdpa = best_attention(architecture) == "sdpa"
    try:
        choice = choose(section.precision, section.kernels, job_runtime.device, architecture, has_sdpa)
    except LmkernelsError as error:
        raise RecipeError(f"{context.asset}: {error}") from error
    context.events.log(f"{job_runtime.layout}; " + "; ".join(choice.reasons))
    choice.before_model()  # Liger replaces classes, so a model that exists already would keep the old ones

    tokenizer = load_tokenizer(context.input("tokenizer").folder / "tokenizer")
    deepspeed_config.initialize(job_runtime.device)
    return Session(context, section, job_runtime, choice, tokenizer)


def examine(session: Session, model: PreTrainedModel) -> Session:
    """Find out whether documents may share a row. Call it before the batches are made and before `convert`.

    Returns:
        The session with its `isolation`.
    """
    device = session.runtime.device
    examined = model
    if session.runtime.zero_stage == 3 and device.type == "cuda":
        # The whole model need not fit on one GPU, so a copy with fewer layers stands in.
        with torch.random.fork_rng([device]):
            examined = AutoModelForCausalLM.from_config(
                isolation.shrunken(model.config), dtype=torch.float32, attn_implementation=session.choice.attention
            )

    result = isolation.examine(examined.to(device))
    session.context.events.log(_rows_in_words(result), level="info" if result.isolated else "warning")
    return replace(session, isolation=result)


def model_type(folder: Path) -> str:
    """transformers' model type of a saved model."""
    return str(AutoConfig.from_pretrained(plain_model(folder), local_files_only=True).model_type)


def load_parent(session: Session, asset: str) -> PreTrainedModel:
    """The model of an input artifact in fp32: an optimizer's steps are often below bf16's resolution.

    Raises:
        InputRefused: The folder holds something that Gatehouse does not write.
    """
    folder = plain_model(session.context.input(asset).folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **SAFELY | {"attn_implementation": session.choice.attention}
    )
    assert isinstance(model, PreTrainedModel)
    return model


def convert(session: Session, model: torch.nn.Module) -> int:
    """Convert layers to FP8 where that was chosen. Call it before the trainer exists.

    Returns:
        Number of converted layers; 0 in other precisions.
    """
    # Counted by rule beforehand: a conversion that reaches no layer would otherwise pass for FP8 training.
    expected = session.choice.expected_conversions(model)
    converted = session.choice.convert(model)
    assert converted == expected, f"{converted} layers run in FP8, and {expected} should"
    return converted


def _rows_in_words(result: Isolation) -> str:
    return f"packed: {result.reason}" if result.isolated else f"one document each, padded: {result.reason}"


def _quiet() -> None:
    """Keep library chatter out of the job's log: progress bars, and warnings about what this code does on purpose."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*", category=FutureWarning)
