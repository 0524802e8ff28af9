"""A refusal in words: what was measured, by how much it missed, what would have to be true, and what can be done."""

from __future__ import annotations

from datetime import date

from pipeline.gates.judge import passes
from pipeline.gates.statistics import right_needed
from pipeline.gates.wording import number
from training.specs.artifacts import Manifest
from training.specs.gates import Gate, Verdict


def in_words(verdict: Verdict, meaning: str, why: str) -> list[str]:
    """Sentences about one gate that did not pass.

    Args:
        meaning: What the metric is.
        why: The recipe's sentence about the gate.
    """
    gate = Gate(metric=verdict.name, must_be=verdict.must_be, threshold=verdict.threshold)
    lines = [
        f"What it is: {meaning}." if meaning else "",
        f"Why it is asked: {why}" if why else "",
        f"What was found: {verdict.reason}.",
    ]

    if verdict.value is not None and verdict.interval is not None and verdict.confidence is not None:
        low, high = (number(bound) for bound in verdict.interval)
        lines.append(
            f"Over {verdict.count:,} items it is above {low} and below {high}, each with "
            f"{100 * verdict.confidence:.4g}% confidence ({verdict.method})."
        )
    if verdict.value is not None:
        lines += _missed(verdict, gate, verdict.value)
    return [line for line in lines if line]


def advice(manifest: Manifest, gates: list[str], recipe: str, until: date) -> list[str]:
    """What a person can do about a refusal.

    Args:
        manifest: The refused version.
        gates: Those that refused it.
        recipe: How a command names the recipe (`Store.named`).
        until: A day for the example of a waiver.
    """
    asset = manifest.asset
    return [
        f"Make it better: change its section or its data in the recipe, then `gatehouse run -r {recipe} --select "
        f"{asset}`.",
        f"If a gate asks too much, change it under `gates.{asset}`; if too few items are measured, change "
        f"`evaluation_sets`. Then `{manifest.run_command(recipe)}` judges it again and trains nothing.",
        f'Let this one version pass: `gatehouse waive -r {recipe} {asset} --gate {gates[0]} --reason "..." --until '
        f"{until}`" + (f"; the same for {', '.join(gates[1:])}" if gates[1:] else ""),
    ]


def _missed(verdict: Verdict, gate: Gate, value: float) -> list[str]:
    """By how much it missed, and what would have to be true."""
    bound = verdict.interval[0 if gate.better > 0 else 1] if verdict.interval and gate.better else None
    if not passes(gate, value):
        lines = [f"It misses by {number(abs(value - verdict.threshold))}."]
    elif bound is not None and not passes(gate, bound):
        lines = [f"Its value passes; its bound misses by {number(abs(bound - verdict.threshold))}."]
    else:
        return []

    if bound is not None and verdict.confidence is not None:
        lines.append(_what_would_pass(verdict, gate, abs(value - bound), verdict.confidence))
    return lines


def _what_would_pass(verdict: Verdict, gate: Gate, room: float, confidence: float) -> str:
    """What would pass over the same number of items.

    Args:
        room: Distance of the bound from the value.
    """
    assert verdict.value is not None
    limit = "at least" if gate.better > 0 else "at most"
    if verdict.method != "wilson":
        return (
            f"Its bound is {number(room)} from its value, so over these items it would have to be {limit} about "
            f"{number(verdict.threshold + gate.better * room)}."
        )

    needed = right_needed(verdict.count, lambda bound: passes(gate, bound), gate.better, confidence)
    if needed is None:
        return f"Over {verdict.count:,} items no share would pass: more items are needed."
    return (
        f"Over {verdict.count:,} items {limit} {needed:,} have to count; {round(verdict.value * verdict.count):,} do."
    )
