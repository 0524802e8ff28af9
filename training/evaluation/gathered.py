"""Measures `conversations` and `preferences` on their finished files."""

from __future__ import annotations

import json
from typing import Any

from training.data.conversations.gathering import DROPPED, SKIPPED
from training.data.conversations.messages import first_prompt, plain_answer, turns_key
from training.data.tables import read_rows, text_id
from training.errors import InputRefused
from training.evaluation.json_lines import read_lines
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact

_SPLITS = ("train", "heldout")
_SHOWN = 120


def measure_conversations(artifact: InputArtifact) -> Measurement:
    """Sizes, bad rows, prompts that both splits hold, and the share that rules dropped."""
    measurement = Measurement()
    prompts: dict[str, dict[str, str]] = {split: {} for split in _SPLITS}
    damaged = total = 0
    for split, metric in zip(_SPLITS, ("conversations", "heldout_conversations"), strict=True):
        count = 0
        for row in read_rows(artifact.folder / f"{split}.parquet", ["id", "messages", "tools"]):
            count += 1
            prompts[split].setdefault(_first_prompt(row, "messages"), row["id"])
            damaged += _damaged(measurement, row, row["messages"], *([row["tools"]] if row["tools"] else []))
        measurement.add(metric, count, count)
        total += count

    _in_both(measurement, prompts)
    _from_report(measurement, artifact, total, damaged)
    return measurement


def measure_preferences(artifact: InputArtifact) -> Measurement:
    """Sizes, bad rows, prompts that both splits hold, equal and opposite pairs, and the share that rules dropped."""
    measurement = Measurement()
    prompts: dict[str, dict[str, str]] = {split: {} for split in _SPLITS}
    pairs: dict[tuple[str, str, str], str] = {}
    damaged = total = identical = 0
    for split, metric in zip(_SPLITS, ("pairs", "heldout_pairs"), strict=True):
        count = 0
        for row in read_rows(artifact.folder / f"{split}.parquet", ["id", "prompt", "chosen", "rejected"]):
            count += 1
            prompts[split].setdefault(_first_prompt(row, "prompt"), row["id"])
            damaged += _damaged(measurement, row, row["prompt"], row["chosen"], row["rejected"])
            prompt, chosen, rejected = _keys(row)
            pairs[prompt, chosen, rejected] = row["id"]
            if chosen == rejected:
                identical += 1
                measurement.fail("identical_pairs", row["id"], 1.0, prompt=row["prompt"][:_SHOWN])
        measurement.add(metric, count, count)
        total += count
    measurement.add("identical_pairs", identical, total)

    opposite = [keys for keys in pairs if keys[1] != keys[2] and (keys[0], keys[2], keys[1]) in pairs]
    for keys in opposite:
        measurement.fail("contradictions", pairs[keys], 1.0)
    measurement.add("contradictions", len(opposite), total)

    _in_both(measurement, prompts)
    _from_report(measurement, artifact, total, damaged)
    return measurement


def _keys(row: dict[str, Any]) -> tuple[str, str, str]:
    prompt = turns_key(json.loads(row["prompt"]))
    chosen, rejected = (turns_key(json.loads(row[side]), plain_answer) for side in ("chosen", "rejected"))
    return text_id(prompt), text_id(chosen), text_id(rejected)


def _first_prompt(row: dict[str, Any], column: str) -> str:
    """The digest of a row's first question.

    Raises:
        InputRefused: The row holds no messages.
    """
    try:
        return text_id(first_prompt(json.loads(row[column])))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputRefused(f"{row['id']} holds no messages in {column} ({error}); materialize it again") from error


def _damaged(measurement: Measurement, row: dict[str, Any], *parts: str) -> bool:
    """Whether a row's id is not that of its messages."""
    is_damaged = bool(text_id(*parts) != row["id"])
    if is_damaged:
        measurement.fail("bad_rows", row["id"], 1.0, reason="not the messages of its id")
    return is_damaged


def _in_both(measurement: Measurement, prompts: dict[str, dict[str, str]]) -> None:
    both = sorted(prompts["train"].keys() & prompts["heldout"].keys())
    for prompt in both:
        measurement.fail(
            "prompts_in_both_splits", prompts["heldout"][prompt], 1.0, training_row=prompts["train"][prompt]
        )
    measurement.add("prompts_in_both_splits", len(both), len(prompts["heldout"]))


def _from_report(measurement: Measurement, artifact: InputArtifact, kept: int, damaged: int) -> None:
    """Bad rows and dropped rows, which the builder lists."""
    skipped, dropped = (artifact.folder / "report" / name for name in (SKIPPED, DROPPED))
    if skipped.is_file():
        rows = read_lines(skipped)
        for number, row in enumerate(rows, start=1):
            measurement.fail("bad_rows", f"{SKIPPED}:{number}", 1.0, message=row.get("message", ""))
        measurement.add("bad_rows", len(rows) + damaged, kept + len(rows))
    else:
        measurement.leave_out("bad_rows", f"report/{SKIPPED} is missing: bad rows cannot be counted")

    if dropped.is_file():
        rows = read_lines(dropped)
        for row in rows:
            measurement.fail("dropped_share", f"{row['source']}/{row['where']}", 1.0, reason=row["reason"])
        measurement.add("dropped_share", len(rows) / max(1, kept + len(rows)), kept + len(rows))
    else:
        measurement.leave_out("dropped_share", f"report/{DROPPED} is missing: dropped rows cannot be counted")
