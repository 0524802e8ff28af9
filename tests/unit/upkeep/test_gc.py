"""`gatehouse gc`: what goes, what stays and for whom, and what is said of it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from shutil import rmtree

import pytest

from pipeline.building import decisions
from pipeline.building.planner import plan_asset
from pipeline.cli.gc import collect
from pipeline.jobs.locks import building
from pipeline.upkeep import retention
from pipeline.upkeep.gc import Deletion, Garbage, delete_garbage, find_garbage
from pipeline.upkeep.retention import KEPT_PROMOTIONS
from pipeline.upkeep.verification import Verification
from tests.unit.worlds import World, new_world, silent
from training.errors import StoreError
from training.specs.artifacts import Hold, Waiver
from training.specs.execution import Execution
from training.specs.job import Input
from training.store.store import Store, utc_today

GOOD = {"bytes": 100.0, "documents": 5.0}
FEW = {"bytes": 100.0, "documents": 1.0}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six versions of raw_corpus: 0 to 3 were promoted in turn, 4 and 5 refused. corpus was made from 0."""
    world = new_world(tmp_path_factory.mktemp("gc"))
    for number, metrics in enumerate([GOOD, GOOD, GOOD, GOOD, FEW, FEW]):
        (world.folder / "notes" / "a.txt").write_text(f"text {number}")
        world.publish("raw_corpus", metrics)
        world.judge("raw_corpus")
        if number == 0:
            world.publish("corpus", world.passing("corpus"))
            assert world.judge("corpus").promoted
    return world


@pytest.fixture
def world(template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    from shutil import copytree

    copytree(template.folder, tmp_path / "world")
    recipe = tmp_path / "world" / "unit.yaml"
    recipe.write_text(recipe.read_text().replace(str(template.folder), str(tmp_path / "world")))
    monkeypatch.setenv("GATEHOUSE_HOME", str(tmp_path / "world"))
    return World(tmp_path / "world")


def garbage(world: World, hours: float = 0) -> Garbage:
    return find_garbage(world.builder.loaded, world.store, world.folder / "work", hours * 3600)


def collected(world: World, hours: float = 0) -> dict[str, str]:
    """Delete, and return what became of each thing."""
    said: dict[str, str] = {}
    delete_garbage(
        garbage(world, hours),
        world.store,
        world.folder / "work",
        lambda deletion, kept: said.update({deletion.name: kept}),
    )
    return said


def numbers(world: World, template: World) -> list[int]:
    """Which versions of raw_corpus there are."""
    made = template.store.versions("raw_corpus")
    return [made.index(version) for version in world.store.versions("raw_corpus")]


def superseded(world: World) -> tuple[str, str]:
    """A version of corpus that nothing needs any more, and the one of raw_corpus that it was made from."""
    for _ in range(KEPT_PROMOTIONS):
        made = world.publish("corpus", world.passing("corpus"), current=False)
        assert world.builder.examine(made, silent, is_past_version=False).promoted
    return world.store.versions("corpus")[0], world.store.versions("raw_corpus")[0]


def evidence(world: World, asset: str, version: str) -> str:
    """The evaluation that a version's certificate rests on."""
    issued = world.store.certificate(asset, version)
    assert issued is not None
    return issued.evaluation_version


def assert_verified(world: World) -> None:
    """`gatehouse verify` finds nothing wrong."""
    assert [
        finding.defects for finding in Verification(world.store, "").run(lambda _name, _count: None) if finding.defects
    ] == []


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_nothing_needs_goes_and_the_rest_still_works(world: World, template: World) -> None:
    gone = world.store.versions("raw_corpus")[4]
    evidence = world.store.certificate("raw_corpus", gone)
    assert evidence is not None
    assert collected(world) == {f"raw_corpus {gone}": "", f"raw_corpus.evaluation {evidence.evaluation_version}": ""}
    assert numbers(world, template) == [0, 1, 2, 3, 5]
    assert not [path for path in world.path("raw_corpus").rglob(f"*{gone}*") if "promotions" not in path.parts]
    assert_verified(world)
    decisions.rollback(world.builder, "raw_corpus", "a test", "ada", silent)
    assert world.promoted("raw_corpus") == template.store.versions("raw_corpus")[2]
    assert world.judge("corpus").promoted
    world.assert_no_job_ran()
    assert collected(world) == {}


def test_an_ancestor_goes_when_its_descendants_are_promoted_no_longer(world: World, template: World) -> None:
    superseded(world)
    collected(world)
    assert numbers(world, template) == [1, 2, 3, 5]


def test_the_last_promotions_stay_and_one_that_is_held_back_is_not_counted(world: World, template: World) -> None:
    for asset in ("corpus", "corpus.evaluation"):
        rmtree(world.path(asset))
    decisions.rollback(world.builder, "raw_corpus", "a test", "ada", silent)
    collected(world)
    assert numbers(world, template) == [0, 1, 2, 3, 5]
    decisions.promote(world.builder, "raw_corpus", template.store.versions("raw_corpus")[3], "ada", silent)
    collected(world)
    assert numbers(world, template) == [1, 2, 3, 5]


def test_a_rollback_goes_past_a_version_that_is_gone(world: World, template: World) -> None:
    made = world.store.versions("raw_corpus")
    world.store.storage.remove_folder(world.store.place("raw_corpus", made[2]), first="manifest.json")
    decisions.rollback(world.builder, "raw_corpus", "a test", "ada", silent)
    assert world.promoted("raw_corpus") == made[1]


def test_what_is_new_stays(world: World, template: World) -> None:
    assert garbage(world, hours=1).deletions == []


def test_a_version_held_back_stays(world: World, template: World) -> None:
    version = world.store.versions("raw_corpus")[4]
    world.store.write_hold(Hold(asset="raw_corpus", version=version, reason="", author="ada", created_at=0.0))
    assert collected(world) == {}


@pytest.mark.parametrize(("days", "stays"), [(0, True), (-1, False)])
def test_a_waived_version_stays_as_long_as_the_waiver_holds(
    world: World, template: World, days: int, stays: bool
) -> None:
    version = world.store.versions("raw_corpus")[4]
    world.store.write_waiver(
        Waiver(
            asset="raw_corpus",
            version=version,
            gate="documents",
            reason="a demo",
            author="ada",
            until=utc_today() + timedelta(days),
            created_at=0.0,
        )
    )
    collected(world)
    assert (4 in numbers(world, template)) is stays
    assert bool(world.store.waivers("raw_corpus", version)) is stays


def test_the_champion_of_a_certificate_stays(world: World, template: World) -> None:
    made = world.store.versions("raw_corpus")
    issued = world.store.certificate("raw_corpus", made[5])
    assert issued is not None
    world.store.write_certificate(issued.model_copy(update={"champion": made[4]}))
    assert collected(world) == {}


def test_what_a_run_works_at_and_what_its_job_reads_stays(world: World, template: World) -> None:
    version = world.store.versions("raw_corpus")[4]
    plan = plan_asset("corpus", world.builder.loaded, world.store)
    job = plan.job(world.store, world.folder / "work", Execution(), {}).model_copy(
        update={"inputs": {"raw_corpus": Input(asset="raw_corpus", version=version, digest="")}}
    )
    attempt = Path(job.attempt)
    attempt.mkdir(parents=True)
    (attempt / "job.json").write_text(job.model_dump_json())
    with building(world.folder / "work", "unit", "corpus", "run 12345678"):
        found = garbage(world)
        assert [deletion.name for deletion in found.deletions] == []
        assert found.notes == ["corpus is being worked at: its versions and attempts are kept, and what its job reads"]
    found = garbage(world)
    with building(world.folder / "work", "unit", "raw_corpus", "run 12345678"):
        assert garbage(world).deletions == []
        kept: list[str] = []
        delete_garbage(found, world.store, world.folder / "work", lambda _deletion, why: kept.append(why))
        assert [why for why in kept if "raw_corpus is being built by run 12345678" in why]
    assert 4 in numbers(world, template)


@pytest.mark.parametrize("at", ["after the search", "after the last scan"])
def test_a_version_promoted_in_between_stays_with_all_it_rests_on(world: World, template: World, at: str) -> None:
    corpus, raw = superseded(world)
    attempt = world.folder / "work" / "unit" / "corpus" / ("a" * 16)
    attempt.mkdir(parents=True)
    found, said = garbage(world), {}
    rests_on = {
        f"corpus {corpus}",
        f"corpus.evaluation {evidence(world, 'corpus', corpus)}",
        f"raw_corpus {raw}",
        f"raw_corpus.evaluation {evidence(world, 'raw_corpus', raw)}",
    }
    assert rests_on < {deletion.name for deletion in found.deletions}

    def say(deletion: Deletion, kept: str) -> None:
        said[deletion.name] = kept
        if deletion.name == str(attempt) and at == "after the last scan":
            decisions.promote(world.builder, "corpus", corpus, "ada", silent)

    if at == "after the search":
        decisions.promote(world.builder, "corpus", corpus, "ada", silent)
    delete_garbage(found, world.store, world.folder / "work", say)
    assert said[str(attempt)] == "" and said[f"corpus {corpus}"] == "it is promoted"
    assert {name for name in rests_on if not said[name]} == set()
    assert world.promoted("corpus") == corpus
    assert_verified(world)


def test_what_a_version_rests_on_stays_as_long_as_it_does(world: World, template: World) -> None:
    corpus, raw = superseded(world)
    found, said = garbage(world), {}
    with ExitStack() as run:
        run.enter_context(building(world.folder / "work", "unit", "corpus", "run 12345678"))

        def say(deletion: Deletion, kept: str) -> None:
            said[deletion.name] = kept
            if deletion.name == f"corpus {corpus}":
                run.close()

        delete_garbage(found, world.store, world.folder / "work", say)
    assert "is being built by run 12345678" in said.pop(f"corpus {corpus}")
    assert said[f"corpus.evaluation {evidence(world, 'corpus', corpus)}"] == f"it measured corpus {corpus}"
    assert said[f"raw_corpus {raw}"] == f"corpus {corpus} was made from it"
    decisions.promote(world.builder, "corpus", corpus, "ada", silent)
    assert_verified(world)


def test_what_is_worked_at_during_the_search_keeps_what_it_rests_on(
    world: World, template: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, _ = superseded(world)
    monkeypatch.setattr("pipeline.upkeep.gc.busy", lambda _work, _recipe: ["corpus"])
    collected(world)
    decisions.promote(world.builder, "corpus", corpus, "ada", silent)
    assert_verified(world)


def test_a_rollback_on_other_terms_still_has_another_promotion_to_go_to(world: World, template: World) -> None:
    made = world.store.versions("raw_corpus")
    for asset in ("corpus", "corpus.evaluation"):
        rmtree(world.path(asset))
    world.evaluated(world.store.manifest("raw_corpus", made[2]), {"bytes": 100.0, "documents": 3.0})
    recipe = world.folder / "unit.yaml"
    recipe.write_text(recipe.read_text().replace('">=", threshold: 2}', '">=", threshold: 4}'))
    collected(world)
    assert numbers(world, template) == [1, 2, 3, 5]
    decisions.rollback(world.builder, "raw_corpus", "a test", "ada", silent)
    assert world.promoted("raw_corpus") == made[1]
    world.assert_no_job_ran()


def test_what_a_promotion_rests_on_stays_while_the_version_is_judged_again(world: World, template: World) -> None:
    version = world.store.versions("raw_corpus")[3]
    rests_on = evidence(world, "raw_corpus", version)
    manifest, issued = world.store.manifest("raw_corpus", version), world.store.certificate("raw_corpus", version)
    assert issued is not None
    world.evaluated(manifest, GOOD)
    newest = world.store.versions("raw_corpus.evaluation")[-1]
    world.store.write_certificate(issued.model_copy(update={"evaluation_version": newest}))
    collected(world)
    assert {rests_on, newest} <= set(world.store.versions("raw_corpus.evaluation"))
    assert_verified(world)


def test_a_version_published_during_the_search_stays(
    world: World, template: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, published = retention.all_versions, []

    def all_versions(store: Store, known: retention.Versions) -> retention.Versions:
        there = real(store, known)
        if not published:
            (world.folder / "notes" / "a.txt").write_text("new")
            published.append(world.publish("raw_corpus", GOOD).version)
        return there

    monkeypatch.setattr(retention, "all_versions", all_versions)
    found = garbage(world)
    assert not [deletion.name for deletion in found.deletions if published[0] in deletion.name]
    delete_garbage(found, world.store, world.folder / "work", lambda _deletion, _kept: None)
    assert published[0] in world.store.versions("raw_corpus")


def test_what_got_its_manifest_since_the_search_stays(world: World, template: World) -> None:
    version = world.store.versions("raw_corpus")[4]
    manifest = world.path("raw_corpus") / "versions" / version / "manifest.json"
    data = manifest.read_bytes()
    manifest.unlink()
    found, said = garbage(world), {}
    manifest.write_bytes(data)
    delete_garbage(found, world.store, world.folder / "work", lambda deletion, kept: said.update({deletion.name: kept}))
    for left in (manifest.parent, world.path("raw_corpus") / "certificates" / f"{version}.json"):
        assert left.exists() and said[str(left)] == f"raw_corpus {version} is there now"


def test_attempts(world: World, template: World) -> None:
    made = world.store.versions("raw_corpus")
    folder = world.folder / "work" / "unit" / "raw_corpus"
    wanted = plan_asset("raw_corpus", world.builder.loaded, world.store).identity[:16]
    for name, version in (("a" * 16, made[3]), ("b" * 16, made[4]), ("c" * 16, ""), (wanted, ""), ("d" * 16, "")):
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "checkpoints" / "model").write_text("x" * 100)
        if version:
            (folder / name / "result.json").write_text(json.dumps({"version": version}))
    (folder / ("d" * 16) / "tracking-1.json").write_text("not read: it is owed")
    found = {Path(deletion.name).name: deletion for deletion in garbage(world).deletions if deletion.kind == "attempt"}
    assert set(found) == {"b" * 16, "c" * 16}
    assert found["b" * 16].loss == f"the log of raw_corpus {made[4]}"
    assert "checkpoints of a build of raw_corpus that was not finished" in found["c" * 16].loss
    assert found["c" * 16].bytes == 100
    collected(world)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"a" * 16, wanted, "d" * 16}
    assert garbage(world, hours=1).deletions == []


def test_what_kills_left_goes(world: World, template: World) -> None:
    asset, kept = world.path("raw_corpus"), world.store.versions("raw_corpus")[3]
    left = [
        asset / "versions" / ".cccccccc-1/data.txt",
        asset / "versions" / "20200101T000000-no_manifest/data.txt",
        asset / ".promoted.json-12345678",
        asset / "certificates" / ".x.json-12345678",
        asset / "certificates" / "20200101T000000-gone.json",
        asset / "links" / "20200101T000000-gone.json",
        asset / "waivers" / "20200101T000000-gone/documents.json",
        asset / "waivers" / ".deleted-y-1/x.json",
        asset / "waivers" / kept / ".documents.json-12345678",
        asset / "versions" / ".deleted-x-1/data.txt",
    ]
    world.store.write_links("raw_corpus", "promoted", {"version": kept})
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left")
    names = {deletion.name for deletion in garbage(world, hours=1).deletions}
    assert names == {str(left[-1].parent), str(asset / "waivers" / ".deleted-y-1")}, "the rest may be in the making"
    collected(world)
    folders = {asset, asset / "certificates", asset / "links", asset / "waivers" / kept}
    assert not [path for path in left if path.exists() or (path.parent not in folders and path.parent.exists())]
    assert world.store.links("raw_corpus", "promoted") == {"version": kept}
    assert collected(world) == {}
    assert numbers(world, template) == [0, 1, 2, 3, 5]


def test_nothing_is_deleted_on_a_guess(world: World, template: World) -> None:
    manifest = world.path("raw_corpus") / "versions" / world.store.versions("raw_corpus")[2] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"bytes": ', b'"bytes":  ', 1))
    with pytest.raises(StoreError, match=f"{manifest} is damaged: it is not as it was written; delete this file"):
        garbage(world)


def test_a_dry_run_says_what_would_be_lost_and_changes_nothing(
    world: World, template: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    before = files(world.folder / "store")
    collect(str(world.folder / "unit.yaml"), dry_run=True, hours=0)
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "refused by its gates; the same recipe and inputs" in told and "nothing was deleted" in told
    assert files(world.folder / "store") == before
    collect(str(world.folder / "unit.yaml"), dry_run=False, hours=0)
    assert f"deleted version raw_corpus {template.store.versions('raw_corpus')[4]} (" in capsys.readouterr().out
    collect(str(world.folder / "unit.yaml"), dry_run=False, hours=24)
    assert "There is nothing to delete that is older than 24 hours." in capsys.readouterr().out
