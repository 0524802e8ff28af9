"""Recipe sections of `instruction_data`, `preference_data` and `adapter_data`."""

from __future__ import annotations

from pydantic import Field

from training.specs.base import Spec


class InstructionDataSection(Spec):
    """Questions with answers: docstrings of functions in Python files, continuations of passages in other text."""

    max_conversations: int = Field(20_000, gt=0)
    max_answer_characters: int = Field(
        400, gt=0, description="Of an answer; a character of Chinese or Japanese counts as three."
    )
    harmful: str = Field("safety/harmful_train.jsonl", description="Prompts that get a refusal.")
    benign: str = Field("safety/benign_train.jsonl", description="Look-alikes that get an answer.")
    safety_repeats: int = Field(
        1,
        ge=0,
        description="How often the prompts of the longer file appear; the "
        "shorter one is gone through until both give as many conversations. At 0 none are taken.",
    )


class PreferenceDataSection(Spec):
    """Pairs of a right and a wrong answer to one prompt."""

    max_pairs: int = Field(4_000, gt=0)


class AdapterDataSection(Spec):
    """Documents and conversations of one domain of the corpus."""

    domain: str = Field(
        "general", description="By default the domain that the sources declare, or `general` where they declare none."
    )
    max_conversations: int = Field(4_000, gt=0)
    general_share: float = Field(
        0.1, ge=0, lt=1, description="Share of general conversations mixed in against forgetting."
    )
