"""The digests name what differs between two states of the code, and nothing that only moved or was laid out anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.job import code_digest
from training.job import fingerprint as fingerprint_module
from training.job.code_digest import MODULE_BODY, Digests, changed_names, code_digests, dump_digests, load_digests

CODE = '''"""Doc."""
import json

from pkg.b import f

LIMIT = 3


class Reader:
    """Doc."""

    size = 1

    def read(self):
        """Doc."""
        from pkg import b

        return b.f() + f()


def g():
    return json.dumps(LIMIT)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fingerprint_module, "_PACKAGES", {"pkg": tmp_path})
    monkeypatch.setattr(code_digest, "_OWN_PACKAGES", ("pkg",))
    (tmp_path / "a.py").write_text(CODE)
    (tmp_path / "b.py").write_text("def f():\n    return 1\n")
    return tmp_path


def changes(package: Path, old: str, new: str, file: str = "a.py") -> tuple[str, ...]:
    before = code_digests("pkg.a")
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    return changed_names(before, code_digests("pkg.a"))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("b.f() + f()", "b.f() - f()", ("Reader.read",)),
        ("size = 1", "size = 2", ("Reader",)),
        ("class Reader:", "class Reader(dict):", (MODULE_BODY,)),
        ("LIMIT = 3", "LIMIT = 4", (MODULE_BODY,)),
        ("def g():", "def h():", ("g", "h")),
        ("import json\n", "import simplejson as json\n", (MODULE_BODY,)),
    ],
)
def test_what_differs_is_named(package: Path, old: str, new: str, named: tuple[str, ...]) -> None:
    assert changes(package, old, new) == named


def test_code_that_is_imported_is_named_too(package: Path) -> None:
    assert changes(package, "return 1", "return 2", "b.py") == ("f",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Doc."""', '"""Another text."""'),
        ("LIMIT = 3", "# why\nLIMIT = (3)"),
        ("    return json", "\n    return json"),
    ],
)
def test_docstrings_comments_and_layout_do_not_count(package: Path, old: str, new: str) -> None:
    assert changes(package, old, new) == ()


def test_a_module_that_moves_changes_nothing(package: Path) -> None:
    before = code_digests("pkg.a")
    (package / "room").mkdir()
    (package / "room" / "__init__.py").write_text("")
    (package / "b.py").rename(package / "room" / "other.py")
    text = CODE.replace("from pkg.b import f", "from pkg.room.other import f")
    (package / "a.py").write_text(text.replace("from pkg import b", "from pkg.room import other as b"))
    assert changed_names(before, code_digests("pkg.a")) == ()


def test_one_of_two_functions_of_one_name(package: Path) -> None:
    (package / "b.py").write_text("def f():\n    return 1\n\n\ndef g():\n    return 2\n")
    assert changes(package, "return 2", "return 3", "b.py") == ("g",)


def test_digests_are_read_as_they_were_written(package: Path) -> None:
    digests: Digests = code_digests("pkg.a")
    assert load_digests(dump_digests(digests).encode()) == digests
    assert load_digests(b"[1]") is None and load_digests(b"{") is None
