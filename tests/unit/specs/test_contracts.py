"""Nothing trains on what is not promoted, whatever job.json says that it is."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.errors import InputRefused
from training.job.fingerprint import fingerprint
from training.job.runner import run_job
from training.specs.contracts import ARTIFACT, CONTRACTS, breaches
from training.specs.job import EVALUATION_SUFFIX, Input, Job

STAGES = sorted(path.stem for path in (ROOT / "training" / "stages").glob("[a-z]*.py"))
EVALUATORS = {contract.evaluator for contract in CONTRACTS.values()}
ASSETS = [name for asset in CONTRACTS for name in (asset, asset + EVALUATION_SUFFIX)]
NAMES = [ARTIFACT, *CONTRACTS]


def job(asset: str, stage: str, inputs: dict[str, Input], code: str = "", attempt: str = "") -> Job:
    return Job(
        stage=stage,
        asset=asset,
        recipe="r",
        identity="0" * 64,
        fingerprint=code,
        seed=0,
        section={},
        inputs=inputs,
        store=f"{attempt}/store",
        attempt=attempt,
    )


def used(asset: str, promoted: bool = True) -> Input:
    return Input(asset=asset, version="v", digest="d", promoted=promoted, certificate="c" if promoted else "")


def planned(asset: str) -> dict[str, Input]:
    """The inputs of the job that the control plane would plan."""
    measured = asset.removesuffix(EVALUATION_SUFFIX)
    contract = CONTRACTS[measured]
    if asset == measured:
        return {name: used(name) for name in (*contract.parents[:1], *contract.inputs, *contract.may_have)}
    judged_with = (*contract.parents[:1], *contract.judged_with, *contract.may_be_judged_with)
    return {name: used(name) for name in judged_with} | {ARTIFACT: used(measured, promoted=False)}


def stage_of(asset: str) -> str:
    measured = asset.removesuffix(EVALUATION_SUFFIX)
    return measured if asset == measured else CONTRACTS[measured].evaluator


def may_be_left_out(asset: str) -> set[str]:
    """The inputs that the recipe decides about."""
    contract = CONTRACTS[asset.removesuffix(EVALUATION_SUFFIX)]
    return {*(contract.may_have if asset in CONTRACTS else contract.may_be_judged_with)}


def test_every_stage_belongs_to_an_asset() -> None:
    assert {stage_of(asset) for asset in ASSETS} == set(STAGES)


@pytest.mark.parametrize("asset", ASSETS)
def test_a_planned_job_keeps_its_contract(asset: str) -> None:
    assert list(breaches(job(asset, stage_of(asset), planned(asset)))) == []


@pytest.mark.parametrize(("asset", "stage"), product([*ASSETS, "sft_model.evaluation.evaluation", "nothing"], STAGES))
def test_asset_and_stage_belong_together(asset: str, stage: str) -> None:
    """Of all pairs, only those of the graph pass; of all inputs, only an evaluator may have one that is unpromoted."""
    for name, of, promoted in product(NAMES, CONTRACTS, (True, False)):
        inputs = (planned(asset) if asset in ASSETS else {}) | {name: used(of, promoted)}
        if list(breaches(job(asset, stage, inputs))):
            continue
        assert stage == stage_of(asset)
        assert promoted or stage in EVALUATORS
        optional = may_be_left_out(asset)
        assert inputs.keys() - optional == planned(asset).keys() - optional
        assert of == (asset.removesuffix(EVALUATION_SUFFIX) if name == ARTIFACT else name)


@pytest.mark.parametrize("asset", ASSETS)
def test_no_input_may_be_left_out(asset: str) -> None:
    for name in planned(asset).keys() - may_be_left_out(asset):
        inputs = {other: used for other, used in planned(asset).items() if other != name}
        assert list(breaches(job(asset, stage_of(asset), inputs)))


def test_a_training_that_says_it_is_an_evaluation(tmp_path: Path) -> None:
    inputs = planned("sft_model") | {
        "base_model": used("base_model", promoted=False),
        ARTIFACT: used("sft_model", promoted=False),
    }
    disguised = job(
        "sft_model.evaluation", "sft_model", inputs, fingerprint("training.stages.sft_model"), str(tmp_path)
    )
    with pytest.raises(InputRefused, match="the stage of sft_model.evaluation is evaluate_model, not sft_model"):
        run_job(disguised)
    assert not (tmp_path / "out").exists()


def test_a_model_is_trained_on_one_parent_that_it_may_have() -> None:
    data = {"adapter_data": used("adapter_data"), "tokenizer": used("tokenizer")}

    def breach(*parents: str) -> list[str]:
        return list(breaches(job("lora_model", "lora_model", data | {name: used(name) for name in parents})))

    assert [breach(parent) for parent in ("dpo_model", "sft_model", "base_model")] == [[], [], []]
    (none,) = breach()
    assert "needs one of the inputs dpo_model, sft_model, base_model, and has none" in none
    (both,) = breach("dpo_model", "base_model")
    assert "and has dpo_model and base_model" in both


def test_an_adapter_reads_its_own_data() -> None:
    inputs = {"base_model": used("base_model"), "tokenizer": used("tokenizer")}

    def breach(data: str) -> list[str]:
        return list(breaches(job("lora_mail", "lora_model", inputs | {"adapter_data": used(data)})))

    assert breach("adapter_data_mail") == []
    for other in ("adapter_data", "adapter_data_news"):
        assert breach(other) == [
            f"the input adapter_data of lora_mail is a version of adapter_data_mail, not of {other}"
        ]
