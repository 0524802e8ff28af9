"""Liger's fused Triton kernels (Hsu et al., 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training").

Liger replaces classes and functions inside the modules of transformers, so it must run before a model is built.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable

from lmkernels.errors import LmkernelsError

# Triton's interpreter passes Python floats on as floats, and these two kernels call `.to()` on them.
_NOT_INTERPRETED = ("rms_norm", "swiglu")


def interpreted() -> bool:
    """True when Triton runs kernels in Python on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(architecture: str, device_type: str) -> str | None:
    """Why Liger cannot be used, as a part of a sentence, or None when it can.

    Args:
        architecture: transformers' `model_type`.
        device_type: `cuda`, `cpu` and the like.
    """
    if device_type != "cuda" and not interpreted():
        return f"its kernels need a CUDA device and this job runs on {device_type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if architecture not in _appliers():
        return f"it has no kernels for the architecture {architecture}"
    return None


def apply(architecture: str) -> tuple[str, ...]:
    """Patch transformers' modules of one architecture.

    Returns:
        Names of the kernels that were put in, sorted.

    Raises:
        LmkernelsError: Liger has no kernels for the architecture.
    """
    appliers = _appliers()
    if architecture not in appliers:
        raise LmkernelsError(f"Liger has no kernels for {architecture}; set kernels: torch in the recipe")
    parameters = inspect.signature(appliers[architecture]).parameters
    # Each kernel is a switch of the function; its default says whether Liger recommends it.
    kernels = {name: parameter.default for name, parameter in parameters.items() if isinstance(parameter.default, bool)}
    if interpreted():
        kernels |= dict.fromkeys(set(kernels) & set(_NOT_INTERPRETED), False)
    appliers[architecture](**kernels)
    return tuple(sorted(name for name, used in kernels.items() if used))


def _appliers() -> dict[str, Callable[..., None]]:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    appliers: dict[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return appliers
