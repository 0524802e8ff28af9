"""The probe of an export: the live model's log-probabilities of a few rows.

Evaluation asks the saved folder for the same ones. Where the two differ, the export lost something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lmkernels import high_precision

from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.specs.probe import PROBE_FILE, Logprobs, Probe

_TOKENS = 256  # of all rows
_ROW = 128
_NO_TOKEN = -1


def take(session: Session, trainer: StepOrdered) -> Probe:
    """Ask the engine's own model, before anything is gathered, merged or cast.

    It answers in training precision, and in float32 as well: what a short training changes is less than what bf16
    rounds away. Every rank must call it, because under ZeRO 3 each holds a part of the weights. All ranks see the same
    rows.
    """
    rows = _rows(trainer)
    engine = trainer.model_wrapped
    engine.eval()  # no dropout
    logprobs = _logprobs(engine, rows, session.runtime.device)
    with _float32(engine):
        float32_logprobs = _logprobs(engine, rows, session.runtime.device)

    return Probe(
        rows=tuple(tuple(row.tolist()) for row in rows),
        logprobs=logprobs,
        float32_logprobs=float32_logprobs,
        fp8_overflows=trainer.count_overflows(),
    )


def save(folder: Path, probe: Probe) -> None:
    """Write it beside `model/`, where it is a part of the artifact's content."""
    (folder / PROBE_FILE).write_text(probe.model_dump_json() + "\n", encoding="utf-8")


@torch.no_grad()
def _logprobs(engine: Any, rows: Sequence[torch.Tensor], device: torch.device) -> Logprobs:
    """Natural log-probability of each row's second token and of every later one.

    Args:
        rows: Token ids, int64 [length] each.
    """
    logprobs = []
    for row in rows:
        ids = row.to(device).unsqueeze(0)
        logits = engine(input_ids=ids, use_cache=False).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        logprobs.append(tuple(chosen.cpu().tolist()))
    return tuple(logprobs)


@contextmanager
def _float32(engine: Any) -> Iterator[None]:
    """Let the engine compute in float32. Its weights are float32 already; only autocast and FP8 round."""
    engine.torch_autocast_enabled = lambda: False
    try:
        with high_precision(engine.module):
            yield
    finally:
        del engine.torch_autocast_enabled  # the instance's own one hid the method of its class


def _rows(trainer: StepOrdered) -> list[torch.Tensor]:
    """Rows of training tokens without padding, int64 [length] each.

    None is longer than the training's context or the model's positions.
    """
    ids = trainer.plan.batches.longest(pad=_NO_TOKEN)["input_ids"]
    tokens = ids[ids != _NO_TOKEN][:_TOKENS]
    positions = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None) or _ROW
    return [row for row in torch.split(tokens, min(_ROW, ids.shape[1], positions)) if len(row) > 1]
