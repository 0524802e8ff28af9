"""Recipe sections of `sft_model`, `dpo_model` and `lora_model`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from training.specs.optimization import TrainingSection
from training.specs.post_training_data import AdapterDataSection

SHORTEST_CONVERSATION = 10
"""Tokens of the least question and answer in the chat template: two roles, two ends of a turn, their four line ends,
and a token of each text. A shorter row holds no conversation at all."""


AllLinear = Literal["all-linear"]
ALL_LINEAR: AllLinear = "all-linear"
TooLong = Literal["turns", "drop", "refuse"]


class PostTrainingSection(TrainingSection):
    """What the stages after pretraining have in common."""

    context: int = Field(512, ge=SHORTEST_CONVERSATION, description="Tokens of a row.")
    too_long: TooLong = Field(
        "turns",
        description="What happens to a conversation or pair of the recipe's own that is longer than the context. "
        "`turns`: whole turns go from its front. `drop`: it goes, counted. `refuse`: the job stops and names it. No "
        "answer is ever cut.",
    )

    def identity_fields(self) -> dict[str, Any]:
        """As of every training; the rule that there always was is left out, so that no version changes by its name."""
        fields = super().identity_fields()
        return fields if self.too_long != "turns" else {key: fields[key] for key in fields if key != "too_long"}


class SftModelSection(PostTrainingSection):
    """Supervised fine-tuning on conversations; the loss covers the assistant's tokens only."""

    batch_tokens: int = Field(8192, gt=0)
    replay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the learned tokens that are pretraining text, so "
        "that fine-tuning does not wipe out the language (the pretraining mix of Ouyang et al., "
        "InstructGPT, 2022). Of a conversation only the answers are learned, of this text all.",
    )


class DpoModelSection(PostTrainingSection):
    """Direct preference optimization (Rafailov et al., 2023)."""

    batch_pairs: int = Field(16, gt=0)
    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the chosen answers' own mean negative log-likelihood "
        "beside the DPO loss (Pang et al., Iterative Reasoning Preference Optimization, 2024). "
        "The DPO loss alone also falls while chosen answers become less likely, as long as "
        "rejected ones fall faster.",
    )


class LoraModelSection(PostTrainingSection):
    """A LoRA adapter (Hu et al., 2021) on the nearest model before it, for one domain."""

    batch_tokens: int = Field(8192, gt=0)
    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | AllLinear = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of the matrices that are adapted, or `all-linear`: every one of the model but its head.",
    )


class AdapterSection(LoraModelSection):
    """One more LoRA adapter on the parent of `lora_model`: the asset `lora_<name>`, on `adapter_data_<name>`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="What its assets are named after.")
    data: AdapterDataSection = AdapterDataSection()

    def training(self) -> LoraModelSection:
        """What decides the adapter itself: neither its name nor how its data are gathered."""
        return LoraModelSection.model_validate(self.model_dump(exclude={"name", "data"}))
