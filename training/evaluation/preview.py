"""Rows of training data as a model will see them: decoded, and told apart by what is learned of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data.conversations.chat_format import ChatFormat
from training.data.conversations.encoded_pairs import Pair, encode_pairs
from training.data.conversations.encoded_rows import encode_rows, pieces_of
from training.data.conversations.lessons import SIDES
from training.data.tables import read_rows
from training.data.tokens.byte_bpe import TOKENIZER_FILE, encode_texts, load_plain
from training.data.tokens.passes import read_in_phases
from training.data.tokens.shards import ArrayTokens, DocumentsOfSources, ShardDocuments, TokenReader, TokenShards
from training.errors import RecipeError
from training.specs.kinds import kind_of
from training.specs.mixture import weights_of_shares
from training.specs.preview import Column, Piece, Preview, PreviewRequest, PreviewRow
from training.tokenizer_folder import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PAD = -1
_FILE = "train.parquet"
Decode = Callable[[list[int]], str]
Row = Mapping[str, Any]


def preview(request: PreviewRequest) -> Preview:
    """The rows that a request asks for, encoded as the training encodes them.

    Raises:
        TemplateRefused: The chat template cannot be used, or loses what a row holds.
        RowRefused: A row cannot be encoded.
        RecipeError: No row fits into the context.
    """
    kind = kind_of(request.asset)
    tokenizer = load_tokenizer(request.tokenizer / "tokenizer")
    if kind == "packed_shards":
        return _shards(request, tokenizer)
    chat_format = ChatFormat.of(tokenizer)

    rows = sorted(read_rows(request.data / _FILE), key=lambda row: str(row["id"]))
    if kind == "preference_data":
        return _pairs(request, chat_format, _matching(rows, request.find))
    if request.packed:
        return _packed_rows(request, chat_format, rows)
    return _conversations(request, chat_format, _matching(rows, request.find))


def _shards(request: PreviewRequest, tokenizer: PreTrainedTokenizerBase) -> Preview:
    """Rows of pretraining text, which need no chat template."""
    shards = TokenShards(request.data)
    by_name = request.weights
    if request.mixture:
        try:
            by_name = weights_of_shares(request.mixture, shards.tokens_of_sources())
        except ValueError as error:
            raise RecipeError(f"base_model.mixture: {error}") from error
    weights = [by_name.get(name, 1.0) for name in shards.sources]

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return _packed(request, decode, ShardDocuments(shards), DocumentsOfSources(shards), weights)


def _matching(rows: Sequence[Row], find: str) -> list[Row]:
    if find and (there := [row for row in rows if f"/{row.get('where') or ''}".endswith(f"/{find}")]):
        return there
    texts = ("id", "where", "messages", "prompt", "chosen", "rejected")
    return [row for row in rows if not find or any(find in str(row.get(name) or "") for name in texts)]


def _conversations(request: PreviewRequest, chat_format: ChatFormat, rows: Sequence[Row]) -> Preview:
    """One conversation after the other, each as it fits into the context."""
    chosen = rows[request.first : request.first + request.count]
    if not chosen:
        return Preview(rows=(), of=len(rows))
    notes: list[str] = []
    encoded = encode_rows(chat_format, chosen, _FILE, request.context, None, notes.append, request.too_long)
    shown = [
        PreviewRow(title=_title(chosen[number]), columns=(Column(pieces=_pieces(chat_format.decode, ids, mask)),))
        for number, ids, mask in zip(encoded.numbers, encoded.sequences, encoded.masks, strict=True)
    ]
    return Preview(rows=tuple(shown), of=len(rows), notes=tuple(notes))


def _pairs(request: PreviewRequest, chat_format: ChatFormat, rows: Sequence[Row]) -> Preview:
    """Pairs, the chosen beside the rejected answer."""
    chosen = [dict(row) for row in rows[request.first : request.first + request.count]]
    if not chosen:
        return Preview(rows=(), of=len(rows))
    notes: list[str] = []
    pairs, _ = encode_pairs(chat_format, chosen, request.context, notes.append, too_long=request.too_long)
    titles = {str(row["id"]): _title(row) for row in chosen}
    shown = [PreviewRow(title=titles[pair.id], columns=tuple(_sides(chat_format.decode, pair))) for pair in pairs]
    return Preview(rows=tuple(shown), of=len(rows), notes=tuple(notes))


def _sides(decode: Decode, pair: Pair) -> Iterator[Column]:
    for name, answer, given in zip(SIDES, (pair.chosen, pair.rejected), pair.given, strict=True):
        mask = np.zeros(len(pair.prompt) + len(answer), np.bool_)
        mask[len(pair.prompt) :] = True
        mask[[len(pair.prompt) + place for place in given]] = False
        yield Column(name=name, pieces=_pieces(decode, np.array([*pair.prompt, *answer], np.int64), mask))


def _packed_rows(request: PreviewRequest, chat_format: ChatFormat, rows: Sequence[Row]) -> Preview:
    """Conversations, and an adapter's documents, packed into rows in the order of the training."""
    notes: list[str] = []
    encoded = encode_rows(chat_format, rows, _FILE, request.context, None, notes.append, request.too_long)
    sequences, masks = encoded.sequences, encoded.masks
    for piece in _documents(request, chat_format):
        sequences.append(piece)
        masks.append(np.ones(len(piece), np.bool_))

    tokens = ArrayTokens(sequences, masks)
    shown = _packed(request, chat_format.decode, tokens, [np.arange(len(sequences))], [1.0])
    return shown.model_copy(update={"notes": (*notes, *shown.notes)})


def _documents(request: PreviewRequest, chat_format: ChatFormat) -> Iterator[np.ndarray]:
    path = request.data / "documents.parquet"
    texts = [row["text"] for row in sorted(read_rows(path), key=lambda row: str(row["id"]))] if path.is_file() else []
    if texts:
        plain = load_plain(request.tokenizer / TOKENIZER_FILE)
        for ids in encode_texts(plain, texts):
            document = np.array([*ids, chat_format.end_of_text], np.int64)
            yield from pieces_of(document, chat_format.before_document, request.context)


def _packed(
    request: PreviewRequest,
    decode: Decode,
    tokens: TokenReader,
    documents: Sequence[np.ndarray],
    weights: Sequence[float],
) -> Preview:
    """Rows in the order of a training's first pass."""
    last = request.first + request.count
    (read,) = read_in_phases(documents, tokens.lengths, weights, [(request.context, last)], request.seed)
    batch = read.batch(tokens, request.first, request.count, _PAD)

    shown = []
    for number in range(request.count):
        ids, positions = batch["input_ids"][number], batch["position_ids"][number]
        starts = [*np.flatnonzero((positions == 0) & (ids != _PAD)).tolist(), int((ids != _PAD).sum())]
        pieces: list[Piece] = []
        for start, end in pairwise(starts):
            learned = batch["labels"][number][start:end] >= 0
            pieces += [Piece(kind="border"), *_pieces(decode, ids[start:end], learned)]
        if starts[-1] < request.context:
            pieces.append(Piece(kind="padding", tokens=request.context - starts[-1]))
        shown.append(
            PreviewRow(title=f"packed row {request.first + number + 1}", columns=(Column(pieces=tuple(pieces)),))
        )
    notes = (
        f"Packed as one phase of {request.context} tokens a row, without replayed text. Documents of a row do not see "
        "each other; where a model cannot keep them apart, each has a row of its own.",
    )
    return Preview(rows=tuple(shown), notes=notes)


def _pieces(decode: Decode, ids: np.ndarray, learned: np.ndarray) -> tuple[Piece, ...]:
    """Runs of learned and of given tokens.

    Args:
        ids: Token ids, int64 [length].
        learned: Which of them are learned, bool [length].
    """
    cuts = [0, *(np.flatnonzero(np.diff(learned.astype(np.int8))) + 1).tolist(), len(ids)]
    pieces: list[Piece] = []
    before = ""
    for start, end in pairwise(cuts):
        # A run by itself may lose the blank before it, or half of a character: it is what the whole gains by it.
        whole = decode(ids[:end].tolist())
        text = whole[len(before) :] if whole.startswith(before) else decode(ids[start:end].tolist())
        pieces.append(Piece(kind="learned" if learned[start] else "given", text=text, tokens=end - start))
        before = whole
    return tuple(pieces)


def _title(row: Row) -> str:
    where = str(row.get("where") or "")
    return where or f"{row.get('kind') or 'row'} {row['id']}"
