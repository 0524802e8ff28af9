"""Measures `tokenizer` on the held-out split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from training.data.text.documents import read_split, text_batches
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.evaluation.measurement import Measurement
from training.evaluation.round_trip import Conversation, awkward_conversations, fault
from training.job.context import InputArtifact
from training.model_folder import load_tokenizer
from training.specs.tokenizer import SPECIAL_TOKENS

_MAX_BYTES = 20 * 2**20
_CONVERSATIONS = 64
_PIECE = 120


def measure_tokenizer(artifact: InputArtifact, corpus: InputArtifact) -> Measurement:
    """Losslessness, bytes per token, special tokens, and the mask of the assistant's turns."""
    measurement = Measurement()
    heldout = read_split(corpus.folder / "heldout", ["id", "text"])
    texts = [text for batch in text_batches(heldout, _MAX_BYTES) for text in batch]
    if len(texts) < heldout.num_rows:
        measurement.notes.append(
            f"measured on {len(texts):,} of {heldout.num_rows:,} held-out documents, chosen by digest"
        )

    plain = load_plain(artifact.folder / TOKENIZER_FILE)
    encoded = list(encode_texts(plain, texts))
    decoded = plain.decode_batch([tokens.tolist() for tokens in encoded], skip_special_tokens=False)
    wrong = [index for index, text in enumerate(texts) if decoded[index].encode() != text.encode()]
    for index in wrong:
        measurement.fail(
            "round_trip", heldout["id"][index].as_py(), 0.0, text=texts[index][:80], decoded=decoded[index][:80]
        )

    if texts:
        measurement.add("round_trip", 1 - len(wrong) / len(texts), len(texts))
        size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
        measurement.add("bytes_per_token", size / max(tokens, 1), tokens)
    else:
        for metric in ("round_trip", "bytes_per_token"):
            measurement.leave_out(metric, "the corpus holds no held-out text")

    # The names of special tokens as plain text are added: none of them may become a special token.
    tokenizer = load_tokenizer(artifact.folder / "tokenizer")
    hostile = list(encode_texts(plain, [" ".join(SPECIAL_TOKENS), "".join(SPECIAL_TOKENS)]))
    _special_tokens(measurement, tokenizer, [*encoded, *hostile])
    _generation_mask(measurement, tokenizer, texts)
    return measurement


def _special_tokens(
    measurement: Measurement, tokenizer: PreTrainedTokenizerBase, plain: list[npt.NDArray[np.int32]]
) -> None:
    """Whether each special token is one token, and one that no plain text contains."""
    used = set(np.unique(np.concatenate(plain)).tolist())
    good = 0
    for token in SPECIAL_TOKENS:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        is_sound = len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids) == [token] and ids[0] not in used
        good += is_sound
        if not is_sound:
            measurement.fail("special_tokens", token, 0.0, ids=list(ids))
    measurement.add("special_tokens", good / len(SPECIAL_TOKENS), len(SPECIAL_TOKENS))


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
