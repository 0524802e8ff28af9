"""From conversations to token ids, and to which of them are learned, for any tokenizer with any chat template.

A conversation's ids are those of one rendering of the whole. Learned are the chosen turns of the assistant as they are
rendered, each with its one end token. What a template adds or takes away is counted.
"""

from __future__ import annotations

import abc
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.conversations.chat_template import CHAT_TEMPLATE, TEMPLATE_FILE
from training.data.conversations.named_templates import NAMES, exported, named_template
from training.data.conversations.spans import THOUGHTS, Message
from training.data.conversations.template_process import USUAL, Limits, TemplateRefused
from training.data.tokens.shards import Bool, Int64
from training.errors import InputRefused
from training.specs.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
NOTES = {
    "trimmed": "answers of which the template cut white space",
    "thoughts_removed": "turns whose thought the template left out",
    "thoughts_added": "turns before which the template put a thought of its own, which is not learned",
    "system_added": "conversations in front of which the template put a text of its own",
    "moved_boundaries": "answers whose first token holds the end of what stands before",
    "names_as_text": "conversations with names of control tokens in their texts, which stayed text",
}
"""What is counted about a conversation, with what each count means."""


HIDDEN = ("train", "weight")
"""Keys of a message that are no template's: which turns are learned."""


class RowRefused(InputRefused):
    """A conversation cannot be encoded; the message names it."""


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    Attributes:
        messages: `role` and `content` each, and what else a template may read. `train` of an assistant's message says
            whether the turn is learned; it is where nothing is said.
        tools: Definitions of the tools.
        where: File and row, for messages.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] = ()
    where: str = ""

    @property
    def named(self) -> str:
        """The conversation in a message."""
        return self.where or "a conversation"


@dataclass(frozen=True)
class Turn:
    """A learned turn.

    Attributes:
        message: The message's number.
        first: Its first token.
        end: The token after its last, which is its end token.
        text: What these tokens are, with what the first one holds of the text before.
    """

    message: int
    first: int
    end: int
    text: str


@dataclass(frozen=True)
class Encoded:
    """An encoded conversation.

    Attributes:
        ids: Token ids, int64 [length].
        learned: Which of them are learned, bool [length].
        turns: The learned turns.
        notes: Counts by the names of `NOTES`.
    """

    ids: Int64
    learned: Bool
    turns: tuple[Turn, ...] = ()
    notes: Mapping[str, int] = field(default_factory=Counter)


class ChatFormat(abc.ABC):
    """How a model reads conversations.

    Attributes:
        name: Names the template in messages.
        template: Jinja; with `{% generation %}` where it has those marks.
        stops: Ids of the tokens that end a turn or a text.
        start: Id of the token before a text; None where the model has none.
        end_of_text: Id of the token after a document.
        pad: Id of the padding token.
        added_before_answer: What the template puts before an answer that no message says, such as an empty thought.
        learns_added: It is learned.
    """

    name: str
    template: str
    stops: tuple[int, ...]
    start: int | None
    end_of_text: int
    pad: int
    added_before_answer = ""
    learns_added = False

    @staticmethod
    def load(
        folder: Path,
        template: str | None = None,
        limits: Limits = USUAL,
    ) -> ChatFormat:
        """The format of a tokenizer's or a model's folder.

        Args:
            folder: With tokenizer.json and tokenizer_config.json.
            template: None for the folder's own, a name of `NAMES`, or the path of a .jinja file.
            limits: Of the process that renders.

        Raises:
            TemplateRefused: There is no template, or it cannot be used.
            InputRefused: A file is missing or malformed.
        """
        from training.data.conversations.tokenizer_files import read_files

        files = read_files(folder)
        chosen, name = choose_template(template, files.template, str(folder / TEMPLATE_FILE), files.has_start)
        if chosen == CHAT_TEMPLATE:
            from transformers import PreTrainedTokenizerFast

            from training.data.conversations.own_format import OwnFormat

            return OwnFormat(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
        from training.data.conversations.foreign_format import ForeignFormat

        return ForeignFormat(files, chosen, name, limits)

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
    ) -> ChatFormat:
        """The format of a tokenizer that is loaded already; see `load`."""
        from training.data.conversations.tokenizer_files import files_of

        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        # By its tokens and not by its template: another template in such a folder is a fault to be measured. Nothing of
        # it is ever run.
        if template is None and (own == CHAT_TEMPLATE or is_own_vocabulary(tokenizer.get_vocab())):
            from training.data.conversations.own_format import OwnFormat

            return OwnFormat(tokenizer)
        from training.data.conversations.foreign_format import ForeignFormat

        files = files_of(tokenizer)
        chosen, name = choose_template(template, own, "the tokenizer's chat template", files.has_start)
        return ForeignFormat(files, chosen, name, USUAL)

    @property
    def exported(self) -> str:
        """The template for every Jinja; it renders what training renders."""
        return exported(self.template)

    @property
    def variables(self) -> Mapping[str, str]:
        """Names and texts of the special tokens that a template may write, such as `bos_token`."""
        return {}

    def as_rendered(self, conversation: Conversation) -> list[dict[str, Any]]:
        """A conversation's messages as the template sees them."""
        return [
            {key: value for key, value in message.items() if key not in HIDDEN} for message in conversation.messages
        ]

    @property
    def before_document(self) -> int:
        """Id of the token before a document: the start, or else the end of the document before."""
        return self.end_of_text if self.start is None else self.start

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Encode conversations.

        Raises:
            RowRefused: One cannot be encoded.
            TemplateRefused: The template takes too much time or memory.
        """
        results = []
        for encoded in self.encode_each(conversations):
            if isinstance(encoded, RowRefused):
                raise encoded
            results.append(encoded)
        return results

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Int64:
        """Token ids of a conversation with the opening of the assistant's answer, int64 [length].

        Raises:
            RowRefused: It cannot be encoded.
        """
        return self.prompts([Conversation(messages, tools)])[0]

    def answered(self, messages: Sequence[Message], answer: str) -> tuple[Int64, Int64]:
        """Token ids of a conversation and of an answer to it with its end token: together they are one rendering.

        Raises:
            RowRefused: It cannot be encoded.
        """
        asked = [{**message, "train": False} for message in messages]
        (encoded,) = self.encode([Conversation([*asked, {"role": ASSISTANT, "content": answer}])])
        first = int(np.argmax(encoded.learned))
        return encoded.ids[:first], encoded.ids[first:][encoded.learned[first:]]

    @abc.abstractmethod
    def encode_each(self, conversations: Sequence[Conversation]) -> list[Encoded | RowRefused]:
        """`encode`, with the error in the place of a conversation that cannot be encoded."""

    @abc.abstractmethod
    def prompts(self, conversations: Sequence[Conversation]) -> list[Int64]:
        """`prompt` for many conversations."""

    @abc.abstractmethod
    def render(self, messages: Sequence[Message], prompt: bool = False, tools: Sequence[Any] = ()) -> str:
        """A conversation as the template's text.

        Raises:
            RowRefused: The template refuses it.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, with the names of control tokens."""

    def written(self, content: str) -> str:
        """A content as the template writes it, where it changes what a content holds."""
        return content

    @abc.abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """Token ids of plain text, in which names of control tokens are text too."""

    @abc.abstractmethod
    def as_read(self, text: str) -> str:
        """A text as the tokenizer gives it back, with the names of control tokens."""

    @abc.abstractmethod
    def count_controls(self, ids: Int64) -> int:
        """Number of control tokens among ids."""

    def is_thought(self, text: str) -> bool:
        """Whether a text is a thought that the template leaves out of earlier turns."""
        return False

    def encode_text(self, text: str, end: bool = False) -> Encoded:
        """A text that was rendered elsewhere, all of it learned but its start token.

        Args:
            text: In which the names of control tokens are meant.
            end: End it with `end_of_text` where it ends with no stop token.
        """
        ids = self.encode_rendered(text)
        start = [] if self.start is None else [self.start]
        while start and ids[:1] == start:
            ids = ids[1:]
        ending = [self.end_of_text] if end and (not ids or ids[-1] not in self.stops) else []
        whole = np.array([*start, *ids, *ending], np.int64)
        learned = np.ones(len(whole), np.bool_)
        learned[: len(start)] = False
        return Encoded(whole, learned)

    @abc.abstractmethod
    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a text in which the names of control tokens are meant."""


def is_own_vocabulary(vocabulary: Container[str]) -> bool:
    """Whether a vocabulary has the special tokens of the tokenizers that are trained here.

    One name alone says nothing: many models have a `<|endoftext|>`.
    """
    return all(token in vocabulary for token in SPECIAL_TOKENS)


def choose_template(wanted: str | None, own: str | None, place: str, has_start: bool) -> tuple[str, str]:
    """The template and its name.

    Raises:
        TemplateRefused: There is none.
    """
    if wanted is None:
        if not own:
            raise TemplateRefused(
                f"{place} does not exist: name a chat_template, one of {', '.join(NAMES)} or a .jinja"
            )
        return own, place
    if wanted in NAMES:
        return named_template(wanted, has_start), wanted
    path = Path(wanted)
    if path.suffix != ".jinja" or not path.is_file():
        raise TemplateRefused(f"chat_template: {wanted} is no .jinja file, and none of {', '.join(NAMES)}")
    return path.read_text(encoding="utf-8"), str(path)


def check(chat_format: ChatFormat, conversation: Conversation, encoded: Encoded) -> None:
    """See that what is learned is the chosen turns, each with its one end token, and nothing else.

    The tokens are decoded and compared with the messages, whatever way the encoding went.

    Raises:
        RowRefused: It is not so.
    """
    chosen = [number for number, message in enumerate(conversation.messages) if is_learned(message)]
    if [turn.message for turn in encoded.turns] != chosen:
        raise RowRefused(f"{conversation.named}: other turns are learned than the chosen ones ({chosen})")

    covered = np.zeros(len(encoded.ids), np.bool_)
    for turn in encoded.turns:
        covered[turn.first : turn.end] = True
        ids = encoded.ids[turn.first : turn.end]
        if int(ids[-1]) not in chat_format.stops:
            raise RowRefused(f"{conversation.named}: message {turn.message + 1} does not end with an end token")
        if any(int(token) in chat_format.stops for token in ids[:-1]):
            raise RowRefused(f"{conversation.named}: message {turn.message + 1} has more than one end token")

        beginning = chat_format.decode(ids[:1].tolist())
        content = str(conversation.messages[turn.message].get("content") or "")
        if beginning.isspace() and "\n" in beginning and not content[:1].isspace():
            raise RowRefused(f"{conversation.named}: what is learned begins with white space of the template")
        if not says(chat_format, conversation.messages[turn.message], ids[:-1]):
            raise RowRefused(
                f"{conversation.named}: what is learned of message {turn.message + 1} is "
                f"{chat_format.decode(ids.tolist())[:80]!r}, which is not what the message says"
            )
    if not np.array_equal(covered, encoded.learned):
        raise RowRefused(f"{conversation.named}: tokens are learned that belong to no turn of the assistant")


def says(chat_format: ChatFormat, message: Message, ids: Int64) -> bool:
    """Whether tokens, without the end token after them, are what a message says.

    Args:
        chat_format: The format.
        message: An assistant's.
        ids: Token ids, int64 [length].
    """
    content = chat_format.as_read(str(message.get("content") or ""))
    answer = chat_format.decode(ids.tolist())
    wanted, learned = _plain(content), _plain(answer)
    calls = message.get("tool_calls") or ()
    if calls or any(message.get(key) for key in THOUGHTS):
        return all(_plain(part) in learned for part in (content, *map(_called, calls)))
    if learned in (wanted, _plain(chat_format.added_before_answer + content)):
        return True
    if wanted.endswith(learned):
        return bool(learned) and chat_format.is_thought(content[: content.rindex(answer.strip())])
    # The first token may hold the end of what stands before the answer, if it holds the answer's beginning too.
    without_first = _plain(chat_format.decode(ids[1:].tolist()))
    return learned.endswith(wanted) and len(without_first) < len(wanted)


def _called(call: Any) -> str:
    """Name of the function that a tool call calls."""
    inner = call.get("function", call) if isinstance(call, Mapping) else {}
    return str(inner.get("name", "")) if isinstance(inner, Mapping) else ""


def is_learned(message: Message) -> bool:
    """Whether a message is an assistant's that is learned."""
    return message["role"] == ASSISTANT and message.get("train", True) is not False


def total_notes(rows: Sequence[Encoded]) -> dict[str, int]:
    """The rows' notes together, every name of `NOTES` among them."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.notes)
    return {name: total[name] for name in NOTES}


def _plain(text: str) -> str:
    """A text without white space: tokenizers and templates keep it differently."""
    return "".join(text.split())


def with_dictionaries(call: Any) -> Any:
    """A tool call whose arguments are a dictionary: JSON text becomes what it says, in its own order."""
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function", call)
    arguments = inner.get("arguments") if isinstance(inner, Mapping) else None
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except ValueError:
        return call
    parsed = {**inner, "arguments": value}
    return {**call, "function": parsed} if "function" in call else parsed
