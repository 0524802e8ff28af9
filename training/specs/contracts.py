"""Which stage computes an asset, from which inputs, and which evaluator measures it.

The control plane plans jobs by this table, and every job holds itself against it. A job.json that says it is an
evaluation but names a training stage, or that brings an input which its stage does not have, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from training.specs.job import EVALUATION_SUFFIX, Job
from training.specs.kinds import adapter_assets, adapter_of, kind_of

ARTIFACT = "artifact"
"""Name of the input that an evaluation measures."""
_DATA, _MODEL = "evaluate_data", "evaluate_model"


@dataclass(frozen=True)
class Contract:
    """How one kind of asset is computed and measured.

    Attributes:
        inputs: Upstream assets that its stage always reads. The stage is the module of the kind's name.
        evaluator: Module under `training.stages` that measures it, and trains nothing.
        judged_with: Upstream assets that the evaluator reads beside the artifact.
        may_have: Upstream assets that the recipe decides about, such as the shards that an SFT replays.
        may_be_judged_with: Likewise, of what the evaluator reads.
        parents: The models that it may be trained on, nearest first. One of them is an input, and the evaluator
            compares the artifact with it.
    """

    inputs: tuple[str, ...]
    evaluator: str
    judged_with: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    may_be_judged_with: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()


_SETS = ("evaluation_sets",)
_SETS_AND_TOKENIZER = ("evaluation_sets", "tokenizer")
CONTRACTS: dict[str, Contract] = {
    "raw_corpus": Contract((), _DATA),
    "corpus": Contract(("raw_corpus",), _DATA),
    "conversations": Contract((), _DATA),
    "preferences": Contract((), _DATA),
    "evaluation_sets": Contract((), _DATA, may_have=("corpus", "conversations", "preferences")),
    "tokenizer": Contract((), _DATA, may_have=("corpus",), may_be_judged_with=("corpus",)),
    "packed_shards": Contract(
        ("corpus", "tokenizer", "evaluation_sets"), _DATA, ("corpus", "tokenizer", "evaluation_sets")
    ),
    "instruction_data": Contract(
        ("evaluation_sets",), _DATA, _SETS_AND_TOKENIZER, may_have=("corpus", "conversations")
    ),
    "preference_data": Contract(
        (), _DATA, _SETS_AND_TOKENIZER, may_have=("instruction_data", "preferences", "evaluation_sets")
    ),
    "adapter_data": Contract(("instruction_data", "evaluation_sets"), _DATA, _SETS_AND_TOKENIZER, may_have=("corpus",)),
    "base_model": Contract(("tokenizer",), _MODEL, _SETS, may_have=("packed_shards",)),
    "sft_model": Contract(
        ("instruction_data", "tokenizer"), _MODEL, _SETS, may_have=("packed_shards",), parents=("base_model",)
    ),
    "dpo_model": Contract(("preference_data", "tokenizer"), _MODEL, _SETS, parents=("sft_model", "base_model")),
    "lora_model": Contract(
        ("adapter_data", "tokenizer"), _MODEL, _SETS, parents=("dpo_model", "sft_model", "base_model")
    ),
}
"""Every kind of asset, in an order in which everything comes after what it is made from."""


def parent_in(inputs: Iterable[str]) -> str | None:
    """The model among a job's inputs, which is what the stage trains on; None where there is none."""
    return next((name for name in inputs if name in CONTRACTS and CONTRACTS[name].evaluator == _MODEL), None)


def breaches(job: Job) -> Iterator[str]:
    """The ways in which a job breaks its asset's contract; none when the control plane could have planned it."""
    measured = job.asset.removesuffix(EVALUATION_SUFFIX)
    kind = kind_of(measured)
    contract = CONTRACTS.get(kind)
    if contract is None:
        yield f"there is no asset {job.asset!r}"
        return

    evaluates = job.asset != measured
    stage = contract.evaluator if evaluates else kind
    if job.stage != stage:
        yield f"the stage of {job.asset} is {stage}, not {job.stage}"

    required = [*(contract.judged_with if evaluates else contract.inputs), *([ARTIFACT] if evaluates else [])]
    allowed = {*required, *contract.parents, *(contract.may_be_judged_with if evaluates else contract.may_have)}
    for name in required:
        if name not in job.inputs:
            yield f"{job.asset} needs the input {name}"
    parents = [name for name in contract.parents if name in job.inputs]
    if contract.parents and len(parents) != 1:
        has = f"has {' and '.join(parents)}" if parents else "has none"
        yield f"{job.asset} needs one of the inputs {', '.join(contract.parents)}, and {has}"

    for name, used in job.inputs.items():
        asset = measured if name == ARTIFACT else _asset_of(name, measured)
        if name not in allowed:
            yield f"{job.asset} has no input {name}"
        elif used.asset != asset:
            yield f"the input {name} of {job.asset} is a version of {asset}, not of {used.asset}"
        if not evaluates and not used.promoted:
            yield f"the input {name} of {job.asset} must be promoted; only an evaluation may read what is not"


def _asset_of(kind: str, child: str) -> str:
    """The asset of a kind that another asset is made from: of a listed adapter's data, that adapter's own."""
    adapter = adapter_of(child)
    return adapter_assets(adapter).get(kind, kind) if adapter else kind
