from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from training.data.packing import IGNORE, PackingPlan, plan, rows
from training.data.shards import ArrayTokens

PAD = 1
_LENGTHS = st.lists(st.integers(0, 70), max_size=60)


def _covered(packing: PackingPlan, documents: int) -> list[list[int]]:
    places: list[list[int]] = [[] for _ in range(documents)]
    for document, start, length in zip(packing.document, packing.start, packing.length, strict=True):
        places[document] += range(start, start + length)
    return [sorted(found) for found in places]


@given(_LENGTHS, st.integers(1, 33))
@settings(max_examples=200, deadline=None)
def test_every_token_lies_in_exactly_one_row(lengths: list[int], context: int) -> None:
    packing = plan(np.array(lengths, np.int64), context)
    assert _covered(packing, len(lengths)) == [list(range(length)) for length in lengths]
    used = [packing.length[a:b].sum() for a, b in zip(packing.row_offsets, packing.row_offsets[1:], strict=False)]
    assert all(0 < row <= context for row in used)
    assert packing.row_offsets[-1] == len(packing.length)
    assert packing.tokens == sum(lengths)


@given(_LENGTHS, st.integers(2, 33))
@settings(max_examples=100, deadline=None)
def test_fit_is_the_tightest(lengths: list[int], context: int) -> None:
    packing = plan(np.array(lengths, np.int64), context)
    rest = sorted((length % context for length in lengths if length % context), reverse=True)
    free: list[int] = []
    for size in rest:
        fitting = [room for room in free if room >= size]
        room = min(fitting) if fitting else context
        if fitting:
            free.remove(room)
        free.append(room - size)
    whole = sum(length // context for length in lengths)
    assert packing.rows == whole + len(free)


def test_only_the_chosen_documents_are_packed() -> None:
    packing = plan(np.array([5, 9, 3, 40]), 16, np.array([1, 3]))
    assert set(packing.document.tolist()) == {1, 3}
    assert packing.tokens == 49
    assert packing.efficiency == pytest.approx(49 / 64)


@given(_LENGTHS.filter(any), st.integers(1, 33))
@settings(max_examples=100, deadline=None)
def test_rows_hold_the_tokens_the_plan_says(lengths: list[int], context: int) -> None:
    generator = np.random.default_rng(sum(lengths))
    sequences = [generator.integers(10, 99, length) for length in lengths]
    masks = [generator.random(length) < 0.5 for length in lengths]
    packing = plan(np.array(lengths, np.int64), context)
    indices = generator.permutation(packing.rows)
    batch = rows(packing, ArrayTokens(sequences, masks), indices, PAD)
    for at, index in enumerate(indices):
        column = 0
        for piece in range(packing.row_offsets[index], packing.row_offsets[index + 1]):
            start, length = packing.start[piece], packing.length[piece]
            here, there = slice(column, column + length), slice(start, start + length)
            document = packing.document[piece]
            tokens, mask = sequences[document][there], masks[document][there].copy()
            mask[0] = False
            assert batch["input_ids"][at, here].tolist() == tokens.tolist()
            assert batch["labels"][at, here].tolist() == np.where(mask, tokens, IGNORE).tolist()
            assert batch["position_ids"][at, here].tolist() == list(range(length))
            column += length
        assert set(batch["input_ids"][at, column:].tolist()) <= {PAD}
        assert set(batch["labels"][at, column:].tolist()) <= {IGNORE}
        assert batch["position_ids"][at, column:].tolist() == list(range(context - column))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    built = LlamaForCausalLM(config).eval()
    built.set_attn_implementation("sdpa")
    return built


def _batch(lengths: list[int], context: int) -> tuple[PackingPlan, list[torch.Tensor], dict[str, torch.Tensor]]:
    generator = np.random.default_rng(3)
    sequences = [generator.integers(2, 99, length) for length in lengths]
    packing = plan(np.array(lengths), context)
    found = rows(packing, ArrayTokens(sequences), np.arange(packing.rows), PAD)
    return packing, [torch.tensor(s) for s in sequences], {name: torch.tensor(a) for name, a in found.items()}


def test_a_packed_document_has_the_logits_it_has_alone(model: LlamaForCausalLM) -> None:
    packing, sequences, batch = _batch([9, 30, 1, 14, 5, 32, 2], 32)
    with torch.no_grad():
        packed = model(**{**batch, "labels": None}, use_cache=False).logits
        for row in range(packing.rows):
            column = 0
            for piece in range(packing.row_offsets[row], packing.row_offsets[row + 1]):
                length = int(packing.length[piece])
                alone = model(input_ids=sequences[packing.document[piece]][None]).logits[0]
                torch.testing.assert_close(packed[row, column:column + length], alone, atol=1e-5, rtol=0)
                column += length


def test_loss_and_gradient_of_rows_are_those_of_the_documents(model: LlamaForCausalLM) -> None:
    _, sequences, batch = _batch([9, 20, 14, 5, 3], 32)
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    torch.autograd.backward(loss)
    packed = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    predicted = sum(len(sequence) - 1 for sequence in sequences)
    alone = sum(model(input_ids=s[None], labels=s[None]).loss * (len(s) - 1) for s in sequences) / predicted
    assert isinstance(alone, torch.Tensor)
    torch.autograd.backward(alone)
    torch.testing.assert_close(loss, alone, atol=1e-5, rtol=0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(packed[name], value.grad, atol=1e-5, rtol=1e-3)
