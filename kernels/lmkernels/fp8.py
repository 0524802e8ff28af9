"""FP8 training of linear layers through torchao (Micikevicius et al., 2022, "FP8 Formats for Deep Learning").

Weights stay in high precision: torchao casts weight, input and gradient to float8 for every matrix product (E4M3
forward, E5M2 for gradients, one dynamic scale per tensor) and throws the casts away. `state_dict()` therefore holds
plain tensors under the names of the plain model; `revert` puts the plain layer classes back as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

MULTIPLE = 16  # the granule of FP8 tensor cores, in elements
MIN_CAPABILITY = (8, 9)  # Ada
# Last parts of the names of output heads and routers.
_HIGH_PRECISION = ("lm_head", "embed_out", "gate", "router", "score")


def hardware_fp8(device: torch.device) -> bool:
    """True when the device has FP8 tensor cores: compute capability 8.9 or above."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def eligible(name: str, module: nn.Module) -> bool:
    """Whether a layer is one that FP8 training converts.

    It is a linear layer whose two sizes are multiples of 16, the tensor cores' granule. Output heads, routers of a
    mixture of experts and parts of a LoRA adapter are small or sensitive, and stay in high precision. Embeddings are
    not linear layers.

    Args:
        name: The module's dotted name in the model.
        module: The module; converted layers are still linear layers, so the answer is the same after conversion.
    """
    if not isinstance(module, nn.Linear):
        return False
    parts = name.split(".")
    if parts[-1] in _HIGH_PRECISION or any(part.startswith("lora_") for part in parts):
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def count_eligible(model: nn.Module) -> int:
    """Number of layers that conversion must reach, from the rule alone."""
    return sum(eligible(name, module) for name, module in model.named_modules())


def convert(model: nn.Module, emulate: bool) -> int:
    """Swap every eligible layer for its FP8 twin, in place; parameters are shared, not copied.

    Args:
        model: A model whose eligible layers lie below its root.
        emulate: Round operands to FP8 but multiply in high precision, for devices without FP8 tensor cores.

    Returns:
        Number of FP8 layers found in the model afterwards, counted by their class.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # The product for the weight's gradient runs over tokens, whose number need not be a multiple of 16.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    convert_to_float8_training(model, module_filter_fn=lambda module, name: eligible(name, module), config=config)
    return count_converted(model)


def count_converted(model: nn.Module) -> int:
    """Number of FP8 layers in a model, by their class."""
    from torchao.float8.float8_linear import Float8Linear

    return sum(isinstance(module, Float8Linear) for module in model.modules())


class Overflows:
    """Counts FP8 products that are not finite: a layer's result, or the gradient that it is given.

    With one scale per tensor a finite tensor always fits its own scale. So an overflow shows only as a product that is
    not finite.

    Attributes:
        active: Whether products are looked at. Looking reads each layer's result once more.
    """

    def __init__(self, model: nn.Module) -> None:
        from torchao.float8.float8_linear import Float8Linear

        self.active = False
        self._flags: list[torch.Tensor] = []  # bool [] each, on the device: reading one would wait for it
        self._count = 0
        for module in model.modules():
            if isinstance(module, Float8Linear):
                module.register_forward_hook(self._look)

    def count(self) -> int:
        """Number of products that were not finite so far; waits for the device."""
        self._count += sum(int(flag.item()) for flag in self._flags)
        self._flags = []
        return self._count

    def _look(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        if self.active and torch.is_grad_enabled():
            self._flags.append(~torch.isfinite(result.detach()).all())
            if result.requires_grad:
                result.register_hook(self._look_at_gradient)  # type: ignore[no-untyped-call]  # torch lacks it

    def _look_at_gradient(self, gradient: torch.Tensor) -> None:
        self._flags.append(~torch.isfinite(gradient).all())


@contextmanager
def high_precision(model: nn.Module) -> Iterator[None]:
    """Let FP8 layers multiply as plain linear ones do; the rest of the model stays as it is."""
    from torchao.float8.float8_linear import Float8Linear

    layers = [module for module in model.modules() if isinstance(module, Float8Linear)]
    for layer in layers:
        layer.forward = partial(nn.Linear.forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's own one hid the method of its class


def revert(model: nn.Module) -> int:
    """Put plain linear layers with the same parameters back, in place.

    Returns:
        Number of layers that were put back.
    """
    from torchao.float8.float8_linear import Float8Linear

    converted = [(name, module) for name, module in model.named_modules() if isinstance(module, Float8Linear)]
    for name, module in converted:
        parent, _, child = name.rpartition(".")
        with torch.device("meta"):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
        plain.weight, plain.bias = module.weight, module.bias
        plain.train(module.training)
        setattr(model.get_submodule(parent), child, plain)
    return len(converted)
