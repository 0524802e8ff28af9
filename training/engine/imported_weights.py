"""The weights of an imported model: rows for the tokenizer's tokens, and the plain folder that all stages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.data.tokens.byte_bpe import rows_of
from training.engine import export
from training.engine.model_import import ImportedModel
from training.engine.origin_folder import DROPPED, some
from training.errors import InputRefused
from training.model_folder import load_model


def fit_tokenizer(imported: ImportedModel, tokenizer: Tokenizer, added: Mapping[str, int]) -> tuple[str, ...]:
    """Give tokens of the recipe their rows, and refuse a tokenizer with words that the model has no row for.

    A row of a new token is the mean of the others (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained
    Language Models"). Rows beyond the tokenizer's are kept: many models have more than tokens.

    Args:
        imported: Its model is changed in place.
        tokenizer: The one of the same job.
        added: Special tokens of the recipe to id.

    Returns:
        What was done and found, in words.

    Raises:
        InputRefused: A text could contain a token that has no row.
    """
    before, needed = imported.rows, rows_of(tokenizer)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    outside = {token: number for token, number in vocabulary.items() if number >= before and token not in added}
    if words := sorted(token for token, number in outside.items() if number not in special):
        raise InputRefused(
            f"the tokenizer does not fit the model: its token {words[0]!r} has the id {vocabulary[words[0]]}, and the "
            f"embedding has {before:,} rows ({len(words)} tokens are without one); take the tokenizer of this model"
        )

    notes = [f"{len(vocabulary):,} tokens, {before:,} rows of the embedding"]
    if added and needed > before:
        imported.model.resize_token_embeddings(needed, mean_resizing=False)
        notes.append(f"the embedding grew from {before:,} to {needed:,} rows for {', '.join(added)}")
    elif outside:
        notes.append(f"without a row, and never to be used: {some(sorted(outside))}")
    _fill_with_mean(imported.model, sorted({*added.values(), *range(before, imported.rows)}))
    return tuple(notes)


@torch.no_grad()
def _fill_with_mean(model: PreTrainedModel, rows: Sequence[int]) -> None:
    if not rows:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tensors = {id(embedding.weight): embedding.weight}
    for name in ("weight", "bias"):
        value = getattr(head, name, None)
        if value is not None:
            tensors[id(value)] = value
    for tensor in tensors.values():
        others = torch.ones(len(tensor), dtype=torch.bool)
        others[list(rows)] = False
        tensor[list(rows)] = tensor[others].double().mean(0).to(tensor.dtype)


def write_model(imported: ImportedModel, folder: Path, ends: Sequence[int], pad: int, used: int | None = None) -> None:
    """Write configuration, weights and generation settings as the plain folder that all stages read.

    Args:
        imported: The model; its weights keep their own type.
        folder: `model/` of the artifact.
        ends: All tokens that end a text.
        pad: Id of the padding token.
        used: Rows of the embedding up to that of the last token; None for all of them.
    """
    model = imported.model
    values = {key: value for key, value in model.config.to_dict().items() if key not in DROPPED}
    values.pop("quantization_config", None)
    if "use_cache" in values:
        values["use_cache"] = True
    config = type(model.config).from_dict(values)
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=imported.dtype)
    weights = {
        name: value.to(imported.dtype) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    if model.get_output_embeddings() is not None and not _is_tied(model):
        assert not getattr(config.get_text_config(), "tie_word_embeddings", False)
    plain.load_state_dict(weights, assign=True, strict=True)
    plain.tie_weights()
    rows = model.get_input_embeddings().weight.shape[0]
    plain.generation_config = export.greedy(ends, pad, range(rows if used is None else used, rows))
    plain.save_pretrained(folder)


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@torch.inference_mode()
def logits_of(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits, float32 [length, vocabulary], of each row of token ids by itself."""
    return [model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]


def written_difference(folder: Path, rows: Sequence[Sequence[int]], before: Sequence[torch.Tensor]) -> float:
    """Largest difference between the logits of a written folder and those that the model had before.

    Raises:
        InputRefused: The folder does not load.
    """
    written = logits_of(load_model(folder), rows)
    return max(float((left - right).abs().max()) for left, right in zip(written, before, strict=True))
