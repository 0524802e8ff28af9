"""FP8 training: rounding error, number of converted layers, training, what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lmkernels import Choice, Overflows, choose, high_precision
from torch import nn
from torchao.float8.float8_linear import Float8Linear
from transformers import LlamaConfig, LlamaForCausalLM

CPU = torch.device("cpu")
# Relative error of the norm. E4M3 has 3 mantissa bits (half a unit in the last place is 1/16 of a number, about 3.6%
# over a uniform mantissa); E5M2, used for gradients, has 2.
TOLERANCE = {"output": 0.05, "grad_input": 0.10, "grad_weight": 0.10}


def fp8() -> Choice:
    return choose("fp8", "auto", CPU, "llama")


def small_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    } | changes
    return LlamaForCausalLM(LlamaConfig(**fields))


def products(layer: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    output.backward(gradient)
    weight_gradient = next(layer.parameters()).grad
    assert inputs.grad is not None
    assert weight_gradient is not None
    found = {"output": output.detach(), "grad_input": inputs.grad, "grad_weight": weight_gradient.clone()}
    layer.zero_grad()
    return {name: tensor.float() for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [48, 37])
def test_products_stay_within_the_rounding_of_fp8(dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(1)
    block = nn.Sequential(nn.Linear(64, 32, bias=False)).to(dtype)
    inputs, gradient = torch.randn(tokens, 64, dtype=dtype), torch.randn(tokens, 32, dtype=dtype)
    reference = products(block, inputs, gradient)
    assert fp8().convert(block) == 1
    for name, found in products(block, inputs, gradient).items():
        error = (found - reference[name]).norm() / reference[name].norm()
        assert 0.001 < error < TOLERANCE[name], (name, float(error))


def test_every_linear_layer_but_the_head_is_converted() -> None:
    model, choice = small_llama(), fp8()
    assert choice.expected_conversions(model) == 2 * 7
    assert choice.convert(model) == 2 * 7
    assert choice.expected_conversions(model) == 2 * 7
    assert type(model.lm_head) is nn.Linear
    assert isinstance(model.model.layers[1].mlp.down_proj, Float8Linear)


def test_sizes_that_are_no_multiples_of_16_are_left_alone() -> None:
    model, choice = small_llama(intermediate_size=72), fp8()
    assert choice.expected_conversions(model) == 2 * 4 == choice.convert(model)


def test_other_precisions_convert_nothing() -> None:
    model, choice = small_llama(), choose("bf16", "torch", CPU, "llama")
    assert choice.expected_conversions(model) == choice.convert(model) == choice.revert(model) == 0


def train(model: LlamaForCausalLM, steps: int = 20) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    text = torch.randint(96, (1, 24), generator=generator).repeat(8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=text, labels=text).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_a_llama_trains_in_emulated_fp8_as_in_fp32() -> None:
    plain, converted = small_llama(), small_llama()
    assert fp8().convert(converted) == 14
    expected, found = train(plain), train(converted)
    assert found != expected, "FP8 rounding must show"
    assert found[-1] < 0.75 * found[0]
    assert max(abs(a - b) / b for a, b in zip(found, expected, strict=True)) < 0.03


def test_what_is_saved_is_plain(tmp_path: Path) -> None:
    model, choice = small_llama(), fp8()
    names = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    choice.convert(model)
    train(model, steps=2)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == names
    assert all(type(tensor) is torch.Tensor for tensor in model.state_dict().values())
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    assert choice.revert(model) == 14
    assert not any(isinstance(module, Float8Linear) for module in model.modules())
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(16)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_converted_layers_can_multiply_as_plain_ones_for_a_while() -> None:
    tokens = torch.arange(16)[None]
    model = small_llama()
    plain = model(tokens).logits
    fp8().convert(model)
    rounded = model(tokens).logits

    with high_precision(model):
        assert torch.equal(model(tokens).logits, plain)

    assert torch.equal(model(tokens).logits, rounded)
    assert not torch.equal(rounded, plain)


def test_overflows_are_counted_in_results_and_gradients() -> None:
    """Four products: a good one, an infinite input, an infinite gradient, and one that nobody looks at."""
    block = nn.Sequential(nn.Linear(64, 32, bias=False))
    fp8().convert(block)
    overflows = Overflows(block)
    good, bad = torch.ones(16, 64), torch.full((16, 64), torch.inf)
    overflows.active = True
    block(good).sum().backward()
    assert overflows.count() == 0
    block(bad)
    assert overflows.count() == 1
    block(good).backward(torch.full((16, 32), torch.nan))
    assert overflows.count() == 2
    overflows.active = False
    block(bad)
    assert overflows.count() == 2
