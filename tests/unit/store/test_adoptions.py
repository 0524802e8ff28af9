"""An adoption lets a version be found under another identity, as long as its record is exactly what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from training.errors import StoreError
from training.specs.artifacts import Adoption, Manifest, Proof
from training.specs.base import digest_of
from training.store.records import dump
from training.store.store import Store

MADE, NEW = digest_of("made"), digest_of("new")
PROOF = Proof(method="rebuilt", compared="all 2 files are equal", files=2, bytes=10, seconds=3.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), "tiny")


def publish(store: Store, identity: str = MADE, text: str = "text") -> Manifest:
    folder = Path(store.root) / "made"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(text)
    return store.publish(
        folder,
        Manifest(
            asset="corpus",
            version="",
            stage="corpus",
            recipe="tiny",
            identity=identity,
            fingerprint="f" * 64,
            digest="",
            files={},
            inputs={},
            metrics={},
            section={},
            seed=0,
            started_at=0.0,
            seconds=1.0,
        ),
    )


def adoption_of(manifest: Manifest, identity: str = NEW) -> Adoption:
    return Adoption(
        asset=manifest.asset,
        version=manifest.version,
        digest=manifest.digest,
        made_as=manifest.identity,
        identity=identity,
        made_by=manifest.fingerprint,
        fingerprint="a" * 64,
        functions=("run",),
        reason="moved",
        author="ada",
        adopted_at=5.0,
        proof=PROOF,
    )


def record(store: Store, manifest: Manifest) -> Path:
    return Path(store.root) / "tiny" / "corpus" / "adoptions" / manifest.version / f"{NEW}.json"


def test_an_adopted_version_is_found_by_both_identities_and_stays_as_it_is(store: Store) -> None:
    manifest = publish(store)
    assert store.find("corpus", NEW) is None
    store.write_adoption(adoption_of(manifest))
    assert store.find("corpus", NEW) == store.find("corpus", MADE) == manifest
    assert store.adoptions("corpus", manifest.version) == [adoption_of(manifest)]
    assert store.adopted("corpus") == [manifest.version]


def test_an_adoption_is_written_once(store: Store) -> None:
    manifest = publish(store)
    store.write_adoption(adoption_of(manifest))
    with pytest.raises(StoreError, match="is there already"):
        store.write_adoption(adoption_of(manifest).model_copy(update={"reason": "another"}))
    assert [adoption.reason for adoption in store.adoptions("corpus", manifest.version)] == ["moved"]


def test_a_version_that_today_s_code_made_goes_before_an_adopted_one(store: Store) -> None:
    adopted = publish(store)
    store.write_adoption(adoption_of(adopted))
    made = publish(store, NEW, "other")
    assert store.find("corpus", NEW) == made
    publish(store, digest_of("third"), "third")
    assert store.find("corpus", NEW) == made


def test_an_adoption_of_a_version_that_is_gone_finds_nothing(store: Store) -> None:
    manifest = publish(store)
    store.write_adoption(adoption_of(manifest))
    shutil.rmtree(store.folder("corpus", manifest.version))
    assert store.find("corpus", NEW) is None


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"moved", b"m0ved"))


def edit_and_drop_the_checksum(path: Path) -> None:
    values = json.loads(path.read_bytes()) | {"reason": "edited"}
    del values["checksum"]
    path.write_bytes(dump(Adoption.model_validate(values)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [edit, edit_and_drop_the_checksum, cut])
def test_a_record_that_is_not_as_it_was_written_vouches_for_nothing(store: Store, damage: object) -> None:
    manifest = publish(store)
    store.write_adoption(adoption_of(manifest))
    assert callable(damage)
    damage(record(store, manifest))
    with pytest.raises(StoreError, match=r"is damaged: .*; delete this file, then `gatehouse adopt -r tiny corpus"):
        store.find("corpus", NEW)
    with pytest.raises(StoreError, match="is damaged"):
        store.adoptions("corpus", manifest.version)
    assert store.find("corpus", MADE) == manifest, "its own identity needs no adoption"


def test_a_copied_record_belongs_to_the_version_that_it_names(store: Store) -> None:
    first = publish(store)
    second = publish(store, digest_of("second"), "other")
    store.write_adoption(adoption_of(first))
    target = record(store, second)
    target.parent.mkdir()
    shutil.copyfile(record(store, first), target)
    with pytest.raises(StoreError, match=f"it belongs to corpus {first.version}"):
        store.find("corpus", NEW)


@pytest.mark.parametrize("changed", ["digest", "made_as", "made_by"])
def test_a_record_about_other_bytes_or_code_vouches_for_nothing(store: Store, changed: str) -> None:
    manifest = publish(store)
    store.write_adoption(adoption_of(manifest).model_copy(update={changed: "0" * 64}))
    with pytest.raises(StoreError, match="it vouches for content"):
        store.find("corpus", NEW)
