"""Both YAML readers give the same tree, or the same message: the fast one is a matter of time alone."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipes import document
from training.errors import RecipeError

PIECES = (
    *(
        "a",
        "b: ",
        "- ",
        "\n",
        "  ",
        "    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "'x'",
        '"y\\n"',
        "#c",
        " #d",
        "\t",
        "|\n",
        "> ",
    ),
    *(">#", "&k ", "*k", "? ", "!t ", "1", "2e-3", "on", "~", "--- \n", "...\n", "%YAML 1.1\n", "\u00e9", "\u2028"),
    *("@", "\r\n"),
)


def read(text: str, loader: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(document, "_FAST_LOADER", loader)
    try:
        return plain(document.parse_yaml(text, "mine.yaml"))
    except RecipeError as error:
        return str(error)


def plain(tree: document.Tree) -> Any:
    value = tree.value
    if isinstance(value, dict):
        return {key: (plain(inner), inner.line) for key, inner in value.items()}
    return [(plain(inner), inner.line) for inner in value] if isinstance(value, list) else repr(value)


@given(st.lists(st.sampled_from(PIECES), max_size=9))
@settings(max_examples=300, deadline=None)
def test_the_fast_reader_reads_as_the_other_one(pieces: list[str]) -> None:
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert read(text, yaml.CBaseLoader, monkeypatch) == read(text, yaml.BaseLoader, monkeypatch)


@pytest.mark.parametrize("text", ["threshold: >#5", "a: x\ty", "a: |+#c\n b"])
def test_what_the_fast_reader_would_take_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        document.parse_yaml(text, "mine.yaml")
