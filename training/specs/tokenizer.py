"""Recipe section of `tokenizer`."""

from __future__ import annotations

from pydantic import Field

from training.specs.base import Spec

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN)


class TokenizerSection(Spec):
    """Everything that decides the content of `tokenizer`: a byte-level BPE trained on the corpus."""

    vocabulary: int = Field(2048, ge=300, description="Number of tokens, special tokens included.")
    min_frequency: int = Field(2, ge=1)
    sample_megabytes: int = Field(64, gt=0, description="Text to train on, taken by digest from the whole corpus.")
