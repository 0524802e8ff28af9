"""What a person may decide: waivers, promotions, rollbacks, and what they can not."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from pipeline.building import decisions
from pipeline.building.planner import promoted_input
from pipeline.gates import promotion
from tests.unit.worlds import World, messages, silent
from training.errors import InputRefused, RecipeError, StoreError
from training.specs.artifacts import Waiver
from training.store.store import utc_today

GOOD = {"bytes": 100.0, "documents": 5.0}
FEW = {"bytes": 100.0, "documents": 1.0}
TOMORROW = utc_today() + timedelta(days=1)


def waive(world: World, gate: str = "documents", until: date = TOMORROW, version: str = "") -> bool:
    return decisions.waive(world.builder, "raw_corpus", gate, "a demo", until, "ada", silent, version).promoted


def versions(world: World, *metrics: dict[str, float]) -> list[str]:
    """Versions of raw_corpus, each judged; only the last is what the recipe asks for now."""
    made = []
    for number, values in enumerate(metrics):
        (world.folder / "notes" / "a.txt").write_text(f"text {number}")
        made.append(world.publish("raw_corpus", values).version)
        world.judge("raw_corpus")
    return made


def test_a_waived_version_is_promoted_at_once_and_its_descendants_say_so(world: World) -> None:
    made = world.publish("raw_corpus", FEW)
    assert not world.judge("raw_corpus").promoted
    assert waive(world)
    assert world.promoted("raw_corpus") == made.version
    child = world.publish("corpus", {"bytes": 50.0})
    inherited = world.judge("corpus").certificate.inherited
    assert [(waiver.asset, waiver.gate, waiver.author) for waiver in inherited] == [("raw_corpus", "documents", "ada")]
    card = (world.path("corpus") / "gate_reports" / f"{child.version}.md").read_text()
    assert f"| raw_corpus `{made.version}` | documents |" in card
    assert world.judge("raw_corpus").promoted, "a run does not forget it"
    world.assert_no_job_ran()


def test_a_withdrawn_waiver_takes_the_promotion_and_its_descendants_with_it(world: World) -> None:
    world.publish("raw_corpus", FEW)
    world.judge("raw_corpus")
    waive(world)
    world.publish("corpus", {"bytes": 50.0})
    world.judge("corpus")
    promoted_input("corpus", world.builder.loaded, world.store)
    assert not decisions.withdraw_waiver(world.builder, "raw_corpus", "documents", silent).promoted
    assert world.promoted("raw_corpus") == ""
    with pytest.raises(InputRefused, match="the standing of what it was made from changed since"):
        promoted_input("corpus", world.builder.loaded, world.store)
    with pytest.raises(InputRefused, match="is not waived; waived is nothing"):
        decisions.withdraw_waiver(world.builder, "raw_corpus", "documents", silent)


def test_nothing_stands_on_a_version_that_is_refused_again(world: World) -> None:
    """Judged again after its parent's waiver was taken back, a child must not pass without a trace of the waiver."""
    world.publish("raw_corpus", FEW)
    world.judge("raw_corpus")
    waive(world)
    child = world.publish("corpus", {"bytes": 50.0})
    assert world.judge("corpus").promoted
    decisions.withdraw_waiver(world.builder, "raw_corpus", "documents", silent)
    with pytest.raises(InputRefused, match=r"it was made from raw_corpus \S+, which is refused now"):
        decisions.promote(world.builder, "corpus", child.version, "ada", silent)
    assert world.promoted("corpus") == ""


@pytest.mark.parametrize(
    ("gate", "until", "error", "said"),
    [
        ("document", TOMORROW, RecipeError, "no such gate; did you mean documents?"),
        ("bytes", TOMORROW, InputRefused, "nothing to waive; what refused it: documents"),
        ("documents", utc_today() - timedelta(days=1), RecipeError, "a waiver ends on a day from"),
        ("documents", utc_today() + timedelta(days=367), RecipeError, "a waiver ends on a day from"),
    ],
)
def test_what_is_no_waiver(world: World, gate: str, until: date, error: type[Exception], said: str) -> None:
    world.publish("raw_corpus", FEW)
    world.judge("raw_corpus")
    with pytest.raises(error, match=said):
        waive(world, gate, until)
    assert world.promoted("raw_corpus") == ""
    assert world.store.waivers("raw_corpus", world.store.versions("raw_corpus")[-1]) == []


def test_a_waiver_is_for_one_version_alone(world: World) -> None:
    first = world.publish("raw_corpus", FEW)
    world.judge("raw_corpus")
    waive(world)
    second = world.publish("raw_corpus", FEW | {"bytes": 99.0})
    folder = world.path("raw_corpus") / "waivers"
    (folder / second.version).mkdir()
    (folder / second.version / "documents.json").write_bytes((folder / first.version / "documents.json").read_bytes())
    assert not world.judge("raw_corpus").promoted, "a waiver that was copied is none"
    assert world.promoted("raw_corpus") == first.version


def test_an_expired_waiver_is_not_applied(world: World) -> None:
    made = world.publish("raw_corpus", FEW)
    world.store.write_waiver(
        Waiver(
            asset="raw_corpus",
            version=made.version,
            gate="documents",
            reason="a demo",
            author="ada",
            until=utc_today() - timedelta(days=1),
            created_at=0.0,
        )
    )
    judged = world.judge("raw_corpus")
    assert not judged.promoted and judged.certificate.waivers == ()


def test_a_version_loses_its_promotion_on_the_day_after(world: World) -> None:
    world.publish("raw_corpus", FEW)
    world.judge("raw_corpus")
    waive(world, until=utc_today())
    certificate = world.store.certificate("raw_corpus", world.promoted("raw_corpus"))
    assert certificate is not None
    assert promotion.settle(certificate, world.store, "test")
    assert not promotion.settle(certificate, world.store, "test", TOMORROW)
    assert world.promoted("raw_corpus") == ""


def test_an_older_version_that_is_waived_does_not_push_out_a_newer_one(world: World) -> None:
    old, new = versions(world, FEW, GOOD)
    assert not waive(world, version=old)
    assert world.promoted("raw_corpus") == new
    decisions.promote(world.builder, "raw_corpus", old, "ada", silent)
    assert world.promoted("raw_corpus") == old


def test_a_rollback_stays_until_it_is_undone(world: World) -> None:
    old, new = versions(world, GOOD, GOOD | {"bytes": 200.0})
    decisions.rollback(world.builder, "raw_corpus", "too French", "ada", silent)
    assert world.promoted("raw_corpus") == old
    said: list[dict[str, object]] = []
    manifest, reused = world.builder.build("raw_corpus", said.extend)
    assert (manifest.version, reused) == (old, True), "the promoted version stands in for the held one"
    assert f"{new} is held back by ada (too French); {old} stays promoted" in messages(said)
    assert world.judge("raw_corpus").manifest.version == old
    assert world.promoted("raw_corpus") == old
    decisions.promote(world.builder, "raw_corpus", new, "ada", silent)
    assert world.promoted("raw_corpus") == new and world.store.hold("raw_corpus", new) is None
    assert world.judge("raw_corpus").manifest.version == new
    world.assert_no_job_ran()


def test_a_rollback_passes_over_what_does_not_pass(world: World) -> None:
    first, second, third = versions(world, GOOD, GOOD | {"bytes": 50.0}, GOOD | {"bytes": 200.0})
    strict = world.with_overrides("gates.raw_corpus.0.threshold=60")
    decisions.rollback(strict.builder, "raw_corpus", "worse", "ada", silent)
    assert world.promoted("raw_corpus") == first
    with pytest.raises(InputRefused) as error:
        decisions.rollback(strict.builder, "raw_corpus", "worse", "ada", silent)
    assert f"{third} is held back by ada" in str(error.value) and "bytes 50 fails >= 60" in str(error.value)
    assert world.promoted("raw_corpus") == first
    assert world.store.certificate("raw_corpus", second)


def test_going_back_by_name_holds_the_newer_version_back(world: World) -> None:
    old, new = versions(world, GOOD, GOOD | {"bytes": 200.0})
    decisions.promote(world.builder, "raw_corpus", old, "ada", silent)
    world.judge("raw_corpus")
    assert world.promoted("raw_corpus") == old
    hold = world.store.hold("raw_corpus", new)
    assert hold is not None and hold.author == "ada"


def test_nothing_to_go_back_to(world: World) -> None:
    with pytest.raises(InputRefused, match="nothing of raw_corpus is promoted.*was never built"):
        decisions.rollback(world.builder, "raw_corpus", "x", "ada", silent)
    made = world.publish("raw_corpus", GOOD)
    world.judge("raw_corpus")
    with pytest.raises(InputRefused, match="no other version was ever promoted"):
        decisions.rollback(world.builder, "raw_corpus", "x", "ada", silent)
    assert world.promoted("raw_corpus") == made.version


def edit_bytes(world: World, version: str) -> None:
    (world.path("raw_corpus") / "versions" / version / "data.txt").write_text("swapped")


def edit_evidence(world: World, version: str) -> None:
    certificate = world.store.certificate("raw_corpus", version)
    assert certificate is not None
    report = world.path("raw_corpus.evaluation") / "versions" / certificate.evaluation_version / "report.json"
    report.write_text(report.read_text().replace("100.0", "200.0"))


def forget(world: World, version: str) -> None:
    (world.path("raw_corpus") / "certificates" / f"{version}.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edit_bytes, "data.txt has changed since it was published"),
        (edit_evidence, "report.json has changed since it was published"),
        (forget, "was never judged, and only a version with a certificate"),
    ],
)
def test_only_what_its_evidence_vouches_for_is_promoted(world: World, damage: object, said: str) -> None:
    old, new = versions(world, GOOD, GOOD | {"bytes": 200.0})
    assert callable(damage)
    damage(world, old)
    with pytest.raises(InputRefused, match=said):
        decisions.promote(world.builder, "raw_corpus", old, "ada", silent)
    assert world.promoted("raw_corpus") == new


def test_a_refused_version_cannot_be_promoted(world: World) -> None:
    good, bad = versions(world, GOOD, FEW)
    with pytest.raises(InputRefused, match="its gate refused it: documents 1 fails >= 2"):
        decisions.promote(world.builder, "raw_corpus", bad, "ada", silent)
    with pytest.raises(StoreError, match="has no version nothing"):
        decisions.promote(world.builder, "raw_corpus", "nothing", "ada", silent)
    with pytest.raises(RecipeError, match="did you mean raw_corpus?"):
        decisions.promote(world.builder, "raw_corpu", bad, "ada", silent)
    assert world.promoted("raw_corpus") == good


def test_a_pointer_and_certificate_forged_alike_do_not_survive_a_run(world: World) -> None:
    world.publish("raw_corpus", FEW)
    forged = world.judge("raw_corpus").certificate
    verdicts = tuple(verdict.model_copy(update={"passed": True}) for verdict in forged.verdicts)
    forged = forged.model_copy(update={"verdicts": verdicts})
    world.store.write_certificate(forged)
    assert promotion.settle(forged, world.store, "an attacker")
    assert not world.judge("raw_corpus").promoted
    assert world.promoted("raw_corpus") == ""
    assert Path(world.path("raw_corpus"), "promotions").is_dir()
