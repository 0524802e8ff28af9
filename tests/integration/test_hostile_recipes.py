"""Recipes, jobs and records of the store that were made to do harm: one message each, in little memory and time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.app import main as cli
from tests.conftest import ROOT
from tests.integration import audited
from tests.integration.test_hostile_files import assert_harmless, assert_refused, raw_corpus
from tests.integration.workspaces import Workspace
from training.errors import StoreError
from training.job import runner as jobs
from training.specs.artifacts import FileEntry, Manifest
from training.store.store import Store

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
_MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
RECIPES = {
    "a tag": (
        "extends: tiny\nname: !!python/object/apply:os.system [touch canary.txt]\n",
        "mine.yaml:2: the tag !!python/object/apply:os.system is refused",
    ),
    "a tag of one's own": ("extends: !include tiny\n", "mine.yaml:1: the tag !include is refused"),
    "a billion laughs": (_LAUGHS, "do its aliases multiply?"),
    "multiplying merges": (_MERGES, "merge keys (<<) are not supported"),
    "an anchor in itself": ("a: &a [*a]\n", "mine.yaml:1: this anchor contains itself"),
    "ten megabytes": ("sources:\n" + "- {name: a, path: b}\n" * 500_000, "more than 1,000,000 bytes"),
    "many values": ("sources:\n" + "- a\n" * 70_000, "more than 20,000 values"),
    "deep lists": ("a: " + "[" * 500_000, "mine.yaml:1: the values are nested too deeply"),
    "deep mappings": ("".join(f"{' ' * n}a:\n" for n in range(400)), "the values are nested too deeply"),
    "a key given twice": ("extends: tiny\nname: a\nname: b\n", "mine.yaml:3: name is given twice"),
    "many unknown keys": (
        "extends: tiny\nname: mine\n" + "".join(f"key{n}: 1\n" for n in range(6000)),
        "mine.yaml:3: key0: there is no such key",
    ),
    "a long key": ("extends: tiny\n" + "k" * 900_000 + ": 1\n", "mine.yaml:2: "),
    "a long number": ("extends: tiny\nname: mine\nseed: " + "9" * 900_000 + "\n", "mine.yaml:3: seed"),
    "NUL": ("extends: tiny\n\0", "mine.yaml:2: unacceptable character #x0000"),
    "not UTF-8": ("name: caf\udce9\n", "mine.yaml:1: this is not UTF-8 text"),
}


def checked(arguments: list[str]) -> int:
    """`gatehouse recipe check`."""
    sys.argv = ["gatehouse", "recipe", "check", "-r", *arguments]
    try:
        cli()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe(tmp_path: Path, name: str) -> None:
    text, part = RECIPES[name]
    (tmp_path / "recipe").mkdir()
    path = tmp_path / "recipe" / "mine.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    told = audited.run(checked, [str(path)], tmp_path / "child", path.parent, timeout=30)
    assert told.code == 2, told.output
    assert part in told.output
    assert "Traceback" not in told.output
    assert len(told.output) < 30_000
    assert told.seconds < 25
    assert told.peak < 1.5 * 2**30
    assert_harmless(told)
    assert not list(tmp_path.rglob("canary.txt")) and not (ROOT / "canary.txt").exists()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def deep(path: Path) -> None:
    path.write_text('{"a": ' * 500_000)


def huge_number(path: Path) -> None:
    path.write_text('{"seed": ' + "9" * 2_000_000 + "}")


def pipe(path: Path) -> None:
    os.mkfifo(path)


BOMBS = [sparse, deep, huge_number, pipe]


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_hostile_job(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "job").mkdir()
    make(tmp_path / "job" / "job.json")
    path = tmp_path / "job" / "job.json"
    told = audited.run(jobs.main, [str(path)], tmp_path / "child", path.parent, timeout=30)
    assert_refused(told, "job.json")
    assert_harmless(told)


def looked_up(arguments: list[str]) -> int:
    """Read every record of one version; how many were refused."""
    store, failed = Store(arguments[0], "test"), 0
    for read in (
        lambda: store.manifest("corpus", "1"),
        lambda: store.certificate("corpus", "1"),
        lambda: store.promotion("corpus"),
        lambda: store.links("corpus", "1"),
    ):
        try:
            read()
        except StoreError as error:
            failed += 1
            print(str(error)[:300])
    return failed


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_hostile_records(tmp_path: Path, make: Callable[[Path], None]) -> None:
    asset = tmp_path / "store" / "test" / "corpus"
    for name in ("versions/1/manifest.json", "certificates/1.json", "promoted.json", "links/1.json"):
        (asset / name).parent.mkdir(parents=True, exist_ok=True)
        make(asset / name)
    told = audited.run(looked_up, [str(tmp_path / "store")], tmp_path / "child", tmp_path / "store", timeout=30)
    assert told.code == 4, told.output
    for name in ("manifest.json", "certificates/1.json", "promoted.json", "links/1.json"):
        assert name in told.output
    assert_harmless(told)


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "", ".", "a//b"])
def test_a_file_of_a_manifest_lies_below_its_folder(name: str) -> None:
    fields = {
        "asset": "corpus",
        "version": "1",
        "stage": "corpus",
        "recipe": "test",
        "identity": "",
        "fingerprint": "",
        "digest": "",
        "inputs": {},
        "metrics": {},
        "section": {},
        "seed": 0,
        "started_at": 0,
        "seconds": 0,
    }
    Manifest.model_validate({**fields, "files": {"a/b": FileEntry(bytes=0, sha256="")}})
    with pytest.raises(ValueError, match="is not a path of a file below"):
        Manifest.model_validate({**fields, "files": {name: FileEntry(bytes=0, sha256="")}})
    for key in ("asset", "version", "digest"):
        with pytest.raises(ValueError, match="string_pattern_mismatch"):
            Manifest.model_validate({**fields, "files": {}, key: "../x"})


def test_the_command_refuses_a_hostile_source(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    space.notes.mkdir()
    (space.notes / "good.txt").write_text("Good. " * 100)
    space.write_recipe()
    os.mkfifo(space.notes / "pipe.txt")
    done = space.run("--select", "raw_corpus")
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert len([line for line in done.stdout.splitlines() if "repair it or exclude it" in line]) == 1
    assert not list(space.home.rglob("manifest.json"))


def _card(folder: Path, files: str) -> None:
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")


def test_a_dataset_that_names_files_outside(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "good.jsonl").write_text(json.dumps({"text": "good"}) + "\n")
    (tmp_path / "secret.jsonl").write_text(json.dumps({"text": "secret"}) + "\n")
    _card(folder, "../secret.jsonl")
    told = raw_corpus(tmp_path, folder, dataset=str(folder))
    assert_refused(told, "names the file", "secret.jsonl, which lies outside of it")
    assert_harmless(told)
