from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from training.data.tokens.packing import IGNORE, PackingPlan, Size, Spans, plan, rows, size_of_plan, whole
from training.data.tokens.shards import ArrayTokens

PAD = 1
_LENGTHS = st.lists(st.integers(0, 70), max_size=60)


def _covered(packing: PackingPlan, documents: int) -> list[list[int]]:
    places: list[list[int]] = [[] for _ in range(documents)]
    for document, start, length in zip(packing.document, packing.start, packing.length, strict=True):
        places[document] += range(start, start + length)
    return [sorted(places_of_document) for places_of_document in places]


@given(_LENGTHS, st.integers(2, 33))
@settings(max_examples=200, deadline=None)
def test_every_token_lies_in_exactly_one_row(lengths: list[int], context: int) -> None:
    packing = plan(whole(np.array(lengths, np.int64)), context)
    assert _covered(packing, len(lengths)) == [list(range(length)) for length in lengths]
    used = [(packing.length[a:b] + 1).sum() for a, b in zip(packing.row_offsets, packing.row_offsets[1:], strict=False)]
    assert all(1 < row <= context for row in used)
    assert packing.row_offsets[-1] == len(packing.length)
    assert packing.tokens == sum(lengths)
    assert packing.used == sum(used)


@given(_LENGTHS, st.integers(2, 33))
@settings(max_examples=100, deadline=None)
def test_fit_is_the_tightest(lengths: list[int], context: int) -> None:
    packing = plan(whole(np.array(lengths, np.int64)), context)
    rest = sorted((length % (context - 1) for length in lengths if length % (context - 1)), reverse=True)
    free: list[int] = []
    for size in (tokens + 1 for tokens in rest):
        fitting = [room for room in free if room >= size]
        room = min(fitting) if fitting else context
        if fitting:
            free.remove(room)
        free.append(room - size)
    full = sum(length // (context - 1) for length in lengths)
    assert packing.rows == full + len(free)


@given(_LENGTHS, st.integers(2, 33), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_size_of_a_plan_is_known_without_it(lengths: list[int], context: int, alone: bool) -> None:
    packing = plan(whole(np.array(lengths, np.int64)), context, alone)
    assert size_of_plan(np.array(lengths, np.int64), context, alone) == Size(packing.rows, packing.used)


def test_only_the_chosen_documents_are_packed() -> None:
    packing = plan(whole(np.array([5, 9, 3, 40]), np.array([1, 3])), 16)
    assert set(packing.document.tolist()) == {1, 3}
    assert packing.tokens == 49
    assert packing.used == 49 + 1 + 3
    assert packing.efficiency == pytest.approx(53 / 64)


def test_parts_of_documents_keep_their_places() -> None:
    packing = plan(Spans(np.array([3, 5]), np.array([10, 2]), np.array([20, 4])), 9)
    assert _covered(packing, 6)[3] == list(range(10, 30))
    assert _covered(packing, 6)[5] == list(range(2, 6))


def test_a_row_holds_one_piece_where_documents_would_see_each_other() -> None:
    packing = plan(whole(np.array([5, 9, 3, 40, 0])), 16, alone=True)
    assert np.diff(packing.row_offsets).tolist() == [1] * 6
    assert _covered(packing, 5) == [list(range(length)) for length in (5, 9, 3, 40, 0)]


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        plan(whole(np.array([5])), 1)


@given(_LENGTHS.filter(any), st.integers(2, 33))
@settings(max_examples=100, deadline=None)
def test_rows_hold_the_tokens_the_plan_says(lengths: list[int], context: int) -> None:
    """Each piece stands after the token before it, and is predicted from that."""
    generator = np.random.default_rng(sum(lengths))
    sequences = [generator.integers(10, 99, length + 1) for length in lengths]
    masks = [generator.random(length + 1) < 0.5 for length in lengths]
    packing = plan(whole(np.array(lengths, np.int64)), context)
    indices = generator.permutation(packing.rows)
    batch = rows(packing, ArrayTokens(sequences, masks), indices, PAD)

    for at, index in enumerate(indices):
        column = 0
        for piece in range(packing.row_offsets[index], packing.row_offsets[index + 1]):
            start, size = packing.start[piece], packing.length[piece] + 1
            in_row, in_document = slice(column, column + size), slice(start, start + size)
            document = packing.document[piece]
            tokens, mask = sequences[document][in_document], masks[document][in_document].copy()
            mask[0] = False
            assert batch["input_ids"][at, in_row].tolist() == tokens.tolist()
            assert batch["labels"][at, in_row].tolist() == np.where(mask, tokens, IGNORE).tolist()
            assert batch["position_ids"][at, in_row].tolist() == list(range(size))
            column += size

        assert set(batch["input_ids"][at, column:].tolist()) <= {PAD}
        assert set(batch["labels"][at, column:].tolist()) <= {IGNORE}
        assert batch["position_ids"][at, column:].tolist() == list(range(context - column))


@given(_LENGTHS.filter(any), st.integers(2, 33), st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_token_is_learned_once_from_the_one_before_it(lengths: list[int], context: int, alone: bool) -> None:
    """Tokens are numbered through, so that a pair of neighbours names its place; 5 comes before every document."""
    numbers = np.split(np.arange(sum(lengths)) + 100, np.cumsum(lengths)[:-1])
    sequences = [np.concatenate([[5], document]) for document in numbers]
    packing = plan(whole(np.array(lengths, np.int64)), context, alone)
    batch = rows(packing, ArrayTokens(sequences), np.arange(packing.rows), PAD)
    targets = batch["labels"][:, 1:]
    learned = targets != IGNORE
    pairs = sorted(zip(batch["input_ids"][:, :-1][learned].tolist(), targets[learned].tolist(), strict=True))
    expected = [
        (before, token)
        for sequence in sequences
        for before, token in zip(sequence.tolist(), sequence[1:].tolist(), strict=False)
    ]
    assert pairs == sorted(expected)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    built = LlamaForCausalLM(config).eval()
    built.set_attn_implementation("sdpa")
    return built


def _batch(lengths: list[int], context: int) -> tuple[PackingPlan, list[torch.Tensor], dict[str, torch.Tensor]]:
    generator = np.random.default_rng(3)
    sequences = [generator.integers(2, 99, length) for length in lengths]
    packing = plan(whole(np.array(lengths) - 1), context)
    batch = rows(packing, ArrayTokens(sequences), np.arange(packing.rows), PAD)
    return packing, [torch.tensor(s) for s in sequences], {name: torch.tensor(a) for name, a in batch.items()}


def test_a_packed_document_has_the_logits_it_has_alone(model: LlamaForCausalLM) -> None:
    packing, sequences, batch = _batch([9, 30, 3, 14, 5, 32, 2], 32)
    with torch.no_grad():
        packed = model(**{**batch, "labels": None}, use_cache=False).logits
        for row in range(packing.rows):
            column = 0
            for piece in range(packing.row_offsets[row], packing.row_offsets[row + 1]):
                length = int(packing.length[piece]) + 1
                alone = model(input_ids=sequences[packing.document[piece]][None]).logits[0]
                torch.testing.assert_close(packed[row, column : column + length], alone, atol=1e-5, rtol=0)
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
