"""Recipe section of `tokenizer`."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.specs.imports import Imported

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN)

OWN_TEMPLATE = "own"
TEMPLATE_NAMES = ("chatml", "llama3", "mistral", "gemma", "alpaca", "plain")
TEMPLATE_SUFFIX = ".jinja"
_TODAY = datetime.date(2026, 1, 1)
_UNSET: dict[str, Any] = {
    "template": OWN_TEMPLATE,
    "special_tokens": (),
    "date": _TODAY,
    "train_added": False,
    "pre_tokenizer": "words",
    "digits": None,
    "weights": {},
}


class TokenizerSection(Imported):
    """Everything that decides the content of `tokenizer`: a byte-level BPE trained on the corpus, or an imported one.

    An imported one has no use for the fields of the training, and its dump leaves them out.
    """

    vocabulary: int = Field(2048, ge=300, description="Number of tokens, special tokens included.")
    min_frequency: int = Field(2, ge=1)
    sample_megabytes: int = Field(64, gt=0, description="Text to train on, taken by digest from the whole corpus.")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Share of the sample by source, relative to the other sources' weights times their sizes; a source "
        "that is not named has 1. No text is taken twice. By default every source has its share of the corpus.",
    )
    pre_tokenizer: Literal["words", "gpt2", "llama3", "gpt4o"] = Field(
        "words",
        description="The rule that cuts a text into words, which no token crosses. `words` is that of GPT-2 with marks "
        "belonging to their letters. The others are those of these models, which gigatoken encodes some fifty times "
        "as fast; `gpt4o` keeps marks with their letters too.",
    )
    digits: Literal[1, 3, "free"] | None = Field(
        None, description="The most digits in one token; by default as the rule has it: 3 for `llama3` and `gpt4o`."
    )
    template: str = Field(
        OWN_TEMPLATE,
        min_length=1,
        description="Chat template of an imported tokenizer: `own`, one of "
        f"{', '.join(TEMPLATE_NAMES)}, or a .jinja file beside the recipe.",
    )
    date: datetime.date = Field(
        _TODAY,
        description="What an imported template that writes today's date takes for it. It stands in the exported "
        "template too: a row has the same tokens on two days, in training and elsewhere.",
    )
    train_added: bool = Field(
        False,
        description="Learn what an imported template puts before an answer and no message says, such as the empty "
        "thought of a reasoning model.",
    )
    special_tokens: tuple[str, ...] = Field(
        (), description="Further special tokens of an imported tokenizer; the model's embedding grows by their rows."
    )

    @property
    def template_file(self) -> str | None:
        """The file that `template` names; None where it is no file."""
        return self.template if self.template.endswith(TEMPLATE_SUFFIX) else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.template_file is None and self.template not in (OWN_TEMPLATE, *TEMPLATE_NAMES):
            problems.append(
                f"template: {self.template[:60]!r} is no template; write {OWN_TEMPLATE}, "
                f"{', '.join(TEMPLATE_NAMES)}, or the path of a .jinja file"
            )
        if len(set(self.special_tokens)) < len(self.special_tokens) or not all(map(str.strip, self.special_tokens)):
            problems.append("special_tokens: a token is empty, or stands here twice")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unwritten(self) -> set[str]:
        unused = {"vocabulary", "min_frequency", "sample_megabytes", "weights"} if self.from_ is not None else set()
        unset = {name for name, value in _UNSET.items() if getattr(self, name) == value}
        return super()._unwritten() | unused | unset
