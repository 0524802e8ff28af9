"""Compares the saved folder with the live model of the training engine, by the probe that training wrote down.

Two questions: are the log-probabilities of the folder those of the live model, and is the change from the parent to the
folder the change that was trained?
"""

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
    """Why a figure of a probe is not known."""


@dataclass(frozen=True)
class Answer:
    """What the model of one folder answers to a probe.

    Attributes:
        logprob_error: Mean absolute difference, in nats per token, of its log-probabilities in float32 and those of
            the trained weights in float32.
        weights: float64 [sampled weights], in the order of the probe.
    """

    logprob_error: float
    weights: npt.NDArray[np.float64]


def read_probe(folder: Path) -> Probe | str:
    """The live model's log-probabilities and weights, or why they are not known.

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

    The live model computed in training precision, and the folder is read in float32, so honest exports differ a little.
    An export differs a lot if it forgot to merge an adapter, holds other weights or was rounded badly.

    Args:
        loaded: The model of the artifact's folder.
        probe: The live model's log-probabilities.

    Returns:
        The estimate, or why there is none.
    """
    try:
        return exact(_mean_difference(loaded, probe, probe.logprobs), sum(map(len, probe.logprobs)))
    except Unknown as unknown:
        return str(unknown)


def answer(loaded: LoadedModel, probe: Probe) -> Answer | str:
    """The answer of a folder, the artifact's or its parent's, to the probe; or why there is none."""
    if not probe.float32_logprobs or not probe.weights:
        return f"{PROBE_FILE} holds no float32 log-probabilities or no weights: {_AGAIN}"
    try:
        return Answer(_mean_difference(loaded, probe, probe.float32_logprobs), _weights(loaded, probe))
    except Unknown as unknown:
        return str(unknown)


def change_cosine(probe: Probe, saved: Answer, parent: Answer) -> Estimate | str:
    """Cosine of (saved - parent) and (trained - parent) over the probe's weights, from -1 to 1.

    1 means that the trained change is the saved one. Rounding to bf16 can take most of a change away.

    Args:
        probe: The weights that were trained.
        saved: The saved folder's answer.
        parent: Its parent's answer.

    Returns:
        The estimate, or why there is none.
    """
    trained = np.array([value for part in probe.weights for value in part.values], np.float64)
    trained_change, saved_change = trained - parent.weights, saved.weights - parent.weights
    if not trained_change.any():
        return "training has changed none of the probe's weights"

    norms = float(np.linalg.norm(trained_change) * np.linalg.norm(saved_change))
    return exact(float(trained_change @ saved_change) / norms if norms else 0.0, len(trained))


def parent_ratio(probe: Probe, saved: Answer, parent: Answer) -> Estimate | str:
    """The saved folder's log-probability error divided by its parent's: far below 1 unless the folder is the parent.

    A parent without any error answers as the trained model did: then training has changed nothing.

    Args:
        probe: Its rows.
        saved: The saved folder's answer.
        parent: Its parent's answer.

    Returns:
        The estimate, or why there is none.
    """
    if not parent.logprob_error:
        return "the parent gives the probe's rows the trained model's probabilities: there is nothing to tell apart"
    return exact(saved.logprob_error / parent.logprob_error, sum(map(len, probe.float32_logprobs)))


def _mean_difference(loaded: LoadedModel, probe: Probe, live_logprobs: Logprobs) -> float:
    if max(max(row) for row in probe.rows) >= loaded.vocabulary:
        raise Unknown(f"{PROBE_FILE} holds tokens that the model does not have")
    if max(map(len, probe.rows)) > getattr(loaded.model.config, "max_position_embeddings", math.inf):
        raise Unknown(f"{PROBE_FILE} holds rows that are longer than the model's positions")

    differences = [
        abs(saved - live)
        for row, live_row in zip(probe.rows, live_logprobs, strict=True)
        for saved, live in zip(_logprobs(loaded, row), live_row, strict=True)
    ]
    return math.fsum(differences) / len(differences)


def _weights(loaded: LoadedModel, probe: Probe) -> npt.NDArray[np.float64]:
    """The probe's sample of the model's weights, float64 [sampled weights]."""
    parameters = dict(loaded.model.named_parameters())
    weights = []
    for part in probe.weights:
        if part.name not in parameters or max(part.indices) >= parameters[part.name].numel():
            raise Unknown(f"{PROBE_FILE} names weights of {part.name} that the model does not have")
        sample = parameters[part.name].detach().flatten()[torch.tensor(part.indices, device=loaded.device)]
        weights.append(sample.double().cpu().numpy())
    return np.concatenate(weights)


@torch.inference_mode()
def _logprobs(loaded: LoadedModel, row: tuple[int, ...]) -> list[float]:
    """Natural log-probability of each token after the first."""
    ids = torch.tensor([row], device=loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    logprobs: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return logprobs
