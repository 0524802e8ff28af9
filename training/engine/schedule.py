"""Learning rate schedules."""

from __future__ import annotations

import math

from training.specs.optimization import Optimizer


def rate_factor(optimizer: Optimizer, steps: int, step: int) -> float:
    """Learning rate of a step over the peak rate.

    Linear warm-up, then cosine (Loshchilov & Hutter, 2017) or linear decay to `final_share` at the last step, or a
    constant rate.

    Args:
        optimizer: The recipe's settings.
        steps: Optimizer steps of the whole run.
        step: Number of steps already taken.
    """
    if step < optimizer.warmup_steps:
        return (step + 1) / (optimizer.warmup_steps + 1)
    if optimizer.schedule == "constant":
        return 1.0
    done = min(1.0, (step - optimizer.warmup_steps) / max(1, steps - 1 - optimizer.warmup_steps))
    left = (1 + math.cos(math.pi * done)) / 2 if optimizer.schedule == "cosine" else 1 - done
    return optimizer.final_share + (1 - optimizer.final_share) * left
