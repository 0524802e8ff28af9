"""The fingerprint covers behaviour: code that is imported counts, comments and docstrings don't."""

import json
from pathlib import Path

import pytest

from training.job import fingerprint as module
from training.job.fingerprint import FingerprintError, fingerprint


def forget() -> None:
    """Let the sources be read anew."""
    for cached in (module.fingerprint, module._behaviour, module._kept_facts):
        cached.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_PACKAGES", {"pkg": tmp_path})
    monkeypatch.setattr(module, "_CACHE", tmp_path / "cache" / "source_facts.json")
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    forget()
    (tmp_path / "a.py").write_text('"""Doc."""\nfrom pkg.b import f\n\n\ndef g():\n    """Doc."""\n    return f()\n')
    (tmp_path / "b.py").write_text("import json\n\n\ndef f():\n    return 1\n")
    return tmp_path


def take() -> str:
    forget()
    return fingerprint("pkg.a")


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = take()
    other = '# why\n"""Other."""\nfrom pkg.b import f\ndef g():\n    # because\n    return (f())\n'
    (package / "a.py").write_text(other)
    assert take() == before


@pytest.mark.parametrize(
    ("file", "old", "new"), [("a.py", "return f()", "return f() + 1"), ("b.py", "return 1", "return 2")]
)
def test_code_counts_where_ever_it_is(package: Path, file: str, old: str, new: str) -> None:
    before = take()
    (package / file).write_text((package / file).read_text().replace(old, new))
    assert take() != before


def test_an_import_inside_a_function_counts(package: Path) -> None:
    (package / "a.py").write_text("def g():\n    from pkg import b\n    return b.f()\n")
    before = take()
    (package / "b.py").write_text("def f():\n    return 3\n")
    assert take() != before


@pytest.mark.parametrize(
    "line", ["__import__('json')", "import importlib\nimportlib.import_module('json')", "exec('1')", "eval('1')"]
)
def test_code_chosen_at_run_time_is_refused(package: Path, line: str) -> None:
    (package / "b.py").write_text(line + "\n")
    with pytest.raises(FingerprintError, match=r"b\.py:\d+ calls"):
        take()


def test_what_was_read_is_kept_by_the_digest_of_the_file(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = take()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", lambda source, path: pytest.fail(f"{path} was read again"))
        assert take() == before

    (package / "b.py").write_text("def f():\n    return 5\n")
    assert take() != before


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"reader": "other", "files": {}}', '{"files": {}}', '{"reader": "%s", "files": []}']
)
def test_a_damaged_cache_or_another_reader_s_is_read_anew(package: Path, damage: str) -> None:
    before = take()
    module._CACHE.write_text(damage.replace("%s", module._READER))
    assert take() == before
    assert json.loads(module._CACHE.read_text())["reader"] == module._READER, "written anew"


def test_a_folder_that_cannot_be_written_costs_time_alone(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = take()
    (package / "file").write_text("")
    monkeypatch.setattr(module, "_CACHE", package / "file" / "source_facts.json")
    assert take() == before


def test_an_unknown_module_is_refused() -> None:
    forget()
    with pytest.raises(FingerprintError, match=r"training\.stages\.nothing"):
        fingerprint("training.stages.nothing")


def test_every_stage_has_a_fingerprint() -> None:
    from pipeline.graph import KINDS

    forget()
    taken = {stage: fingerprint(f"training.stages.{stage}") for stage in KINDS}
    assert len(set(taken.values())) == len(taken)
