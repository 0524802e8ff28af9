"""A model with random weights, in place of each real one, fails every gate of its asset that says it is any good."""

import shutil
from pathlib import Path

import pytest

from pipeline.building.planner import plan_evaluation
from pipeline.gates.evidence_reader import read_evidence
from pipeline.gates.judge import certify, judge_gate
from pipeline.gates.promotion import settle
from pipeline.gates.terms import terms
from pipeline.jobs.launcher import open_launcher, run_job
from pipeline.recipes.loader import load_recipe
from tests.e2e.conftest import Chain
from training.errors import InputRefused
from training.specs.artifacts import Manifest
from training.specs.execution import Launcher
from training.store.store import MANIFEST, Store

pytestmark = pytest.mark.usefixtures("forked_jobs")

# A folder can be sound whatever its weights are, its data can have been read whole, and noise neither loops nor is it
# empty.
NOISE_MAY_PASS = {
    "loads",
    "chat_round_trip",
    "repetition_rate",
    "empty_rate",
    "dropped_conversations_share",
    "dropped_pairs_share",
}


@pytest.fixture(scope="module")
def store(kept_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the smoke chain's store, to do harm in."""
    folder = tmp_path_factory.mktemp("untrained")
    shutil.copytree(kept_chain.home / "store", folder / "store")
    return Store(str(folder / "store"), "smoke")


def with_random_weights(real: Manifest, store: Store, folder: Path) -> Manifest:
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    shutil.copytree(store.folder(real.asset, real.version), folder)
    (folder / MANIFEST).unlink()
    set_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    model.generation_config = model.generation_config.from_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    return store.publish(folder, real.model_copy(update={"identity": "0" * 64}))


@pytest.mark.parametrize("asset", ["base_model", "sft_model", "dpo_model", "lora_model"])
def test_every_gate_refuses_random_weights(asset: str, store: Store, tmp_path: Path) -> None:
    real = store.latest(asset)
    assert real is not None
    untrained = with_random_weights(real, store, tmp_path / "model")
    loaded = load_recipe("smoke")
    plan = plan_evaluation(untrained, loaded, store)
    job = plan.job(store, tmp_path / "work", Launcher().execution(plan.asset), {})
    run_job(open_launcher(Launcher()), job, lambda events: None)
    evaluation = store.find(plan.asset, plan.identity)
    assert evaluation is not None
    on = terms(asset, loaded, store)
    evidence = read_evidence(untrained, evaluation, on, store)
    assert evidence.estimates["export_logprob_error"].value > 0.5, "these are not the weights that were trained"
    for recipe in ("tiny", "smoke"):
        for gate in load_recipe(recipe).recipe.gates[asset]:
            verdict = judge_gate(gate, evidence, None)
            assert not verdict.passed or gate.metric in NOISE_MAY_PASS, (recipe, verdict)

    before = store.promotion(asset)
    certificate = certify(untrained, evaluation, loaded.recipe.gates[asset], store, on, "test", None, (), ())
    assert settle(certificate, store, "test") is False
    assert store.promotion(asset) == before, "what was promoted before stays"
    with pytest.raises(InputRefused, match="not promoted"):
        store.require_promoted(asset, untrained.version, untrained.digest)
