"""`python -m training.chat MODEL_FOLDER [QUESTION]`: answer one question, or converse until the input ends."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import training.engine  # noqa: F401  # before torch: it silences warnings of torchao and torch at their import
from training.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.data.conversations.chat_format import ChatFormat

_MAX_NEW_TOKENS = 128
_ANSWER_SHARE = 4  # a quarter of a small model's positions is kept for the answer
_ENDS = ("quit", "exit")


def main(arguments: list[str]) -> int:
    """Load a plain transformers folder and answer greedily."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # a test may have put something else there
            stream.reconfigure(errors="replace")
    try:
        return _talk(Path(arguments[0]), [_readable(argument) for argument in arguments[1:]])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _talk(folder: Path, words: list[str]) -> int:
    from transformers import logging

    from training.model_folder import load_model
    from training.tokenizer_folder import load_tokenizer

    question = " ".join(words).strip()
    if words and not question:
        raise UserError("the question is empty")

    logging.disable_progress_bar()
    conversation = Conversation(load_model(folder), load_tokenizer(folder))
    if question:
        print(conversation.ask(question))
        return 0

    print(f"Ask something; {' or '.join(_ENDS)} or Ctrl-D ends.")
    for line in iter(_read, None):
        try:
            print(conversation.ask(line))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 0


@dataclass
class Conversation:
    """A model and the turns of a conversation with it.

    Attributes:
        messages: Turns that the model still sees; the oldest are left out where its positions end.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    messages: list[dict[str, str]] = field(default_factory=list)
    chat_format: ChatFormat | None = None

    @property
    def positions(self) -> int | None:
        """Most tokens of a conversation with its answer; None where the model has no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def limit(self) -> int | None:
        """Most tokens before the answer."""
        return self.positions and self.positions - min(_MAX_NEW_TOKENS, self.positions // _ANSWER_SHARE)

    def ask(self, question: str) -> str:
        """The answer to a question that continues the conversation.

        Raises:
            UserError: The question alone is longer than the model can read.
        """
        import torch

        ids = self._encode(question)
        room = _MAX_NEW_TOKENS if self.positions is None else min(_MAX_NEW_TOKENS, self.positions - ids.shape[1])
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False)

        answer = str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return answer

    def _encode(self, question: str) -> torch.Tensor:
        """Token ids of the conversation with its next question, int64 [1, length]; its oldest turns may be left out."""
        import torch

        from training.data.conversations.chat_format import ChatFormat

        if self.chat_format is None:
            self.chat_format = ChatFormat.of(self.tokenizer)
        kept = list(self.messages)
        while True:
            asked = [*kept, {"role": "user", "content": question}]
            ids = torch.from_numpy(self.chat_format.prompt(asked))[None]
            if self.limit is None or ids.shape[1] <= self.limit:
                break
            if not kept:
                raise UserError(
                    f"the question has {ids.shape[1]} tokens, and the model reads at most {self.limit} of "
                    "them: shorten it"
                )
            kept = kept[2:]

        if left_out := (len(self.messages) - len(kept)) // 2:
            print(
                f"(the model reads at most {self.limit} tokens: the oldest {left_out} of {len(self.messages) // 2} "
                "questions and answers are left out from here on)",
                file=sys.stderr,
                flush=True,
            )
        self.messages = kept
        return ids


def _read() -> str | None:
    """The next line that is not blank; None at the end of the input or at `quit`."""
    while True:
        try:
            line = _readable(input("> ")).strip()
        except EOFError:
            return None
        if line.lower() in _ENDS:
            return None
        if line:
            return line


def _readable(text: str) -> str:
    """A text of the command line or the terminal; bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
