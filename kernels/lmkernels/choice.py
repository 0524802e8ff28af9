"""The choice of precision, kernels and attention for one job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from lmkernels import fp8, liger
from lmkernels.errors import LmkernelsError

Precision = Literal["fp32", "bf16", "fp8"]
Kernels = Literal["torch", "liger"]
_BF16_CAPABILITY = (8, 0)  # Ampere


@dataclass(frozen=True)
class Choice:
    """What a job uses, and why.

    The order is `before_model`, build the model, `convert`, train, `revert`, save.

    Attributes:
        precision: Of the matrix products. The training engine decides that of norms, softmax and master weights.
        kernels: Whose kernels the model's layers run.
        attention: transformers' `attn_implementation`.
        fp8_emulated: Whether operands are rounded to FP8 and multiplied in high precision: FP8's numbers without its
            speed.
        reasons: One sentence per decision, for people.
        architecture: transformers' `model_type`.
    """

    precision: Precision
    kernels: Kernels
    attention: str
    fp8_emulated: bool
    reasons: tuple[str, ...]
    architecture: str

    @property
    def dtype(self) -> torch.dtype:
        """The type that activations are computed in: float32, or bfloat16 for bf16 and fp8."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def before_model(self) -> None:
        """Patch the architecture's modules where Liger was chosen; call it before the model is built."""
        if self.kernels == "liger":
            liger.apply(self.architecture)

    def convert(self, model: nn.Module) -> int:
        """Convert a built model's layers to FP8 where it was chosen.

        Returns:
            Number of FP8 layers in the model now, counted by class; 0 for other precisions.
        """
        return fp8.convert(model, self.fp8_emulated) if self.precision == "fp8" else 0

    def expected_conversions(self, model: nn.Module) -> int:
        """Number of layers that `convert` must reach, by the rule alone; hold it against what `convert` returns."""
        return fp8.count_eligible(model) if self.precision == "fp8" else 0

    def revert(self, model: nn.Module) -> int:
        """Put plain layers back in place; saved tensors are plain without it.

        Returns:
            Number of layers that were put back.
        """
        return fp8.revert(model) if self.precision == "fp8" else 0


def choose(precision: str, kernels: str, device: torch.device, architecture: str, sdpa: bool = True) -> Choice:
    """Decide what a job uses; nothing is patched or converted yet.

    Args:
        precision: `fp32`, `bf16` or `fp8`, as asked for by the recipe.
        kernels: `torch`, `liger`, or `auto`, which takes Liger on GPUs where it has kernels for the architecture.
        device: Where the job trains.
        architecture: transformers' `model_type`.
        sdpa: Whether transformers implements this architecture with torch's scaled dot product attention.

    Raises:
        LmkernelsError: A precision or kernel does not exist, or cannot run on this device.
    """
    emulated, why_precision = _precision(precision, device)
    chosen, why_kernels = _kernels(kernels, device, architecture)
    why_attention = (
        "attention sdpa: torch picks the fastest exact kernel"
        if sdpa
        else f"attention eager: transformers has no other for {architecture}"
    )
    return Choice(
        precision=cast(Precision, precision),
        kernels=chosen,
        attention="sdpa" if sdpa else "eager",
        fp8_emulated=emulated,
        reasons=(why_precision, why_kernels, why_attention),
        architecture=architecture,
    )


def _precision(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether FP8 is emulated, and why the precision was chosen."""
    if precision == "fp32":
        return False, "precision fp32: asked for"
    if precision == "bf16":
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < _BF16_CAPABILITY:
            raise LmkernelsError(f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic; set precision: fp32")
        return False, "precision bf16: asked for"
    if precision == "fp8":
        if fp8.hardware_fp8(device):
            return False, "precision fp8: this GPU has FP8 tensor cores"
        return True, (
            f"precision fp8, emulated: this {device.type} device has no FP8 tensor cores; the numbers are "
            "rounded as in FP8, the speed is not FP8's"
        )
    raise LmkernelsError(f"precision {precision!r} is not one of fp32, bf16, fp8")


def _kernels(kernels: str, device: torch.device, architecture: str) -> tuple[Kernels, str]:
    if kernels == "torch":
        return "torch", "kernels torch: asked for"
    if kernels not in ("auto", "liger"):
        raise LmkernelsError(f"kernels {kernels!r} is not one of auto, torch, liger")

    obstacle = liger.unavailable(architecture, device.type)
    if kernels == "liger" and obstacle:
        raise LmkernelsError(
            f"kernels: liger was asked for, but {obstacle}; set kernels: auto or torch, or run where it can"
        )
    if obstacle:
        return "torch", f"kernels torch: Liger was not taken because {obstacle}"
    if kernels == "auto" and device.type != "cuda":
        return "torch", "kernels torch: Liger would run in Triton's interpreter, which is for tests"
    note = ", in Triton's interpreter" if liger.interpreted() else ""
    return "liger", f"kernels liger: {'asked for' if kernels == 'liger' else 'available for ' + architecture}{note}"
