"""The store: whole versions or none, and no way around digests and certificates."""

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import with_evidence
from training.errors import InputRefused, StoreError
from training.specs.artifacts import Certificate, Hold, InputRecord, Manifest, Promotion, Waiver
from training.specs.gates import Verdict
from training.store.store import Store, file_entry


def draft(asset: str = "corpus", identity: str = "a" * 64) -> Manifest:
    return Manifest(
        asset=asset,
        version="",
        stage=asset,
        recipe="r",
        identity=identity,
        fingerprint="f",
        digest="",
        files={},
        inputs={},
        metrics={},
        section={},
        seed=0,
        started_at=0.0,
        seconds=0.0,
    )


def publish(store: Store, folder: Path, text: str = "hello", **fields: str) -> Manifest:
    (folder / "report").mkdir(parents=True)
    (folder / "data.txt").write_text(text)
    (folder / "report" / "time.txt").write_text(str(time.time_ns()))
    return store.publish(folder, draft(**fields))


def certificate(manifest: Manifest, value: float = 1.0, **fields: Any) -> Certificate:
    verdict = Verdict(
        name="documents",
        passed=value >= 1,
        value=value,
        must_be=">=",
        threshold=1,
        reason=f"documents {value:g} {'passes' if value >= 1 else 'fails'} >= 1",
    )
    issued = Certificate(
        asset=manifest.asset,
        version=manifest.version,
        artifact_digest=manifest.digest,
        suite_digest="s",
        evaluator_fingerprint="e",
        evaluation_version="v",
        report_digest="r",
        items_digest="i",
        thresholds_digest="t",
        verdicts=(verdict,),
        evaluated_at=0.0,
        issued_at=0.0,
        issued_by="test",
    )
    return issued.model_copy(update=fields)


def waiver(manifest: Manifest, until: date) -> Waiver:
    return Waiver(
        asset=manifest.asset,
        version=manifest.version,
        gate="documents",
        reason="a demo",
        author="ada",
        until=until,
        created_at=0.0,
    )


def pointer_to(issued: Certificate) -> Promotion:
    return Promotion(
        asset=issued.asset,
        version=issued.version,
        digest=issued.artifact_digest,
        certificate_digest=issued.digest,
        promoted_at=time.time(),
        promoted_by="test",
    )


def promote(store: Store, manifest: Manifest) -> Promotion:
    issued = with_evidence(store, certificate(manifest))
    store.write_certificate(issued)
    pointer = pointer_to(issued)
    store.promote(pointer)
    return pointer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), "r")


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_all_files_of_a_version_have_the_mode_of_the_umask(
    store: Store, tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    source = tmp_path / "made"
    (source / "model").mkdir(parents=True)
    for name, mode in (("model/model.safetensors", 0o600), ("model/config.json", 0o664), ("data.txt", 0o755)):
        (source / name).write_text("x")
        (source / name).chmod(mode)
    before = os.umask(umask)
    try:
        published = store.publish(source, draft())
    finally:
        os.umask(before)

    found = store.folder("corpus", published.version)
    assert {path.stat().st_mode & 0o777 for path in found.rglob("*") if path.is_file()} == {file}
    assert (found / "model").stat().st_mode & 0o777 == folder


def test_equal_content_has_one_digest_whatever_its_report(store: Store, tmp_path: Path) -> None:
    first, second = publish(store, tmp_path / "a"), publish(store, tmp_path / "b")
    assert first.digest == second.digest
    assert first.files["report/time.txt"] != second.files["report/time.txt"]
    assert publish(store, tmp_path / "c", "other").digest != first.digest
    assert store.versions("corpus") == sorted(store.versions("corpus"))
    assert len(store.versions("corpus")) == 3


def test_find_takes_the_newest_of_an_identity(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "a", "one")
    newest = publish(store, tmp_path / "b", "two")
    assert store.find("corpus", "a" * 64) == newest
    assert store.find("corpus", "b" * 64) is None


def test_a_folder_without_manifest_is_not_a_version(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    folder = store.folder("corpus", published.version)
    (folder / "manifest.json").unlink()
    assert store.versions("corpus") == []


def test_a_half_written_manifest_is_reported(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    manifest = store.folder("corpus", published.version) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:50])
    with pytest.raises(StoreError, match="manifest.json is damaged"):
        store.manifest("corpus", published.version)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "data.txt").write_text("hellO"), "data.txt has changed"),
        (lambda folder: (folder / "data.txt").unlink(), "data.txt is missing"),
        (lambda folder: (folder / "more.txt").write_text("x"), "more.txt was added"),
        (lambda folder: (folder / "report" / "time.txt").write_text("x"), "report/time.txt has changed"),
    ],
)
def test_changed_bytes_are_refused(store: Store, tmp_path: Path, damage: object, message: str) -> None:
    published = publish(store, tmp_path / "a")
    assert store.verified_folder("corpus", published.version, published.digest).is_dir()
    assert callable(damage)
    damage(store.folder("corpus", published.version))
    with pytest.raises(InputRefused, match=message):
        store.verified_folder("corpus", published.version, published.digest)


def test_one_file_is_verified_by_itself(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    folder = store.folder("corpus", published.version)
    (folder / "report" / "time.txt").write_text("another one's matter")
    assert store.verified_file(published, "data.txt", tmp_path).read_text() == "hello"
    (folder / "data.txt").write_text("hellO")
    with pytest.raises(InputRefused, match=r"data.txt has changed since it was published; delete "):
        store.verified_file(published, "data.txt", tmp_path)
    (folder / "data.txt").unlink()
    with pytest.raises(InputRefused, match=r"data.txt is missing; delete "):
        store.verified_file(published, "data.txt", tmp_path)


def test_another_digest_than_expected_is_refused(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    with pytest.raises(InputRefused, match="not 000000000000 as expected"):
        store.verified_folder("corpus", published.version, "0" * 64)


def test_promotion_needs_a_passing_certificate_of_these_bytes(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    pointer = Promotion(
        asset="corpus",
        version=published.version,
        digest=published.digest,
        certificate_digest=certificate(published).digest,
        promoted_at=0.0,
        promoted_by="test",
    )
    with pytest.raises(InputRefused, match="never judged"):
        store.promote(pointer)
    store.write_certificate(certificate(published, value=0.0))
    with pytest.raises(InputRefused, match="documents 0 fails >= 1"):
        store.promote(pointer)
    store.write_certificate(certificate(published, artifact_digest="0" * 64))
    with pytest.raises(InputRefused):
        store.promote(pointer)
    assert store.promotion("corpus") is None
    promote(store, published)
    assert store.require_promoted("corpus", published.version, published.digest).passed


def test_what_is_not_promoted_is_refused_with_the_reason(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="corpus was never built"):
        store.require_promoted("corpus", "v", "d")
    published = publish(store, tmp_path / "a")
    with pytest.raises(InputRefused, match="never judged"):
        store.require_promoted("corpus", published.version, published.digest)
    promote(store, published)
    newer = publish(store, tmp_path / "b", "new")
    with pytest.raises(InputRefused, match=f"{newer.version} was never judged"):
        store.require_promoted("corpus", newer.version, newer.digest)


TODAY = date(2026, 11, 21)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    record.pop("checksum", None)  # as somebody does who knows of it
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(("file", "change", "message"), [
    ("certificates/{}.json", lambda record: record["verdicts"][0].update(value=2.0), "not the one it was promoted"),
    ("certificates/{}.json", lambda record: record["verdicts"][0].update(threshold=0.0), "not the one it was promoted"),
    ("certificates/{}.json", lambda record: record.update(version="20260101T000000-other"), "belongs to corpus 2026"),
    ("promoted.json", lambda record: record.update(certificate_digest="0" * 64), "promoted.json says 000000000000"),
    ("promoted.json", lambda record: record.update(digest="0" * 64), "for 000000000000, not for"),
    ("promoted.json", lambda record: record.update(version="20260101T000000-other"), "is not promoted, 2026010"),
])  # fmt: skip
def test_an_edited_record_is_refused_with_a_message_of_its_own(
    store: Store, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    published = publish(store, tmp_path / "a")
    promote(store, published)
    store.require_promoted("corpus", published.version, published.digest)
    edit(tmp_path / "store" / "r" / "corpus" / file.format(published.version), change)
    with pytest.raises(InputRefused, match=message):
        store.require_promoted("corpus", published.version, published.digest)


def test_a_certificate_of_another_version_is_refused(store: Store, tmp_path: Path) -> None:
    good, bad = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", "bad")
    issued = promote(store, good)
    folder = tmp_path / "store" / "r" / "corpus" / "certificates"
    (folder / f"{bad.version}.json").write_bytes((folder / f"{good.version}.json").read_bytes())
    forged = issued.model_copy(update={"version": bad.version, "digest": bad.digest})
    (folder.parent / "promoted.json").write_text(forged.model_dump_json())
    with pytest.raises(InputRefused, match=f"{bad.version}: its certificate belongs to corpus {good.version}"):
        store.require_promoted("corpus", bad.version, bad.digest)
    with pytest.raises(InputRefused):
        store.promote(forged)


def test_a_job_planned_on_another_certificate_is_refused(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    pointer = promote(store, published)
    store.require_promoted("corpus", published.version, published.digest, pointer.certificate_digest)
    with pytest.raises(InputRefused, match="planned on the certificate 000000000000"):
        store.require_promoted("corpus", published.version, published.digest, "0" * 64)


@pytest.mark.parametrize("own", [True, False])
def test_a_waiver_holds_to_its_last_day_and_not_longer(store: Store, tmp_path: Path, own: bool) -> None:
    parent = publish(store, tmp_path / "a", asset="raw_corpus")
    made_from = {"raw_corpus": InputRecord(asset="raw_corpus", version=parent.version, digest=parent.digest)}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.txt").write_text("hello")
    child = store.publish(tmp_path / "b", draft().model_copy(update={"inputs": made_from}))
    given = waiver(child if own else parent, TODAY)
    store.write_certificate(certificate(parent, waivers=() if own else (given,)))
    issued = with_evidence(
        store, certificate(child, value=0.0, waivers=(given,)) if own else certificate(child, inherited=(given,))
    )
    store.write_certificate(issued)
    store.promote(pointer_to(issued), TODAY)
    assert store.require_promoted("corpus", child.version, child.digest, today=TODAY) == issued
    for refused in (
        lambda: store.require_promoted("corpus", child.version, child.digest, today=date(2026, 11, 22)),
        lambda: store.promote(pointer_to(issued), date(2026, 11, 22)),
    ):
        with pytest.raises(InputRefused) as error:
            refused()
        message = str(error.value)
        assert f"ada waived documents of {given.asset} {given.version} until 2026-11-21 (a demo)" in message
        assert f"gatehouse waive -r r {given.asset} --version {given.version} --gate documents" in message
        assert ("then `gatehouse run -r r --select corpus`" in message) is not own


def test_a_waiver_of_another_gate_lets_nothing_pass(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    given = waiver(published, TODAY).model_copy(update={"gate": "bytes"})
    issued = certificate(published, value=0.0, waivers=(given,))
    store.write_certificate(issued)
    with pytest.raises(InputRefused, match="documents 0 fails >= 1"):
        store.promote(pointer_to(issued), TODAY)


def test_waivers_are_inherited_once_from_everything_upstream(store: Store, tmp_path: Path) -> None:
    grandparent, parent = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", "b", asset="tokenizer")
    given, other = waiver(grandparent, TODAY), waiver(parent, TODAY)
    store.write_certificate(certificate(grandparent, waivers=(given,)))
    store.write_certificate(certificate(parent, waivers=(other,), inherited=(given,)))
    inputs = {m.asset: InputRecord(asset=m.asset, version=m.version, digest=m.digest) for m in (grandparent, parent)}
    assert store.inherited_waivers(draft().model_copy(update={"inputs": inputs})) == (given, other)


def test_every_promotion_is_remembered_in_order(store: Store, tmp_path: Path) -> None:
    first, second = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", "new")
    for manifest in (first, second, first):
        promote(store, manifest)
    assert [made.version for made in store.promotions("corpus")] == [first.version, second.version, first.version]
    store.withdraw("corpus")
    assert len(store.promotions("corpus")) == 3


def test_a_held_version_says_who_holds_it_back(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    store.write_certificate(certificate(published))
    store.write_hold(Hold(asset="corpus", version=published.version, reason="too French", author="ada", created_at=0.0))
    assert "held back by ada: too French; `gatehouse promote -r r corpus" in store.explain_unpromoted("corpus")
    store.remove_hold("corpus", published.version)
    assert store.hold("corpus", published.version) is None


def test_waivers_are_kept_by_gate(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    assert store.waivers("corpus", published.version) == []
    given = waiver(published, TODAY)
    store.write_waiver(given)
    store.write_waiver(given.model_copy(update={"reason": "another demo"}))
    assert [waiver.reason for waiver in store.waivers("corpus", published.version)] == ["another demo"]
    store.remove_waiver("corpus", published.version, "documents")
    assert store.waivers("corpus", published.version) == []


def test_withdrawing_keeps_the_version(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    promote(store, published)
    store.withdraw("corpus")
    assert store.promotion("corpus") is None
    assert store.versions("corpus") == [published.version]


def test_a_failed_publish_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    promote(store, published)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="holds no file"):
        store.publish(empty, draft())
    assert store.promotion("corpus") is not None
    assert store.versions("corpus") == [published.version]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish(store, tmp_path / "a")
    real_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *rest, **named: real_open(
            Path("/dev/full") if "w" in mode and "promoted" in self.name else self, mode, *rest, **named
        ),
    )
    with pytest.raises(StoreError, match="No space left on device"):
        promote(store, published)
    assert store.promotion("corpus") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    folder = store.folder("corpus", published.version).parent
    folder.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="no permission"):
            publish(store, tmp_path / "b")
    finally:
        folder.chmod(0o700)


def test_a_store_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="untouched"):
        publish(Store(str(tmp_path / "store"), "r"), tmp_path / "a")


def test_a_relative_root_is_the_same_folder_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("store", "r").root == str(tmp_path / "store")


def test_a_url_of_an_unknown_kind_is_one_clear_error() -> None:
    with pytest.raises(StoreError, match="set GATEHOUSE_STORE to a folder or to a URL"):
        Store("nothing://x", "r")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_links_are_one_clear_error(store: Store, tmp_path: Path, content: str) -> None:
    published = publish(store, tmp_path / "a")
    store.write_links("corpus", published.version, {"a": "1"})
    path = tmp_path / "store" / "r" / "corpus" / "links" / f"{published.version}.json"
    path.write_text(content)
    with pytest.raises(StoreError, match="delete this file, then `gatehouse sync -r r` writes it anew"):
        store.links("corpus", published.version)


def test_links_are_added_up(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    store.write_links("corpus", published.version, {"a": "1"})
    store.write_links("corpus", published.version, {"b": "2"})
    assert store.links("corpus", published.version) == {"a": "1", "b": "2"}


def test_file_entry_hashes_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_entry(tmp_path / "x").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)],
    ids=oct,
)
def test_one_mode_for_all_that_is_published(store: Store, tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "a" / "model").mkdir(parents=True)
        (tmp_path / "a" / "model" / "weights").write_text("as safetensors writes them")
        (tmp_path / "a" / "model" / "weights").chmod(0o600)
        (tmp_path / "a" / "script.py").write_text("")
        (tmp_path / "a" / "script.py").chmod(0o777)
        made = store.publish(tmp_path / "a", draft())
    finally:
        os.umask(before)
    place = store.folder("corpus", made.version)
    found = {path.relative_to(place).as_posix(): path.stat().st_mode & 0o7777 for path in (place, *place.rglob("*"))}
    assert found == {".": folder, "model": folder, "model/weights": file, "script.py": file, "manifest.json": file}


def test_a_store_with_a_group_of_its_own_keeps_it(store: Store, tmp_path: Path) -> None:
    versions = tmp_path / "store" / "r" / "corpus" / "versions"
    versions.mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(versions, -1, 12345)
    versions.chmod(0o2775)
    place = store.folder("corpus", publish(store, tmp_path / "a").version)
    assert {path.stat().st_gid for path in (place, *place.rglob("*"))} == {versions.stat().st_gid}
    assert all(path.stat().st_mode & 0o2000 for path in (place, *place.rglob("*")) if path.is_dir())
