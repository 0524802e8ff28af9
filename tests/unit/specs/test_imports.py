"""Sections that name an origin: what they need, what they forbid, and how they are written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.specs.base_model import BaseModelSection
from training.specs.optimization import Optimizer
from training.specs.tokenizer import TokenizerSection

COMMIT = "0" * 40
TRAINED: dict[str, Any] = {
    "steps": 10,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
    "batch_tokens": 64,
    "curriculum": ({"context": 32, "share": 1.0},),
}


def problems(section: type[BaseModelSection] | type[TokenizerSection], **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    return str(caught.value)


def test_an_import_needs_no_training() -> None:
    section = BaseModelSection(**{"from": "~/model"})
    assert section.origin is not None and section.origin.name == "~/model" and not section.origin.is_hub
    assert not section.is_trained
    assert section.model_dump(mode="json") == {"from": "~/model"}


def test_what_is_dumped_is_the_same_section_again() -> None:
    for fields in (
        {"from": "m", "revision": COMMIT, "gguf": "a.gguf"},
        {"from": "m", **TRAINED},
        {"architecture": {"model_type": "llama"}, **TRAINED},
    ):
        section = BaseModelSection(**fields)
        assert BaseModelSection.model_validate(section.model_dump(mode="json")) == section
        assert BaseModelSection.model_validate_json(section.model_dump_json()) == section
    words = TokenizerSection(**{"from": "m", "template": "chatml", "special_tokens": ("<a>",)})
    assert TokenizerSection.model_validate(words.model_dump(mode="json")) == words


def test_sections_without_an_origin_are_written_as_before() -> None:
    section = BaseModelSection(architecture={"model_type": "llama"}, **TRAINED)
    assert not {"from", "from_", "revision", "gguf"} & section.model_dump(mode="json").keys()
    assert TokenizerSection().model_dump(mode="json") == {
        "vocabulary": 2048, "min_frequency": 2, "sample_megabytes": 64,
    }  # fmt: skip


def test_continued_pretraining_has_everything_but_an_architecture() -> None:
    section = BaseModelSection(**{"from": "m", **TRAINED})
    assert section.is_trained and "architecture" not in section.model_dump(mode="json")
    assert section.optimizer == Optimizer(learning_rate=1e-3, warmup_steps=2)
    for name in ("optimizer", "batch_tokens", "curriculum"):
        fields = {key: value for key, value in TRAINED.items() if key != name}
        assert f"{name}: this key is missing" in problems(BaseModelSection, **{"from": "m"}, **fields)


def test_the_place_of_an_origin_decides_nothing() -> None:
    one, two = BaseModelSection(**{"from": "a"}), BaseModelSection(**{"from": "b"})
    assert one.identity_fields() == two.identity_fields() == {"imported": True}
    words = TokenizerSection(**{"from": "a", "template": "plain"})
    assert words.identity_fields() == {"imported": True, "template": "plain"}
    assert "checkpoints" not in BaseModelSection(**{"from": "m", **TRAINED}).identity_fields()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "architecture: this key is missing"),
        ({**TRAINED}, "architecture: this key is missing"),
        ({"architecture": {"hidden_size": 8}, **TRAINED}, "architecture needs a model_type"),
        ({"from": "m", "architecture": {"model_type": "llama"}}, "architecture: the model of `from` has its own"),
        ({"from": "m", "batch_tokens": 8}, "batch_tokens: nothing is trained without `steps`"),
        ({"revision": COMMIT, "architecture": {"model_type": "llama"}, **TRAINED}, "revision: it belongs to `from`"),
        ({"from": "some/model", "revision": "main"}, "'main' is no commit (40 hex digits)"),
        ({"from": "~/model", "revision": COMMIT}, "is no name on the hub; leave out `revision`"),
        ({"from": "m", "gguf": "a.bin"}, "is no name of a GGUF file"),
        ({"from": "m.gguf", "gguf": "a.gguf"}, "`from` names a GGUF file already"),
        ({"from": ""}, "at least 1 character"),
    ],
)
def test_what_does_not_fit_is_said(fields: dict[str, Any], message: str) -> None:
    assert message in problems(BaseModelSection, **fields)


def test_templates_are_known_names_or_files() -> None:
    assert TokenizerSection(template="mine.jinja").template_file == "mine.jinja"
    assert TokenizerSection(template="chatml").template_file is None
    assert "is no template" in problems(TokenizerSection, template="chatlm")
    assert "stands here twice" in problems(TokenizerSection, special_tokens=("<a>", "<a>"))
