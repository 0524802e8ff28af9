"""The probe of an export: what the live model says about a few rows, for evaluation to ask the saved folder again."""

from __future__ import annotations

from pathlib import Path

import torch

from training.engine.session import Session
from training.engine.trainer import StepOrdered
from training.specs.probe import PROBE_FILE, Probe

_TOKENS = 256
_ROW = 128


@torch.no_grad()
def take(session: Session, trainer: StepOrdered) -> Probe:
    """Ask the engine's own model, in training precision, before anything is gathered, merged or cast.

    Every rank must call it: under ZeRO 3 each holds a part of the weights. All ranks see the same rows.
    """
    rows = _rows(trainer, session.pad)
    engine = trainer.model_wrapped
    engine.eval()  # no dropout
    found = []
    for row in rows:
        ids = row.to(session.runtime.device).unsqueeze(0)
        logits = engine(input_ids=ids, use_cache=False).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        found.append(tuple(chosen.cpu().tolist()))
    return Probe(rows=tuple(tuple(row.tolist()) for row in rows), logprobs=tuple(found),
                 fp8_overflows=trainer.count_overflows())


def save(folder: Path, probe: Probe) -> None:
    """Write it beside `model/`, where it is a part of the artifact's content."""
    (folder / PROBE_FILE).write_text(probe.model_dump_json() + "\n", encoding="utf-8")


def _rows(trainer: StepOrdered, pad: int) -> list[torch.Tensor]:
    """Rows of training tokens without padding, none longer than the training's context."""
    ids = trainer.plan.batches.longest()["input_ids"]
    tokens = ids[ids != pad][:_TOKENS]
    return [row for row in torch.split(tokens, min(_ROW, ids.shape[1])) if len(row) > 1]
