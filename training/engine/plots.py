"""The picture of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_LOSS, _SMOOTH, _RATE = "#b9c6d8", "#1f4e8c", "#c46a1b"


def loss_curve(
    path: Path,
    losses: Sequence[float],
    history: Sequence[dict[str, Any]],
    title: str,
    phases: Sequence[tuple[int, str]] = (),
    unit: str = "nats per token",
) -> None:
    """Draw the loss of every step and the learning rate below it.

    Args:
        path: PNG to write.
        losses: Loss per step.
        history: Logged rows with `step` and `learning_rate`.
        title: What was trained.
        phases: First step and name of each phase of the curriculum.
        unit: Unit of the loss.
    """
    figure = Figure(figsize=(7.5, 4.6), dpi=80, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))

    steps = range(1, len(losses) + 1)
    top.plot(steps, losses, color=_LOSS, linewidth=1, label="each step")
    window = max(1, len(losses) // 25)
    smooth = [sum(losses[max(0, end - window) : end]) / min(window, end) for end in steps]
    top.plot(steps, smooth, color=_SMOOTH, linewidth=2, label=f"mean of {window} steps")
    top.set_ylabel(f"training loss, {unit}")
    top.set_title(title)
    top.legend(frameon=False, loc="upper right")

    bottom.plot([row["step"] for row in history], [row["learning_rate"] for row in history], color=_RATE)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("optimizer step")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))

    for first, name in phases:
        for axes in (top, bottom):
            axes.axvline(first + 1, color="#888888", linewidth=0.8, linestyle=":")
        top.annotate(f" {name}", (first + 1, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="#555555")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
