"""A change of code alone is a decision: it is told apart from all else, and a version is taken over after a proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import adoption as adoption_module
from pipeline.building.adoption import adopt, describe_adoption
from pipeline.building.planner import plan_asset
from pipeline.jobs.launcher import JobRefused
from pipeline.upkeep.asset_status import AssetStatus, survey
from pipeline.upkeep.gc import delete_garbage, find_garbage
from pipeline.upkeep.verification import Verification
from tests.unit.worlds import World, messages, silent
from training.errors import InputRefused, RecipeError, StoreError
from training.job import code_digest
from training.job.fingerprint import fingerprint
from training.specs.artifacts import Adoption, Proof
from training.specs.job import Job
from training.specs.proofs import PROOF_FILE

PROOF = Proof(method="rebuilt", compared="all 2 files are equal byte for byte", files=2, bytes=10, seconds=3.0)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Every proof passes at once; the jobs that were asked for."""
    jobs: list[Job] = []

    def passes(_builder: object, job: Job, *_: object) -> None:
        jobs.append(job)
        Path(job.attempt).mkdir(parents=True)
        (Path(job.attempt) / PROOF_FILE).write_text(PROOF.model_dump_json())

    monkeypatch.setattr(adoption_module, "_launch", passes)
    return jobs


@pytest.fixture
def upgraded(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Five promoted assets, and code of all stages that is not the code that made them."""
    world.publish_upstream()
    upgrade(monkeypatch, "x")
    return world


def upgrade(monkeypatch: pytest.MonkeyPatch, letter: str) -> None:
    def changed(module: str) -> str:
        return fingerprint(module) if "evaluate" in module else letter + fingerprint(module)[1:]

    monkeypatch.setattr("pipeline.building.planner.fingerprint", changed)


def statuses(world: World) -> dict[str, AssetStatus]:
    return {status.asset: status for status in survey(world.builder.loaded, world.store)}


def adopted(world: World, asset: str) -> Adoption:
    adoption = adopt(world.builder, asset, "moved", "ada", silent)
    assert adoption is not None
    return adoption


def test_a_change_of_code_alone_is_said_of_every_asset(upgraded: World) -> None:
    shown = statuses(upgraded)
    for asset in ("raw_corpus", "corpus", "packed_shards"):
        assert shown[asset].code_changed and not shown[asset].fresh and shown[asset].promoted
        assert f"`gatehouse adopt -r unit {asset} --reason ...` takes it over" in shown[asset].why
        assert shown[asset].as_json()["code_changed"]
    assert "made before they were recorded" in shown["corpus"].why
    assert not shown["base_model"].code_changed and shown["base_model"].why == "never built"


def test_an_adopted_version_is_what_the_recipe_asks_for(upgraded: World, proofs: list[Job]) -> None:
    before = upgraded.store.latest("raw_corpus")
    assert before is not None
    adoption = adopted(upgraded, "raw_corpus")
    assert (adoption.version, adoption.author, adoption.reason) == (before.version, "ada", "moved")
    assert (adoption.made_as, adoption.made_by) == (before.identity, before.fingerprint)
    plan = plan_asset("raw_corpus", upgraded.builder.loaded, upgraded.store)
    assert (plan.identity, plan.fingerprint) == (adoption.identity, adoption.fingerprint)
    assert plan.existing == before and plan.same_but_code is None, "the manifest did not change"

    status = statuses(upgraded)["raw_corpus"]
    assert status.fresh and status.adoptions == (adoption,)
    assert upgraded.judge("raw_corpus").promoted
    manifest, reused = upgraded.builder.build("raw_corpus", silent)
    assert (manifest, reused) == (before, True)
    assert adopt(upgraded.builder, "raw_corpus", "again", "ada", silent) is None
    assert not list(upgraded.folder.glob("work/**/job.json")) and not list(upgraded.folder.glob("work/**/proof-*"))


def test_the_proof_is_a_job_of_its_own_on_the_same_inputs(upgraded: World, proofs: list[Job]) -> None:
    adopted(upgraded, "corpus")
    (job,) = proofs
    assert job.proof is not None and job.proof.version == upgraded.promoted("corpus")
    assert Path(job.attempt).parent == upgraded.folder / "work" / "unit" / "corpus"
    assert job.inputs["raw_corpus"].version == upgraded.promoted("raw_corpus")


def test_a_child_is_adopted_before_its_parents_and_stays_as_it_is(upgraded: World, proofs: list[Job]) -> None:
    adopted(upgraded, "packed_shards")
    shown = statuses(upgraded)
    assert not shown["packed_shards"].code_changed and shown["corpus"].code_changed
    for asset in ("raw_corpus", "corpus", "evaluation_sets", "tokenizer"):
        adopted(upgraded, asset)
    assert all(statuses(upgraded)[asset].fresh for asset in ("corpus", "packed_shards"))


def test_a_second_upgrade_asks_for_a_second_adoption(
    upgraded: World, proofs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adopted(upgraded, "raw_corpus")
    upgrade(monkeypatch, "y")
    assert statuses(upgraded)["raw_corpus"].code_changed
    second = adopted(upgraded, "raw_corpus")
    assert first.version == second.version and first.made_by == second.made_by
    assert upgraded.store.adoptions("raw_corpus", first.version) == [first, second]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tokenizer.min_frequency=3", "changed: recipe tokenizer.min_frequency, code"),
        ("seed=5", "changed: code, seed"),
    ],
)
def test_recipe_and_seed_are_never_adopted(upgraded: World, proofs: list[Job], override: str, said: str) -> None:
    changed = upgraded.with_overrides(override)
    assert not statuses(changed)["tokenizer"].code_changed
    with pytest.raises(InputRefused, match=f"cannot be adopted: {said}.* are never adopted"):
        adopt(changed.builder, "tokenizer", "moved", "ada", silent)
    assert not proofs and upgraded.store.adopted("tokenizer") == []


def test_another_input_is_never_adopted(upgraded: World, proofs: list[Job]) -> None:
    made = upgraded.publish("raw_corpus", upgraded.passing("raw_corpus") | {"bytes": 99.0}, current=False)
    assert upgraded.builder.examine(made, silent, is_past_version=False).promoted
    with pytest.raises(InputRefused, match="cannot be adopted: changed: input raw_corpus, code"):
        adopt(upgraded.builder, "corpus", "moved", "ada", silent)
    assert not proofs


def test_another_source_is_never_adopted(upgraded: World, proofs: list[Job]) -> None:
    (upgraded.folder / "notes" / "a.txt").write_text("two")
    assert not statuses(upgraded)["raw_corpus"].code_changed
    with pytest.raises(InputRefused, match="are never adopted"):
        adopt(upgraded.builder, "raw_corpus", "moved", "ada", silent)


def test_what_is_no_adoption(upgraded: World, proofs: list[Job]) -> None:
    with pytest.raises(InputRefused, match="base_model was never built, so there is nothing to adopt"):
        adopt(upgraded.builder, "base_model", "moved", "ada", silent)
    with pytest.raises(RecipeError, match="needs a --reason"):
        adopt(upgraded.builder, "corpus", " ", "ada", silent)
    with pytest.raises(RecipeError, match="did you mean corpus"):
        adopt(upgraded.builder, "corpu", "moved", "ada", silent)


def test_what_is_only_proven_whole_must_fit_the_time(
    upgraded: World, proofs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, raw = upgraded.store.latest("corpus"), upgraded.store.latest("raw_corpus")
    assert corpus is not None and raw is not None
    with pytest.raises(
        InputRefused, match="which took 10m, and the proof may take 2m: give it more with --seconds 1200"
    ):
        adoption_module._require_time(corpus.model_copy(update={"seconds": 600.0}), 120)
    adoption_module._require_time(raw.model_copy(update={"seconds": 600.0}), 120)


def test_a_proof_that_fails_adopts_nothing(upgraded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise JobRefused("corpus v1: train/part-00000.parquet is not what today's code makes: row 3 differs (text)")

    monkeypatch.setattr(adoption_module, "_launch", fails)
    with pytest.raises(JobRefused, match="row 3 differs"):
        adopt(upgraded.builder, "corpus", "moved", "ada", silent)
    assert upgraded.store.adopted("corpus") == [] and statuses(upgraded)["corpus"].code_changed


def test_the_functions_that_differ_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, list[str]] = {"run": ["1"], "_write": ["2"], "Reader.read": ["3"]}
    publish = world.store.__class__.publish

    def with_code(store: Any, source: Path, manifest: Any) -> Any:
        (source / "report").mkdir(exist_ok=True)
        (source / code_digest.CODE_FILE).write_text(json.dumps(recorded))
        return publish(store, source, manifest)

    monkeypatch.setattr("training.store.store.Store.publish", with_code)
    world.publish("raw_corpus", world.passing("raw_corpus"))
    assert world.judge("raw_corpus").promoted
    upgrade(monkeypatch, "x")
    monkeypatch.setattr("pipeline.building.code_change.code_digests", lambda _module: recorded | {"run": ["9"]})
    status = statuses(world)["raw_corpus"]
    assert status.functions == ("run",) and status.why.startswith("code changed: run; `gatehouse adopt")


def test_a_build_of_what_could_be_adopted_says_so(upgraded: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise RecipeError("stop here")

    monkeypatch.setattr("pipeline.building.builder.check_recipe", refuses)
    said: list[dict[str, Any]] = []
    with pytest.raises(RecipeError, match="stop here"):
        upgraded.builder.build("raw_corpus", said.extend)
    assert "is made anew: code changed" in messages(said) and "gatehouse adopt -r unit raw_corpus" in messages(said)


def test_a_damaged_adoption_is_said_where_it_matters(upgraded: World, proofs: list[Job]) -> None:
    adoption = adopted(upgraded, "corpus")
    record = upgraded.path("corpus") / "adoptions" / adoption.version / f"{adoption.identity}.json"
    record.write_bytes(record.read_bytes().replace(b"moved", b"m0ved"))
    with pytest.raises(StoreError, match="is damaged"):
        plan_asset("corpus", upgraded.builder.loaded, upgraded.store)
    assert "is damaged" in statuses(upgraded)["corpus"].why
    findings = {finding.asset: finding for finding in Verification(upgraded.store, "corpus").findings}
    assert any("gatehouse adopt -r unit corpus" in defect for defect in findings["corpus"].defects)


def test_a_forged_adoption_across_recipes_vouches_for_nothing(upgraded: World, proofs: list[Job]) -> None:
    """A record with a right checksum, for an identity that another recipe asks for."""
    adoption = adopted(upgraded, "tokenizer")
    changed = upgraded.with_overrides("tokenizer.min_frequency=3")
    wanted = plan_asset("tokenizer", changed.builder.loaded, changed.store).identity
    upgraded.store.write_adoption(adoption.model_copy(update={"identity": wanted}))
    with pytest.raises(StoreError, match="more than its code differs"):
        plan_asset("tokenizer", changed.builder.loaded, changed.store)


def test_verify_names_an_adoption(upgraded: World, proofs: list[Job]) -> None:
    adoption = adopted(upgraded, "corpus")
    findings = {finding.asset: finding for finding in Verification(upgraded.store, "corpus").findings}
    assert findings["corpus"].adopted == [describe_adoption(adoption)]
    assert "by ada: moved; proof: all 2 files are equal byte for byte, in 3s" in describe_adoption(adoption)
    assert not findings["corpus"].defects


def test_gc_keeps_the_adoption_of_what_it_keeps_and_removes_that_of_what_goes(
    upgraded: World, proofs: list[Job]
) -> None:
    old = adopted(upgraded, "packed_shards")
    collect(upgraded)
    assert upgraded.store.adoptions("packed_shards", old.version) == [old]
    for number in range(3):  # the last three promotions stay
        made = upgraded.publish("packed_shards", upgraded.passing("packed_shards"), current=False)
        assert upgraded.builder.examine(made, silent, is_past_version=False).promoted, number
    collect(upgraded)
    assert old.version not in upgraded.store.versions("packed_shards")
    assert upgraded.store.adopted("packed_shards") == []
    assert not list((upgraded.path("packed_shards") / "adoptions").iterdir())


def collect(world: World) -> None:
    work = world.folder / "work"
    delete_garbage(find_garbage(world.builder.loaded, world.store, work, 0), world.store, work, lambda *_: None)
