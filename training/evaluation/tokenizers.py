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
    """Losslessness, compression, special tokens, and the mask of what the assistant says."""
    found = Measurement()
    heldout = read_split(corpus.folder / "heldout", ["id", "text"])
    texts = [text for batch in text_batches(heldout, _MAX_BYTES) for text in batch]
    if len(texts) < heldout.num_rows:
        found.notes.append(f"measured on {len(texts):,} of {heldout.num_rows:,} held-out documents, chosen by digest")
    plain = load_plain(artifact.folder / TOKENIZER_FILE)
    encoded = list(encode_texts(plain, texts))
    decoded = plain.decode_batch([tokens.tolist() for tokens in encoded], skip_special_tokens=False)
    wrong = [index for index, text in enumerate(texts) if decoded[index].encode() != text.encode()]
    for index in wrong:
        found.fail("round_trip", heldout["id"][index].as_py(), 0.0, text=texts[index][:80], decoded=decoded[index][:80])
    if texts:
        found.add("round_trip", 1 - len(wrong) / len(texts), len(texts))
        size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
        found.add("bytes_per_token", size / max(tokens, 1), tokens)
    else:
        for metric in ("round_trip", "bytes_per_token"):
            found.leave_out(metric, "the corpus holds no held-out text")
    tokenizer = load_tokenizer(artifact.folder / "tokenizer")
    hostile = list(encode_texts(plain, [" ".join(SPECIAL_TOKENS), "".join(SPECIAL_TOKENS)]))
    _special_tokens(found, tokenizer, [*encoded, *hostile])
    _generation_mask(found, tokenizer, texts)
    return found


def _special_tokens(found: Measurement, tokenizer: PreTrainedTokenizerBase, plain: list[npt.NDArray[np.int32]]) -> None:
    used = set(np.unique(np.concatenate(plain)).tolist())
    good = 0
    for token in SPECIAL_TOKENS:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        sound = len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids) == [token] and ids[0] not in used
        good += sound
        if not sound:
            found.fail("special_tokens", token, 0.0, ids=list(ids))
    found.add("special_tokens", good / len(SPECIAL_TOKENS), len(SPECIAL_TOKENS))


def sample_conversations(texts: list[str]) -> list[Conversation]:
    """Conversations of one and two turns from pieces of held-out text; some try to forge a turn."""
    conversations = [*awkward_conversations().values()]
    for text in texts[:_CONVERSATIONS]:
        a, b, c, d = (text[at * _PIECE : (at + 1) * _PIECE] for at in range(4))
        turns = [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        conversations.append(turns)
        conversations.append(
            [
                {"role": "system", "content": d},
                *turns,
                {"role": "user", "content": c},
                {"role": "assistant", "content": "\n " + a},
            ]
        )
    return conversations


def _generation_mask(found: Measurement, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    conversations = sample_conversations(texts)
    good = 0
    for number, messages in enumerate(conversations):
        reason = fault(tokenizer, messages)
        good += not reason
        if reason:
            found.fail("generation_mask", f"conversation {number}", 0.0, reason=reason)
    found.add("generation_mask", good / len(conversations), len(conversations))
