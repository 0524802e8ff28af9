"""The losses that a training records, and that a proof of the version repeats."""

from __future__ import annotations

from training.specs.base import Spec

HISTORY = "report/training.jsonl"
"""Logged rows; a row's loss is the mean of the steps since the row before."""

FIRST_LOSSES = "report/first_losses.json"
FIRST_STEPS = 100
"""So many steps are recorded one by one, and repeated by a proof."""


class FirstLosses(Spec):
    """What a proof needs beside the logged rows.

    Attributes:
        micro_batch_tokens: The launcher's, which decides the order of additions and so the last digits.
        losses: Of the first steps, one each, in full.
    """

    micro_batch_tokens: int
    losses: tuple[float, ...]
