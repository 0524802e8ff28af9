"""A training's loss as a picture so small that Dagster shows it inline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

TRAINING_LOG = "training.jsonl"
_POINTS, _WIDTH, _HEIGHT, _ROOM = 48, 340, 96, 4
_COLOUR = "#3b82c4"  # readable on white and on black: the picture cannot know what is behind it
_UNESCAPED = "/:=',"  # an escaped character takes three of the thousand


def loss_sparkline(report: Path) -> str:
    """The logged losses of a training as Markdown: an SVG in a data URI of at most 48 points.

    It stays below 1,000 characters, because Dagster shows longer Markdown behind a link.

    Args:
        report: A version's report folder, with `training.jsonl`.

    Returns:
        Empty where nothing was trained, or fewer than two losses were logged.
    """
    path = report / TRAINING_LOG
    if not path.is_file():
        return ""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    losses = [float(row["loss"]) for row in rows if "loss" in row]
    if len(losses) < 2:
        return ""

    points = _thinned(losses)
    low, high = min(points), max(points)
    scale = (_HEIGHT - 2 * _ROOM) / ((high - low) or 1.0)
    path_data = "M" + "L".join(
        f"{round(index * _WIDTH / (len(points) - 1))} {round(_ROOM + (high - loss) * scale)}"
        for index, loss in enumerate(points)
    )

    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}'>"
        f"<path d='{path_data}' fill='none' stroke='{_COLOUR}' stroke-width='2'/></svg>"
    )
    return f"![loss](data:image/svg+xml,{quote(svg, safe=_UNESCAPED)})\n\n{losses[0]:.4g} → {losses[-1]:.4g}"


def _thinned(losses: Sequence[float]) -> list[float]:
    """At most 48 points, the first and the last among them."""
    if len(losses) <= _POINTS:
        return list(losses)
    return [losses[round(index * (len(losses) - 1) / (_POINTS - 1))] for index in range(_POINTS)]
