"""The training stages' one order of steps, and what each stage brings to it.

`train` is the whole of a training job. A single optimizer step is described at `training.engine.trainer.StepOrdered`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from training.data.conversations.encoded_rows import LeftOut
from training.engine import export, export_probe, runtime
from training.engine.batches import Batches
from training.engine.export import Prompt
from training.engine.fit import fit
from training.engine.session import Session, convert, examine, load_parent, model_type, open_session
from training.engine.trainer import StepOrdered
from training.job.context import StageContext
from training.specs.contracts import parent_in
from training.specs.job import StageResult
from training.specs.mixture import Mixture
from training.specs.optimization import TrainingSection
from training.specs.probe import Probe

SectionT = TypeVar("SectionT", bound=TrainingSection)
BatchesT = TypeVar("BatchesT", bound=Batches)


@dataclass(frozen=True)
class Trained(Generic[BatchesT]):
    """What training leaves in memory, for a stage to save.

    Attributes:
        model: What the stage built; the trainer may have wrapped it.
        batches: What it was trained on.
        weights: fp32 state dict on the CPU, whole on rank 0.
        probe: What the engine's own model says of a few rows.
    """

    model: PreTrainedModel
    trainer: StepOrdered
    batches: BatchesT
    weights: dict[str, torch.Tensor]
    probe: Probe


class TrainingStage(ABC, Generic[SectionT, BatchesT]):
    """What a training stage brings to `train`, which calls the methods in the order in which they stand here.

    Attributes:
        packs_rows: Whether its batches hold rows of several documents, so that the model must keep them apart.
        prompts: What the samples in the report are asked.
        loss_unit: Unit of the loss, for the report's curve.
    """

    packs_rows: ClassVar[bool] = True
    prompts: ClassVar[Sequence[Prompt]]
    loss_unit: ClassVar[str] = "nats per token"

    def __init__(self, context: StageContext[SectionT]) -> None:
        self.context = context
        self.section = context.section
        self.parent = parent_in(context.inputs)
        """The input whose model training begins from; a stage without one says itself how its model is built."""

    def model_type(self) -> str:
        """transformers' model type of the model that `build_model` will give; kernels are chosen by it."""
        assert self.parent is not None
        return model_type(self.context.input(self.parent).folder / "model")

    def build_model(self, session: Session) -> PreTrainedModel:
        """The model to train, in fp32 on the CPU."""
        assert self.parent is not None
        return load_parent(session, self.parent)

    @abstractmethod
    def read_batches(self, session: Session) -> tuple[BatchesT, LeftOut | None]:
        """The data of the whole run, and what was left out of it because it is too long."""

    @abstractmethod
    def build_trainer(self, session: Session, model: PreTrainedModel, batches: BatchesT) -> StepOrdered:
        """The trainer with the stage's own loss; pass `session.arguments(batches)` on to it."""

    def complete_batches(self, session: Session, trainer: StepOrdered, batches: BatchesT) -> BatchesT:
        """The batches with what only the untrained model can add to them."""
        return batches

    def metrics(self, trainer: StepOrdered) -> dict[str, float]:
        """Metrics of the stage's own, taken before training: ZeRO 3 divides the parameters when that begins."""
        return {}

    def save(self, session: Session, trained: Trained[BatchesT]) -> str:
        """Write the artifact's files; rank 0 alone calls it.

        Returns:
            The precision that the weights were saved in, and why.
        """
        return export.save_weights(
            self.context.out, trained.model.config, trained.weights, session, trained.probe, self.parent
        )

    def mixture(self, trainer: StepOrdered) -> Mixture | None:
        """What was read of each source; None where it is not counted."""
        return None

    def phases(self, batches: BatchesT) -> list[tuple[int, str]]:
        """First step and name of each phase of the curriculum, for the report's curve."""
        return []

    def facts(self) -> dict[str, str]:
        """Facts of the manifest beside the session's."""
        return {}


def train(stage: TrainingStage[Any, BatchesT]) -> StageResult:
    """Train and save a model: every step of a training stage, in order. All ranks run it.

    Raises:
        RestartRequested: The job was told to stop, diverged or was short of memory, and is to be started again.
        UserError: The recipe, the launcher, an input or the disk does not allow the training.
    """
    # Process group, precision and kernels come before the model, because Liger replaces its classes.
    session = open_session(stage.context, stage.model_type())
    model = stage.build_model(session)
    if stage.packs_rows:
        session = examine(session, model)
    batches, left_out = stage.read_batches(session)

    # FP8 layers come before the trainer, which wraps the model and makes the optimizer of its parameters.
    converted = convert(session, model)
    trainer = stage.build_trainer(session, model, batches)
    batches = stage.complete_batches(session, trainer, batches)
    metrics = stage.metrics(trainer) | (left_out.metrics if left_out else {})

    result = fit(session, trainer, batches, converted)
    result = replace(result, metrics=result.metrics | metrics)

    # Collective: under ZeRO 3 every rank holds a part of the weights.
    probe = export_probe.take(session, trainer)
    if left_out:
        probe = probe.model_copy(update={"dropped_share": left_out.share})
    weights = export.gather_weights(trainer)

    if session.runtime.rank == 0:
        saved = stage.save(session, Trained(model, trainer, batches, weights, probe))
        export.report(
            session, result, stage.prompts, saved, stage.phases(batches), stage.loss_unit, stage.mixture(trainer)
        )
    torch.distributed.barrier()
    runtime.stop()
    return StageResult(metrics=result.metrics, headline="train_loss", facts=session.facts() | stage.facts())
