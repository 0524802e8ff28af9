"""Does the saved folder say what the training engine's own model said, and is it the change that was trained?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from training.evaluation.models import LoadedModel
from training.specs.evidence import Estimate, exact
from training.specs.probe import PROBE_FILE, Logprobs, Probe

_AGAIN = "train it again"


class Unknown(Exception):
    """Why something of a probe is not known."""


@dataclass(frozen=True)
class Answer:
    """What one folder says to a probe.

    Attributes:
        logprob_error: Mean absolute difference, in nats per token, of its log-probabilities in float32 and those of
            the trained weights in float32.
        weights: float64 [sampled weights], in the order of the probe.
    """

    logprob_error: float
    weights: npt.NDArray[np.float64]


def read_probe(folder: Path) -> Probe | str:
    """What the live model said, or why it is not known.

    Args:
        folder: The artifact's folder.
    """
    try:
        return Probe.model_validate_json((folder / PROBE_FILE).read_bytes())
    except FileNotFoundError:
        return f"the artifact holds no {PROBE_FILE}: {_AGAIN}"
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
    try:
        return exact(_mean_difference(loaded, probe, probe.logprobs), sum(map(len, probe.logprobs)))
    except Unknown as unknown:
        return str(unknown)


def answer(loaded: LoadedModel, probe: Probe) -> Answer | str:
    """What a folder, the artifact's own or its parent's, says to the probe; or why it says nothing."""
    if not probe.float32_logprobs or not probe.weights:
        return f"{PROBE_FILE} holds no float32 log-probabilities or no weights: {_AGAIN}"
    try:
        return Answer(_mean_difference(loaded, probe, probe.float32_logprobs), _weights(loaded, probe))
    except Unknown as unknown:
        return str(unknown)


def change_cosine(probe: Probe, saved: Answer, parent: Answer) -> Estimate | str:
    """Cosine of (saved - parent) and (trained - parent) over the probe's weights.

    1 means that the change which was trained is the one that was saved; rounding to bf16 can take most of it away.
    """
    trained = np.array([value for part in probe.weights for value in part.values], np.float64)
    change, kept = trained - parent.weights, saved.weights - parent.weights
    if not change.any():
        return "training has changed none of the probe's weights"
    norms = float(np.linalg.norm(change) * np.linalg.norm(kept))
    return exact(float(change @ kept) / norms if norms else 0.0, len(trained))


def parent_ratio(probe: Probe, saved: Answer, parent: Answer) -> Estimate | str:
    """The saved folder's log-probability error over its parent's: far below 1 where it is the child and not the parent.

    Where the parent errs by nothing, training has changed nothing, and there is nothing to tell apart.
    """
    if not parent.logprob_error:
        return "the parent says of the probe's rows what the trained model said: there is nothing to tell apart"
    return exact(saved.logprob_error / parent.logprob_error, sum(map(len, probe.float32_logprobs)))


def _mean_difference(loaded: LoadedModel, probe: Probe, told: Logprobs) -> float:
    if max(max(row) for row in probe.rows) >= loaded.vocabulary:
        raise Unknown(f"{PROBE_FILE} holds tokens that the model does not have")
    if max(map(len, probe.rows)) > getattr(loaded.model.config, "max_position_embeddings", math.inf):
        raise Unknown(f"{PROBE_FILE} holds rows that are longer than the model's positions")
    differences = [
        abs(ours - theirs)
        for row, live in zip(probe.rows, told, strict=True)
        for ours, theirs in zip(_logprobs(loaded, row), live, strict=True)
    ]
    return math.fsum(differences) / len(differences)


def _weights(loaded: LoadedModel, probe: Probe) -> npt.NDArray[np.float64]:
    parameters = dict(loaded.model.named_parameters())
    found = []
    for part in probe.weights:
        if part.name not in parameters or max(part.indices) >= parameters[part.name].numel():
            raise Unknown(f"{PROBE_FILE} names weights of {part.name} that the model does not have")
        chosen = parameters[part.name].detach().flatten()[torch.tensor(part.indices, device=loaded.device)]
        found.append(chosen.double().cpu().numpy())
    return np.concatenate(found)


@torch.inference_mode()
def _logprobs(loaded: LoadedModel, row: tuple[int, ...]) -> list[float]:
    """Natural log-probability of each token after the first."""
    ids = torch.tensor([row], device=loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    found: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return found
