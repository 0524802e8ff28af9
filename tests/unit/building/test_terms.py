"""A certificate vouches for its version on the terms it was issued on, and on no others."""

from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.building import decisions
from pipeline.building.planner import plan_asset, plan_evaluation, promoted_input
from pipeline.gates.terms import terms
from tests.unit.worlds import World, silent
from training.errors import InputRefused
from training.specs.artifacts import InputRecord, Promotion
from training.store.store import utc_today

GOOD = {"bytes": 100.0, "documents": 5.0}


def test_a_changed_threshold_moves_the_pointer_both_ways_and_runs_no_job(world: World) -> None:
    made = world.publish("raw_corpus", GOOD)
    assert world.judge("raw_corpus").promoted
    strict = world.with_overrides("gates.raw_corpus.0.threshold=1000")
    assert not strict.judge("raw_corpus").promoted
    assert world.promoted("raw_corpus") == ""
    with pytest.raises(InputRefused, match="bytes 100 fails >= 1,000"):
        plan_asset("corpus", strict.builder.loaded, world.store)
    assert world.judge("raw_corpus").promoted
    assert world.promoted("raw_corpus") == made.version
    assert world.store.versions("raw_corpus") == [made.version]
    assert len(world.store.versions("raw_corpus.evaluation")) == 1
    world.assert_no_job_ran()


def test_an_unchanged_judgement_keeps_its_certificate(world: World) -> None:
    world.publish("raw_corpus", GOOD)
    first, again = world.judge("raw_corpus").certificate, world.judge("raw_corpus").certificate
    assert again == first
    assert len(world.store.promotions("raw_corpus")) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gates.raw_corpus.1.threshold=1", "the asset's gates changed since"),
        (
            "evaluation.max_new_tokens=7",
            "the evaluation sets, what else it is measured with, or the recipe's section `evaluation` changed since",
        ),
    ],
)
def test_downstream_refuses_a_certificate_on_other_terms(world: World, override: str, said: str) -> None:
    world.publish("raw_corpus", GOOD)
    world.judge("raw_corpus")
    promoted_input("raw_corpus", world.builder.loaded, world.store)
    with pytest.raises(InputRefused, match=said) as error:
        promoted_input("raw_corpus", world.with_overrides(override).builder.loaded, world.store)
    assert f"`gatehouse run -r {world.store.recipe} --select raw_corpus` judges it again" in str(error.value)


def test_downstream_refuses_a_certificate_by_other_code(world: World) -> None:
    world.publish("raw_corpus", GOOD)
    certificate = world.judge("raw_corpus").certificate.model_copy(update={"evaluator_fingerprint": "0" * 64})
    world.store.write_certificate(certificate)
    world.store.promote(
        Promotion(
            asset="raw_corpus",
            version=certificate.version,
            promoted_at=0.0,
            promoted_by="test",
            digest=certificate.artifact_digest,
            certificate_digest=certificate.digest,
        )
    )
    with pytest.raises(InputRefused, match="the evaluator's code changed since"):
        promoted_input("raw_corpus", world.builder.loaded, world.store)


def test_a_promoted_version_that_the_recipe_asks_for_no_longer_is_judged_again_too(world: World) -> None:
    old = world.publish("raw_corpus", GOOD)
    world.judge("raw_corpus")
    (world.folder / "notes" / "b.txt").write_text("two")
    world.publish("raw_corpus", {"bytes": 1.0, "documents": 5.0})
    assert not world.judge("raw_corpus").promoted
    assert world.promoted("raw_corpus") == old.version
    other = world.with_overrides("gates.raw_corpus.1.threshold=1")
    assert not other.judge("raw_corpus").promoted
    assert promoted_input("raw_corpus", other.builder.loaded, world.store).version == old.version
    strict = world.with_overrides("gates.raw_corpus.1.threshold=99")
    strict.judge("raw_corpus")
    assert world.promoted("raw_corpus") == ""


def test_the_parent_of_a_comparison_is_the_one_it_was_made_from(world: World) -> None:
    world.publish("raw_corpus", GOOD)
    world.judge("raw_corpus")
    corpus = world.publish("corpus", {"bytes": 50.0})
    world.judge("corpus")
    made_from = InputRecord(asset="corpus", version="20250101T000000-gone", digest="0" * 64)
    tokenizer = corpus.model_copy(update={"asset": "tokenizer", "inputs": {"corpus": made_from}})
    with pytest.raises(
        InputRefused,
        match=f"was made from corpus 20250101T000000-gone, and {corpus.version} is promoted now: materialize tokenizer",
    ):
        plan_evaluation(tokenizer, world.builder.loaded, world.store)
    past = plan_evaluation(tokenizer, world.builder.loaded, world.store, is_past_version=True).inputs["corpus"]
    assert (past.version, past.digest, past.promoted) == (made_from.version, made_from.digest, False)
    same = tokenizer.model_copy(update={"inputs": {"corpus": made_from.model_copy(update={"digest": corpus.digest})}})
    promoted = plan_evaluation(same, world.builder.loaded, world.store).inputs["corpus"]
    assert (promoted.version, promoted.promoted) == (corpus.version, True) and promoted.certificate


IMPORTED = """\
extends: finetune
name: unit
base_model: {{from: {model}}}
conversations:
  - {{name: chats, path: {chats}}}
gates:
  lora_model:
    - {{metric: benign_answer_rate, must_be: ">=", threshold: 0.3, champion_margin: 0.1}}
"""


def _imported_world(folder: Path) -> World:
    """A recipe that tunes an imported model, with everything promoted up to that model."""
    model, chats = folder / "model", folder / "chats.jsonl"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"weights")
    chats.write_text('{"question": "Who?", "answer": "Me."}\n')
    (folder / "unit.yaml").write_text(IMPORTED.format(model=model, chats=chats))
    world = World(folder)
    for asset in ("conversations", "evaluation_sets", "tokenizer", "instruction_data", "adapter_data"):
        world.publish(asset, world.passing(asset))
        assert world.judge(asset).promoted
    return world


def test_an_imported_model_is_the_first_champion_of_what_follows(tmp_path: Path) -> None:
    world = _imported_world(tmp_path)
    imported = world.publish("base_model", {**world.passing("base_model"), "benign_answer_rate": 0.9})
    assert world.judge("base_model").promoted

    world.publish("lora_model", {"benign_answer_rate": 0.7})
    lost = world.judge("lora_model").certificate
    assert lost.compared_with == ("base_model", imported.version)
    assert not lost.passed and "not shown to be as good as the champion" in lost.verdicts[0].reason

    kept = world.publish("lora_model", {"benign_answer_rate": 0.85})
    judged = world.judge("lora_model")
    assert judged.promoted and judged.certificate.compared_with == ("base_model", imported.version)
    assert world.judge("lora_model").certificate == judged.certificate

    world.publish("lora_model", {"benign_answer_rate": 0.8})
    following = world.judge("lora_model").certificate
    assert following.compared_with == ("lora_model", kept.version), "once one is promoted, it is the champion"


@pytest.mark.parametrize("missing", [{}, {"benign_answer_rate": "it has no chat template"}])
def test_what_was_not_measured_of_an_imported_model_is_not_compared(tmp_path: Path, missing: dict[str, str]) -> None:
    """A base model of plain text answers nothing: its report does not name what is measured of answers."""
    world = _imported_world(tmp_path)
    world.publish("base_model", world.passing("base_model"), missing=missing)
    assert world.judge("base_model").promoted
    world.publish("lora_model", {"benign_answer_rate": 0.5})
    judged = world.judge("lora_model")
    assert judged.promoted
    reason = judged.certificate.verdicts[0].reason
    assert "no champion to compare with: of the imported model it" in reason
    assert ("it has no chat template" if missing else "was not measured") in reason


def test_a_version_that_was_refused_does_not_pass_because_its_champion_is_gone(world: World) -> None:
    """It was promoted by a waiver, which then ends."""
    world.publish_upstream()
    first = world.publish("base_model", {"clean_stop_rate": 0.9})
    assert world.judge("base_model").promoted
    worse = world.publish("base_model", {"clean_stop_rate": 0.5})
    assert not world.judge("base_model").promoted
    tomorrow = utc_today() + timedelta(days=1)
    decisions.waive(world.builder, "base_model", "clean_stop_rate", "a test", tomorrow, "ada", silent)
    assert world.promoted("base_model") == worse.version

    decisions.withdraw_waiver(world.builder, "base_model", "clean_stop_rate", silent)
    assert world.promoted("base_model") == ""
    again = world.judge("base_model")
    assert not again.promoted
    assert again.certificate.compared_with == ("base_model", first.version)


def test_another_tokenizer_makes_the_masks_evidence_of_yesterday(tmp_path: Path) -> None:
    """What is learned of a row was measured with the tokenizer, which the rows were not made from."""
    world = _imported_world(tmp_path)
    before = terms("instruction_data", world.builder.loaded, world.store)
    other = world.with_overrides("tokenizer.train_added=true")
    other.publish("tokenizer", other.passing("tokenizer") | {"other": 1.0})
    assert other.judge("tokenizer").promoted

    certificate = world.store.certificate("instruction_data", world.promoted("instruction_data"))
    assert certificate is not None
    assert before.outdated(certificate) == []
    assert terms("instruction_data", other.builder.loaded, world.store).outdated(certificate) == [
        "the evaluation sets, what else it is measured with, or the recipe's section `evaluation`"
    ]


def test_a_worse_version_leaves_the_champion_where_it_is(world: World) -> None:
    world.publish_upstream()
    first = world.publish("base_model", {"clean_stop_rate": 0.5})
    assert "no champion to compare with" in world.judge("base_model").certificate.verdicts[0].reason
    world.publish("base_model", {"clean_stop_rate": 0.4})
    worse = world.judge("base_model").certificate
    assert worse.champion == first.version and not worse.passed
    assert world.promoted("base_model") == first.version
    near = world.publish("base_model", {"clean_stop_rate": 0.46})
    judged = world.judge("base_model")
    assert judged.promoted and judged.certificate.champion == first.version
    again = world.judge("base_model")
    assert again.certificate == judged.certificate, "once promoted it still stands against the one it replaced"
    assert world.promoted("base_model") == near.version
    decisions.rollback(world.builder, "base_model", "worse", "ada", silent)
    assert world.promoted("base_model") == first.version, "the way back is not barred by the one that is left"
