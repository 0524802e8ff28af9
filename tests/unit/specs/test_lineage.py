"""The graph follows the recipe: which assets its sections ask for, and what each is made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.graph import graph_of, in_order, is_asset
from pipeline.recipes.loader import load_recipe
from training.errors import RecipeError
from training.specs.kinds import adapter_of, kind_of

WITHOUT_MODELS = ["sft_model=null", "dpo_model=null", "lora_model=null"]
MAIL = "adapters=[{name: mail, steps: 10, optimizer: {learning_rate: 0.001, warmup_steps: 1}, data: {domain: network}}]"


def inputs(*overrides: str) -> dict[str, tuple[str, ...]]:
    """Asset to what it is made from, of tiny with overrides."""
    return {asset: tuple(node.inputs) for asset, node in load_recipe("tiny", overrides).graph.items()}


@pytest.mark.parametrize(
    ("left_out", "parents"),
    [
        ([], {"sft_model": "base_model", "dpo_model": "sft_model", "lora_model": "dpo_model"}),
        (["sft_model"], {"dpo_model": "base_model", "lora_model": "dpo_model"}),
        (["dpo_model"], {"sft_model": "base_model", "lora_model": "sft_model"}),
        (["sft_model", "dpo_model"], {"lora_model": "base_model"}),
        (["dpo_model", "lora_model"], {"sft_model": "base_model"}),
        (["sft_model", "dpo_model", "lora_model"], {}),
    ],
)
def test_a_models_parent_is_the_nearest_one_before_it(left_out: list[str], parents: dict[str, str]) -> None:
    graph = load_recipe("tiny", [f"{asset}=null" for asset in left_out]).graph
    models = {asset: node for asset, node in graph.items() if node.kind.is_model and asset != "base_model"}
    assert {asset: next(iter(node.inputs)) for asset, node in models.items()} == parents
    assert {asset: node.judged_with for asset, node in models.items()} == {
        asset: (parent, "evaluation_sets") for asset, parent in parents.items()
    }


def test_data_that_nothing_learns_from_are_not_made() -> None:
    assert list(inputs(*WITHOUT_MODELS)) == [
        "raw_corpus",
        "corpus",
        "evaluation_sets",
        "tokenizer",
        "packed_shards",
        "base_model",
    ]
    assert "preference_data" not in inputs("dpo_model=null")
    assert "adapter_data" not in inputs("lora_model=null")


def test_shards_are_read_where_text_is_replayed() -> None:
    assert "packed_shards" in inputs()["sft_model"]
    assert "packed_shards" not in inputs("sft_model.replay=0")["sft_model"]


def test_every_listed_adapter_is_an_asset_with_data_and_gates() -> None:
    loaded = load_recipe("tiny", [MAIL])
    graph, recipe = loaded.graph, loaded.recipe
    assert list(graph["lora_mail"].inputs) == ["dpo_model", "adapter_data_mail", "tokenizer"]
    assert graph["lora_mail"].kind is graph["lora_model"].kind
    assert recipe.gates_of("lora_mail") == recipe.gates["lora_model"] == recipe.gates_of("lora_model")
    assert recipe.section("lora_mail").identity_fields()["steps"] == 10
    assert recipe.section("adapter_data_mail").identity_fields()["domain"] == "network"
    assert not {"name", "data"} & recipe.section("lora_mail").identity_fields().keys()
    assert in_order(reversed(list(graph))) == list(graph) == list(graph_of(recipe))

    own = load_recipe("tiny", [MAIL, "gates.lora_mail=[{metric: loads, must_be: '==', threshold: 1}]"]).recipe
    assert [gate.metric for gate in own.gates_of("lora_mail")] == ["loads"]
    assert own.gates_of("adapter_data_mail") == own.gates["adapter_data"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (MAIL.replace("name: mail", "name: model"), "adapters.0.name: lora_model is an asset of its own"),
        (MAIL.replace("]", f", {MAIL[10:-1]}]"), "adapters.1.name: there is an adapter mail already"),
        (MAIL.replace("domain: network", "domain: news"), "adapters.0.data.domain: there is no domain 'news'"),
        ("gates.lora_mail=[{metric: loads, must_be: '==', threshold: 1}]", "gates.lora_mail: there is no such asset"),
        ("gates.sft_model=[]", "every asset needs at least one gate; none is given for sft_model"),
    ],
)
def test_what_an_adapter_cannot_be(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("tiny", [override])
    assert message in str(refused.value)


def test_gates_of_an_asset_that_was_left_out_judge_nothing() -> None:
    recipe = load_recipe("tiny", ["sft_model=null", "gates.sft_model=[]"]).recipe
    assert "sft_model" not in recipe.contracts()


def test_the_kind_of_a_name() -> None:
    assert [kind_of(name) for name in ("lora_model", "lora_mail", "adapter_data", "adapter_data_mail", "corpus")] == [
        "lora_model",
        "lora_model",
        "adapter_data",
        "adapter_data",
        "corpus",
    ]
    assert (adapter_of("lora_mail"), adapter_of("adapter_data_mail"), adapter_of("lora_model")) == ("mail", "mail", "")
    assert is_asset("lora_mail") and not is_asset("mail")


FINETUNE = """\
extends: finetune
name: support
base_model: {{from: {folder}}}
conversations:
  - {{name: tickets, path: {folder}/tickets.jsonl}}
"""


@pytest.fixture
def support(tmp_path: Path) -> str:
    """Path of the five lines with which people begin."""
    recipe = tmp_path / "support.yaml"
    recipe.write_text(FINETUNE.format(folder=tmp_path))
    return str(recipe)


def test_five_lines_bring_a_model_and_conversations(support: str) -> None:
    graph = load_recipe(support).graph
    assert {asset: tuple(node.inputs) for asset, node in graph.items()} == {
        "conversations": (),
        "evaluation_sets": ("conversations",),
        "tokenizer": (),
        "instruction_data": ("evaluation_sets", "conversations"),
        "adapter_data": ("instruction_data", "evaluation_sets"),
        "base_model": ("tokenizer",),
        "lora_model": ("base_model", "adapter_data", "tokenizer"),
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base_model.from=null"], "base_model"),
        (["conversations=[]"], "lora_model: it has nothing to learn from; add `conversations`, or `sources`"),
        (["conversations=[{name: c, from_corpus: true}]"], "conversations: from_corpus needs a corpus; add `sources`"),
        (["sft_model={steps: 5, replay: 0.5, optimizer: {learning_rate: 0.001, warmup_steps: 1}}"], "sft_model.replay"),
        (["dpo_model={steps: 5, optimizer: {learning_rate: 0.001, warmup_steps: 1}}"], "add `preferences`"),
        (["adapter_data.domain=news"], "adapter_data.domain: there is no domain 'news'"),
    ],
)
def test_what_a_section_lacks_is_said(support: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(support, overrides)
    assert message in str(refused.value)


def test_an_imported_model_may_be_gated_on_its_answers(support: str) -> None:
    gate = "gates.base_model=[{metric: refusal_rate, must_be: '>=', threshold: 0.2}]"
    assert [gate.metric for gate in load_recipe(support, [gate]).recipe.gates_of("base_model")] == ["refusal_rate"]
    with pytest.raises(RecipeError, match="no evaluation of base_model produces the metric refusal_rate"):
        load_recipe("tiny", [gate])


def test_a_base_is_no_recipe_by_itself() -> None:
    with pytest.raises(RecipeError, match="finetune is a base to build on, and no whole recipe"):
        load_recipe("finetune")


def test_nothing_is_mixed_among_the_conversations_of_a_users_own(support: str) -> None:
    assert load_recipe(support).recipe.instruction_data.safety_repeats == 0
