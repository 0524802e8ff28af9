"""Does the saved folder say what the training engine's own model said?"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pydantic import ValidationError

from training.evaluation.models import LoadedModel
from training.specs.evidence import Estimate, exact
from training.specs.probe import PROBE_FILE, Probe


def read_probe(folder: Path) -> Probe | str:
    """What the live model said, or why it is not known.

    Args:
        folder: The artifact's folder.
    """
    try:
        return Probe.model_validate_json((folder / PROBE_FILE).read_bytes())
    except FileNotFoundError:
        return f"the artifact holds no {PROBE_FILE}: train it again"
    except ValidationError as error:
        return f"{PROBE_FILE} is malformed: {error.errors()[0]['msg']}"


def logprob_error(loaded: LoadedModel, probe: Probe) -> Estimate | str:
    """Mean absolute difference between the folder's log-probabilities and those of the live model, in nats per token.

    The live model computed in training precision and the folder is read in float32, so that honest exports differ a
    little; one that forgot to merge an adapter, holds other weights or was rounded badly differs a lot.

    Args:
        loaded: The model of the artifact's folder.
        probe: What the live model said.

    Returns:
        The estimate, or why there is none.
    """
    if max(max(row) for row in probe.rows) >= loaded.vocabulary:
        return f"{PROBE_FILE} holds tokens that the model does not have"
    if max(map(len, probe.rows)) > getattr(loaded.model.config, "max_position_embeddings", math.inf):
        return f"{PROBE_FILE} holds rows that are longer than the model's positions"
    differences = [abs(ours - theirs) for row, told in zip(probe.rows, probe.logprobs, strict=True)
                   for ours, theirs in zip(_logprobs(loaded, row), told, strict=True)]
    return exact(math.fsum(differences) / len(differences), len(differences))


@torch.inference_mode()
def _logprobs(loaded: LoadedModel, row: tuple[int, ...]) -> list[float]:
    """Natural log-probability of each token after the first."""
    ids = torch.tensor([row], device=loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    found: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return found
