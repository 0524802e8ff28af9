"""The store: whole versions or none, and no way around digests and certificates."""

import os
import time
from pathlib import Path

import pytest

from training.errors import InputRefused, StoreError
from training.specs.artifacts import Certificate, Manifest, Promotion
from training.specs.gates import Gate
from training.store import Store, file_entry


def draft(asset: str = "corpus", identity: str = "a" * 64) -> Manifest:
    return Manifest(asset=asset, version="", stage=asset, recipe="r", identity=identity, fingerprint="f", digest="",
                    files={}, inputs={}, metrics={}, section={}, seed=0, started_at=0.0, seconds=0.0)


def publish(store: Store, folder: Path, text: str = "hello", **fields: str) -> Manifest:
    (folder / "report").mkdir(parents=True)
    (folder / "data.txt").write_text(text)
    (folder / "report" / "time.txt").write_text(str(time.time_ns()))
    return store.publish(folder, draft(**fields))


def certificate(manifest: Manifest, value: float = 1.0, digest: str | None = None) -> Certificate:
    gate = Gate(metric="documents", must_be=">=", threshold=1)
    return Certificate(asset=manifest.asset, version=manifest.version, artifact_digest=digest or manifest.digest,
                       suite_digest=None, evaluator_fingerprint="e", report_digest="r", thresholds_digest="t",
                       verdicts=(gate.judge(value),), issued_at=0.0, issued_by="test")


def promote(store: Store, manifest: Manifest) -> Promotion:
    issued = certificate(manifest)
    store.write_certificate(issued)
    promotion = Promotion(asset=manifest.asset, version=manifest.version, digest=manifest.digest,
                          certificate_digest=issued.digest, promoted_at=0.0, promoted_by="test")
    store.promote(promotion)
    return promotion


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), "r")


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


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "data.txt").write_text("hellO"), "data.txt has changed"),
    (lambda folder: (folder / "data.txt").unlink(), "data.txt is missing"),
    (lambda folder: (folder / "more.txt").write_text("x"), "more.txt was added"),
    (lambda folder: (folder / "report" / "time.txt").write_text("x"), "report/time.txt has changed"),
])
def test_changed_bytes_are_refused(store: Store, tmp_path: Path, damage: object, message: str) -> None:
    published = publish(store, tmp_path / "a")
    assert store.verified_folder("corpus", published.version, published.digest).is_dir()
    assert callable(damage)
    damage(store.folder("corpus", published.version))
    with pytest.raises(InputRefused, match=message):
        store.verified_folder("corpus", published.version, published.digest)


def test_another_digest_than_expected_is_refused(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    with pytest.raises(InputRefused, match="not 000000000000 as expected"):
        store.verified_folder("corpus", published.version, "0" * 64)


def test_promotion_needs_a_passing_certificate_of_these_bytes(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    pointer = Promotion(asset="corpus", version=published.version, digest=published.digest,
                        certificate_digest=certificate(published).digest, promoted_at=0.0, promoted_by="test")
    with pytest.raises(InputRefused, match="never judged"):
        store.promote(pointer)
    store.write_certificate(certificate(published, value=0.0))
    with pytest.raises(InputRefused, match="documents 0 fails >= 1"):
        store.promote(pointer)
    store.write_certificate(certificate(published, digest="0" * 64))
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


def test_an_edited_certificate_is_refused(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    promote(store, published)
    store.write_certificate(certificate(published, value=2.0))
    with pytest.raises(InputRefused, match="not the one it was promoted with"):
        store.require_promoted("corpus", published.version, published.digest)


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
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest, **named: real_open(
        Path("/dev/full") if "w" in mode and "promoted" in self.name else self, mode, *rest, **named))
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
    with pytest.raises(StoreError, match="delete this file and materialize corpus again"):
        store.links("corpus", published.version)


def test_links_are_added_up(store: Store, tmp_path: Path) -> None:
    published = publish(store, tmp_path / "a")
    store.write_links("corpus", published.version, {"a": "1"})
    store.write_links("corpus", published.version, {"b": "2"})
    assert store.links("corpus", published.version) == {"a": "1", "b": "2"}


def test_file_entry_hashes_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_entry(tmp_path / "x").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
