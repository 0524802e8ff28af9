"""Measures `tokenizer` on the held-out split, some megabytes of its text at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from training.data.conversations import chat_format
from training.data.conversations.chat_template import TEMPLATE_FILE
from training.data.text.documents import Split
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.evaluation.heldout_texts import MAX_BYTES, RoundTrip, round_trip, round_trip_of
from training.evaluation.measurement import Measurement
from training.evaluation.round_trip import Conversation, awkward_conversations, fault
from training.job.context import InputArtifact
from training.job.parts import Pool
from training.specs.tokenizer import SPECIAL_TOKENS
from training.tokenizer_folder import is_own_tokenizer, load_tokenizer

_CONVERSATIONS = 64
_PIECE = 120


def measure_tokenizer(artifact: InputArtifact, corpus: InputArtifact | None, pool: Pool) -> Measurement:
    """Losslessness, bytes per token, special tokens, and the mask of the assistant's turns.

    Args:
        artifact: The tokenizer.
        corpus: Its held-out texts are measured on; without one, the texts of a few awkward conversations are.
        pool: Works on the parts of the held-out texts.
    """
    measurement = Measurement()
    path = artifact.folder / TOKENIZER_FILE
    if corpus is None:
        measurement.notes.append("the recipe has no corpus: measured on the texts of a few awkward conversations")
        turns = [(name, turn["content"]) for name, talk in awkward_conversations().items() for turn in talk]
        first_texts, measured = [text for _, text in turns], [round_trip(path, turns)]
    else:
        heldout = Split(corpus.folder / "heldout")
        first_texts = list(itertools.islice(itertools.chain.from_iterable(heldout.texts(MAX_BYTES)), _CONVERSATIONS))
        measured, documents = round_trip_of(heldout, path, pool)
        if (count := sum(part.documents for part in measured)) < documents:
            measurement.notes.append(f"measured on {count:,} of {documents:,} held-out documents, chosen by digest")
    _round_trip(measurement, measured)

    # The names of special tokens as plain text are added: none of them may become a special token.
    tokenizer = load_tokenizer(artifact.folder / "tokenizer")
    plain = load_plain(path)
    is_own = is_own_tokenizer(tokenizer)
    names = SPECIAL_TOKENS if is_own else special_names(plain)
    hostile = list(encode_texts(plain, [" ".join(names), "".join(names)]))
    _special_tokens(measurement, tokenizer, names, [*(part.used for part in measured), *hostile])
    if is_own:
        _generation_mask(measurement, tokenizer, first_texts)
    else:
        _foreign_mask(measurement, artifact.folder / "tokenizer", first_texts)
    return measurement


def _round_trip(measurement: Measurement, measured: Sequence[RoundTrip]) -> None:
    """Record how many texts come back as they were, and bytes per token."""
    documents, tokens = sum(part.documents for part in measured), sum(part.tokens for part in measured)
    if not documents:
        for metric in ("round_trip", "bytes_per_token"):
            measurement.leave_out(metric, "the corpus holds no held-out text")
        return

    wrong = [row for part in measured for row in part.wrong]
    for id_, text, decoded in wrong:
        measurement.fail("round_trip", id_, 0.0, text=text, decoded=decoded)
    measurement.add("round_trip", 1 - len(wrong) / documents, documents)
    measurement.add("bytes_per_token", sum(part.bytes for part in measured) / max(tokens, 1), tokens)


def special_names(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The special tokens of an imported tokenizer, in the order of their ids."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    return tuple(token.content for _, token in added if token.special)


def _special_tokens(
    measurement: Measurement,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    plain: list[npt.NDArray[np.int32]],
) -> None:
    """Whether each special token is one token, and one that no plain text contains."""
    used = set(np.unique(np.concatenate(plain)).tolist())
    good = 0
    for token in names:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        is_sound = len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids) == [token] and ids[0] not in used
        good += is_sound
        if not is_sound:
            measurement.fail("special_tokens", token, 0.0, ids=list(ids))
    measurement.add("special_tokens", good / len(names), len(names))


def sample_conversations(texts: list[str]) -> list[Conversation]:
    """Conversations of one and two turns from pieces of held-out text; some try to forge a turn."""
    conversations = [*awkward_conversations().values()]
    for text in texts[:_CONVERSATIONS]:
        a, b, c, d = (text[number * _PIECE : (number + 1) * _PIECE] for number in range(4))
        first_turns = [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        more_turns = [{"role": "user", "content": c}, {"role": "assistant", "content": "\n " + a}]
        conversations.append(first_turns)
        conversations.append([{"role": "system", "content": d}, *first_turns, *more_turns])
    return conversations


def _generation_mask(measurement: Measurement, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    conversations = sample_conversations(texts)
    good = 0
    for number, messages in enumerate(conversations):
        reason = fault(tokenizer, messages)
        good += not reason
        if reason:
            measurement.fail("generation_mask", f"conversation {number}", 0.0, reason=reason)
    measurement.add("generation_mask", good / len(conversations), len(conversations))


def _foreign_mask(measurement: Measurement, folder: Path, texts: list[str]) -> None:
    """The same for an imported tokenizer, whose template is rendered in a process of its own.

    A template may refuse a role or an empty answer. Such a conversation would be refused in training too, so it is
    counted apart.
    """
    if not (folder / TEMPLATE_FILE).is_file():
        measurement.leave_out("generation_mask", "the tokenizer has no chat template: name one as tokenizer.template")
        return
    chat = chat_format.ChatFormat.load(folder)
    conversations = [chat_format.Conversation(messages) for messages in sample_conversations(texts)]
    good = read = 0
    for number, (conversation, encoded) in enumerate(zip(conversations, chat.encode_each(conversations), strict=True)):
        if isinstance(encoded, chat_format.RowRefused):
            continue
        read += 1
        try:
            chat_format.check(chat, conversation, encoded)
            good += 1
        except chat_format.RowRefused as error:
            measurement.fail("generation_mask", f"conversation {number}", 0.0, reason=str(error))
    if read < len(conversations):
        measurement.notes.append(
            f"the chat template refuses {len(conversations) - read} of {len(conversations)} samples"
        )
    if read:
        measurement.add("generation_mask", good / read, read)
    else:
        measurement.leave_out("generation_mask", "the chat template refuses every sample conversation")
