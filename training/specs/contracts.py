"""Which stage computes an asset, from which inputs, and which evaluator measures it.

The control plane plans jobs by this table, and every job holds itself against it. A job.json that says it is an
evaluation but names a training stage, or that brings an input which its stage does not have, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from training.specs.job import EVALUATION_SUFFIX, Job

ARTIFACT = "artifact"
"""Name of the input that an evaluation measures."""
_DATA, _MODEL = "evaluate_data", "evaluate_model"


@dataclass(frozen=True)
class Contract:
    """How one asset is computed and measured.

    Attributes:
        inputs: Upstream assets that its stage reads. The stage is the module of the asset's name.
        evaluator: Module under `training.stages` that measures it, and trains nothing.
        judged_with: Upstream assets that the evaluator reads beside the artifact.
    """

    inputs: tuple[str, ...]
    evaluator: str
    judged_with: tuple[str, ...] = ()


CONTRACTS: dict[str, Contract] = {
    "raw_corpus": Contract((), _DATA),
    "corpus": Contract(("raw_corpus",), _DATA),
    "evaluation_sets": Contract(("corpus",), _DATA),
    "tokenizer": Contract(("corpus",), _DATA, ("corpus",)),
    "packed_shards": Contract(
        ("corpus", "tokenizer", "evaluation_sets"), _DATA, ("corpus", "tokenizer", "evaluation_sets")
    ),
    "instruction_data": Contract(("corpus", "evaluation_sets"), _DATA, ("evaluation_sets",)),
    "preference_data": Contract(("instruction_data",), _DATA, ("evaluation_sets",)),
    "adapter_data": Contract(("corpus", "instruction_data", "evaluation_sets"), _DATA, ("evaluation_sets",)),
    "base_model": Contract(("packed_shards", "tokenizer"), _MODEL, ("evaluation_sets",)),
    "sft_model": Contract(
        ("base_model", "instruction_data", "packed_shards", "tokenizer"), _MODEL, ("base_model", "evaluation_sets")
    ),
    "dpo_model": Contract(("sft_model", "preference_data", "tokenizer"), _MODEL, ("sft_model", "evaluation_sets")),
    "lora_model": Contract(("dpo_model", "adapter_data", "tokenizer"), _MODEL, ("dpo_model", "evaluation_sets")),
}


def breaches(job: Job) -> Iterator[str]:
    """The ways in which a job breaks its asset's contract; none when the control plane could have planned it."""
    measured = job.asset.removesuffix(EVALUATION_SUFFIX)
    contract = CONTRACTS.get(measured)
    if contract is None:
        yield f"there is no asset {job.asset!r}"
        return

    evaluates = job.asset != measured
    stage = contract.evaluator if evaluates else measured
    if job.stage != stage:
        yield f"the stage of {job.asset} is {stage}, not {job.stage}"

    assets = {name: name for name in (contract.judged_with if evaluates else contract.inputs)}
    if evaluates:
        assets[ARTIFACT] = measured
    for name, asset in assets.items():
        if name not in job.inputs:
            yield f"{job.asset} needs the input {name}"
        elif job.inputs[name].asset != asset:
            yield f"the input {name} of {job.asset} is a version of {asset}, not of {job.inputs[name].asset}"

    for name, used in job.inputs.items():
        if name not in assets:
            yield f"{job.asset} has no input {name}"
        if not evaluates and not used.promoted:
            yield f"the input {name} of {job.asset} must be promoted; only an evaluation may read what is not"
