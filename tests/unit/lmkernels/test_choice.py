"""What is chosen on which machine, and what is refused."""

from __future__ import annotations

import pytest
import torch
from lmkernels import LmkernelsError, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_takes_torch_on_a_cpu_and_says_why() -> None:
    choice = choose("fp32", "auto", CPU, "llama")
    assert (choice.kernels, choice.attention, choice.dtype) == ("torch", "sdpa", torch.float32)
    assert any("need a CUDA device and this job runs on cpu" in reason for reason in choice.reasons)


def test_eager_attention_is_taken_where_there_is_no_sdpa() -> None:
    choice = choose("fp32", "torch", CPU, "gemma2", sdpa=False)
    assert choice.attention == "eager"
    assert "attention eager: transformers has no other for gemma2" in choice.reasons


def test_liger_is_refused_on_a_cpu() -> None:
    with pytest.raises(LmkernelsError, match=r"CUDA device.*set kernels: auto or torch"):
        choose("bf16", "liger", CPU, "llama")


@pytest.mark.parametrize(("precision", "kernels"), [("fp4", "auto"), ("bf16", "cute")])
def test_unknown_names_are_refused(precision: str, kernels: str) -> None:
    with pytest.raises(LmkernelsError, match="is not one of"):
        choose(precision, kernels, CPU, "llama")


@pytest.mark.parametrize(("capability", "emulated"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_fp8_is_emulated_below_capability_8_9(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], emulated: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    choice = choose("fp8", "torch", CUDA, "llama")
    assert choice.fp8_emulated is emulated
    assert ("emulated" in choice.reasons[0]) is emulated
    assert choice.dtype is torch.bfloat16


def test_fp8_on_a_cpu_is_emulated_and_says_so() -> None:
    choice = choose("fp8", "auto", CPU, "llama")
    assert choice.fp8_emulated
    assert "no FP8 tensor cores" in choice.reasons[0]


def test_auto_takes_liger_on_cuda_for_an_architecture_it_knows() -> None:
    assert choose("fp32", "auto", CUDA, "llama").kernels == "liger"
    unknown = choose("fp32", "auto", CUDA, "gpt2")
    assert unknown.kernels == "torch"
    assert any("no kernels for the architecture gpt2" in reason for reason in unknown.reasons)
    with pytest.raises(LmkernelsError, match="gpt2"):
        choose("fp32", "liger", CUDA, "gpt2")


def test_auto_does_not_take_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("fp32", "auto", CPU, "llama").kernels == "torch"
    assert choose("fp32", "liger", CPU, "llama").kernels == "liger"
