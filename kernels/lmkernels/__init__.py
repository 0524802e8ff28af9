"""Which kernels and which precision a training job uses: chosen once, before the model is built, with the reasons."""

from lmkernels.choice import Choice, choose
from lmkernels.errors import LmkernelsError
from lmkernels.fp8 import Overflows, high_precision

__all__ = ["Choice", "LmkernelsError", "Overflows", "choose", "high_precision"]
