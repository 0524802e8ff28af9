"""Recipes and launchers: what is read, what is merged, and what every mistake is told as."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipeline.gates.terms import evaluation_section
from pipeline.recipes.document import dump_yaml, parse_yaml
from pipeline.recipes.loader import FOLDER, available, load_launchers, load_recipe, recipe_schema, render
from training.errors import RecipeError

Write = Callable[..., Path]
MINE = "extends: tiny\nname: mine\nsources:\n  - name: notes\n    path: ~/notes\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def _write(text: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def refusal(path: Path | str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


def test_five_lines_train_on_a_folder_of_ones_own(write: Write) -> None:
    recipe = load_recipe(str(write(MINE))).recipe
    tiny = load_recipe("tiny").recipe
    assert [source.path for source in recipe.sources] == ["~/notes"]
    assert (recipe.name, recipe.base_model) == ("mine", tiny.base_model)
    # The folder declares no domain: the adapter learns from all of it, and nothing is kept from the base model.
    assert (recipe.adapter_data.domain, recipe.packed_shards.exclude_domains) == ("general", ())
    assert (tiny.adapter_data.domain, tiny.packed_shards.exclude_domains) == ("network", ("network",))


TWO_SOURCES = """extends: tiny
name: mine
sources:
  - {name: web, path: ~/web, weight: WEIGHT}
  - {name: code, path: ~/code}
"""


def test_a_weight_is_a_matter_of_the_training_alone(write: Write) -> None:
    once, twice = (load_recipe(str(write(TWO_SOURCES.replace("WEIGHT", weight)))).recipe for weight in ("1", "2"))
    differ = {asset for asset in load_recipe("tiny").graph if once.section(asset) != twice.section(asset)}
    assert differ == {"base_model"}
    assert "weights" not in once.section("base_model").identity_fields()
    assert twice.section("base_model").identity_fields()["weights"] == {"web": 2.0}
    assert load_recipe("tiny").recipe.section("packed_shards").identity_fields()["weights"] == {"stdlib": 1.0}


def test_one_budget_takes_the_place_of_an_inherited_one(write: Write) -> None:
    path = str(write(MINE + "base_model: {tokens: 4.096e6}\n"))
    assert load_recipe(path).recipe.base_model.steps == 2000
    assert load_recipe(path, ["base_model.steps=70"]).recipe.base_model.steps == 70
    waiting = load_recipe("tiny", ["base_model.tokens_per_parameter=20"])
    assert (waiting.recipe.base_model.steps, "packed_shards" in waiting.graph) == (0, True)
    assert load_recipe("tiny", ["base_model.tokens=1e6"]).recipe.base_model.steps == 489
    with pytest.raises(RecipeError, match="tokens: the budget is given by steps and tokens; keep one of them"):
        load_recipe("tiny", ["base_model.tokens=1e6", "base_model.steps=70"])
    both = str(write(MINE + "base_model:\n  steps: 100\n  tokens: 4.0e6\n"))
    with pytest.raises(RecipeError, match=r"mine\.yaml:8: base_model\.tokens: the budget is given by steps and tokens"):
        load_recipe(both)


def test_other_contexts_tokenize_nothing_and_are_measured(write: Write) -> None:
    longer = ["packed_shards.contexts=[128, 256, 512, 1024]"]
    fields = [load_recipe("tiny", more).recipe.section("packed_shards").identity_fields() for more in ([], longer)]
    assert fields[0] == fields[1]
    loaded = load_recipe("tiny", longer)
    assert evaluation_section("packed_shards", loaded)["packing_contexts"] == [128, 256, 512, 1024]
    assert "packing_contexts" not in evaluation_section("corpus", loaded)
    path = write(MINE + "evaluation: {packing_contexts: [128]}\n")
    with pytest.raises(RecipeError, match=r"evaluation\.packing_contexts: write them as `packed_shards\.contexts`"):
        load_recipe(str(path))


def test_weights_of_a_phase_name_sources(write: Write) -> None:
    phases = "base_model: {curriculum: [{context: 256, share: 1, weights: {WHICH: 3}}]}\n"
    recipe = TWO_SOURCES.replace("WEIGHT", "1") + phases
    section = load_recipe(str(write(recipe.replace("WHICH", "code")))).recipe.base_model
    assert section.identity_fields()["curriculum"] == [{"context": 256, "share": 1.0, "weights": {"code": 3.0}}]
    assert "there is no source 'cod'; the sources are web, code" in refusal(write(recipe.replace("WHICH", "cod")))
    assert "above 0" in refusal(write(recipe.replace("WHICH: 3", "code: 0"))) or "greater than 0" in refusal(
        write(recipe.replace("WHICH: 3", "code: 0"))
    )


def test_weights_of_the_tokenizer_name_sources_and_stay_out_of_its_identity_where_there_are_none(write: Write) -> None:
    recipe = TWO_SOURCES.replace("WEIGHT", "1") + "tokenizer: {weights: {WHICH: 3}}\n"
    section = load_recipe(str(write(recipe.replace("WHICH", "code")))).recipe.section("tokenizer")
    assert section.identity_fields()["weights"] == {"code": 3.0}
    assert "tokenizer.weights: there is no source 'cod'" in refusal(write(recipe.replace("WHICH", "cod")))
    assert "weights" not in load_recipe("tiny").recipe.section("tokenizer").identity_fields()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            "{sources: [web, bok], gopher: {}}",
            "corpus.rules.sources: there is no source 'bok'; the sources are web, code",
        ),
        ("{languages: {keep: [EN]}}", "keep"),
        ("{languages: {keep: [english]}}", "keep"),
        ("{blocklist: [' ']}", "blocklist"),
    ],
)
def test_rules_that_would_drop_everything_or_nothing_are_refused(write: Write, rules: str, said: str) -> None:
    recipe = TWO_SOURCES.replace("WEIGHT", "1")
    assert load_recipe(str(write(f"{recipe}corpus: {{rules: {{sources: [web], gopher: {{}}}}}}\n"))).recipe.corpus.rules
    assert said in refusal(write(f"{recipe}corpus: {{rules: {rules}}}\n"))


def test_the_name_is_never_inherited(write: Write) -> None:
    assert refusal(write("extends: tiny\n")).startswith("mine.yaml:1: name: this key is missing")
    assert load_recipe(str(write("extends: tiny\nname: other\n"))).recipe.description == ""


def test_mappings_merge_and_lists_are_replaced(write: Write) -> None:
    write(MINE + "base_model: {optimizer: {learning_rate: 1e-4}, curriculum: [{context: 256, share: 1}]}\n")
    write("extends: mine\nname: child\nbase_model: {steps: 70}\n", "child.yaml")
    section = load_recipe("child.yaml").recipe.base_model
    assert (section.steps, section.optimizer.learning_rate) == (70, 1e-4)
    assert section.optimizer.warmup_steps == load_recipe("tiny").recipe.base_model.optimizer.warmup_steps
    assert [phase.context for phase in section.curriculum] == [256]


def test_domains_of_a_source_reach_the_corpus_and_not_the_gathering() -> None:
    recipe = load_recipe("smoke").recipe
    corpus = recipe.section("corpus")
    assert corpus.domain_of("stdlib", "email/header.py") == "network"  # type: ignore[attr-defined]
    assert corpus.domain_of("other", "email/header.py") == "general"  # type: ignore[attr-defined]
    assert all(not source.domains for source in recipe.section("raw_corpus").sources)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3\n", "mine.yaml:6: stepz: there is no such key; the keys here are"),
        ("base_model:\n  stepz: 3\n", "mine.yaml:7: base_model.stepz: there is no such key; did you mean steps?"),
        ("base_model:\n  steps: many\n", "mine.yaml:7: base_model.steps: 'many' is not a whole number"),
        ("base_model:\n  steps: true\n", "mine.yaml:7: base_model.steps: true is not a whole number"),
        ("base_model:\n  steps: 0\n", "mine.yaml:7: base_model.steps: 0 is not allowed: it must be above 0"),
        ("base_model:\n  steps:\n", "mine.yaml:7: base_model.steps: nothing is not a whole number"),
        (
            "base_model:\n  precision: fp16\n",
            "mine.yaml:7: base_model.precision: 'fp16' is not one of 'fp32', 'bf16' or 'fp8'",
        ),
        ("base_model: 5\n", "mine.yaml:6: base_model: 5 is not a mapping of keys to values"),
        (
            "base_model:\n  optimizer:\n    learning_rate: .nan\n",
            "mine.yaml:8: base_model.optimizer.learning_rate: .nan is not a finite number",
        ),
        ("packed_shards:\n  contexts: 128\n", "mine.yaml:7: packed_shards.contexts: 128 is not a list"),
        ("packed_shards:\n  contexts: []\n", "mine.yaml:7: packed_shards.contexts: the list needs at least 1 item"),
        ("tokenizer:\n  vocabulary: 20\n", "it must be at least 300"),
        ("description: 125\n", "mine.yaml:6: description: 125 is not text; put it in quotes"),
        ("nightly:\n  timezone: Mars\n", "mine.yaml:7: nightly.timezone: no time zone is called 'Mars'"),
        ("base_model:\n  curriculum:\n    - {context: 128, share: 0.5}\n", "the shares of the curriculum must add up"),
        ("sft_model:\n  context: 4096\n", "mine.yaml:7: sft_model.context: a context of 4096 tokens is longer than"),
        ("adapter_data:\n  domain: music\n", "mine.yaml:7: adapter_data.domain: there is no domain 'music'"),
        ("corpus:\n  domains: {a: ['*']}\n", "mine.yaml:7: corpus.domains: domains belong to a source"),
        ("corpus:\n  near_duplicates: {permutations: 3}\n", "permutations 3 miss near-duplicates at the threshold 0.8"),
        (
            "gates:\n  base_model:\n    - {metric: loads, must_be: '==', threshold: abc}\n",
            "mine.yaml:8: gates.base_model.0.threshold: 'abc' is not a number",
        ),
        (
            "gates:\n  base_model:\n    - {metric: beauty, must_be: '==', threshold: 1}\n",
            "mine.yaml:8: gates.base_model.0.metric: no evaluation of base_model produces the metric beauty",
        ),
        (
            "gates:\n  base_model:\n    - {metric: heldout_bits_per_bite, must_be: '<=', threshold: 1}\n",
            "mine.yaml:8: gates.base_model.0.metric: no evaluation of base_model produces the metric "
            "heldout_bits_per_bite; did you mean heldout_bits_per_byte?",
        ),
        (
            "gates:\n  base_model:\n    - {metric: loads, must_be: '==', threshold: 1}\n"
            "    - {metric: loads, must_be: '>=', threshold: 1}\n",
            "mine.yaml:9: gates.base_model.1.metric: base_model has a gate on loads already",
        ),
        (
            "gates:\n  base_model:\n"
            "    - {metric: choice_accuracy_dcpmi, must_be: '==', threshold: 1, champion_margin: 0.1}\n",
            "mine.yaml:8: gates.base_model.0.champion_margin: with `==` nothing is better or worse",
        ),
        (
            "gates:\n  sft_model:\n    - {metric: loss_drop, must_be: '>=', threshold: 1, champion_margin: 0.1}\n",
            "mine.yaml:8: gates.sft_model.0.champion_margin: loss_drop is not measured over the same items",
        ),
        (
            "gates:\n  corpus:\n    - {metric: bytes, must_be: '>=', threshold: 1, champion_margin: 0.1}\n",
            "comparable are no metrics",
        ),
        (
            "gates:\n  base_model:\n    - {metric: choice_accuracy_dcpmi, must_be: '>=', threshold: 1}\n"
            "evaluation_sets: {tasks: []}\n",
            "mine.yaml:8: gates.base_model.0.metric: no evaluation of base_model produces the metric "
            "choice_accuracy_dcpmi",
        ),
        ("gates:\n  base_model: []\n", "gates: every asset needs at least one gate; none is given for base_model"),
        (
            "gates:\n  big_model:\n    - {metric: loads, must_be: '==', threshold: 1}\n",
            "mine.yaml:7: gates.big_model: there is no such asset",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(write: Write, text: str, message: str) -> None:
    assert message in refusal(write(MINE + text))


def test_a_source_needs_exactly_one_origin(write: Write) -> None:
    message = refusal(write("extends: tiny\nname: mine\nsources:\n  - name: notes\n    path: a\n    stdlib: true\n"))
    assert message == ("mine.yaml:4: sources.0: give exactly one of path, stdlib and dataset (given: path, stdlib)")


def test_a_missing_key_of_a_list_item_is_told_at_the_item(write: Write) -> None:
    assert refusal(write("extends: tiny\nname: mine\nsources:\n  - path: a\n")).startswith(
        "mine.yaml:4: sources.0.name: this key is missing: Short name"
    )


def test_all_errors_are_shown_at_once_in_the_order_of_the_file(write: Write) -> None:
    lines = refusal(write(MINE + "seed: x\nbase_model:\n  stepz: 1\n  log_every: 0\n")).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["mine.yaml:6", "seed"],
        ["mine.yaml:8", "base_model.stepz"],
        ["mine.yaml:9", "base_model.log_every"],
    ]
    (line,) = refusal(write(MINE.replace("~/notes", "https://user:word@host/a.jsonl"))).splitlines()
    assert "holds a user's name or password" in line, "and not that the path which was refused is missing"
    both = refusal(write(MINE + "adapter_data: {domain: a}\nsft_model: {context: 9999}\n"))
    assert "adapter_data.domain" in both
    assert "sft_model.context" in both


def test_an_error_in_what_is_extended_names_that_file(write: Write) -> None:
    write(MINE + "seed: -1\n", "base.yaml")
    message = refusal(write("extends: base\nname: child\n", "child.yaml"))
    assert message == "base.yaml:6: seed: -1 is not allowed: it must be at least 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object:os.system x\n", "mine.yaml:1: the tag !!python/object:os.system is refused"),
        ("a: !mine x\n", "mine.yaml:1: the tag !mine is refused"),
        ("a: 1\nb: !!str 5\na: 2\n", "mine.yaml:2: the tag !!str is refused"),
        ("name: a\nseed: 1\nname: b\n", "mine.yaml:3: name is given twice; it is on line 1 already"),
        ("a: &x [*x]\n", "mine.yaml:1: this anchor contains itself"),
        ("a: [1, 2\nb: 3\n", "mine.yaml:2: "),
        ("a:\n\t- b\n", "mine.yaml:2: "),
        ("a: >=\n", "mine.yaml:1: put the comparison in quotes"),
        ("a: 1\n---\nb: 2\n", "a second document starts here"),
        ("- a\n", "mine.yaml:1: a mapping of keys to values is expected"),
        ("", "a mapping of keys to values is expected"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", "mine.yaml:3: merge keys (<<) are not supported"),
        ("? [a]\n: 1\n", "mine.yaml:1: a key must be a word"),
        ("a: *nothing\n", "mine.yaml:1: found undefined alias"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (f"name: a\nseed: {'9' * 5000}\n", "mine.yaml:2: seed: "),
        ("name: a\nseed: 1__0\n", "mine.yaml:2: seed: '1__0' is not a whole number"),
        ("name: a\nseed: \0\n", "mine.yaml:2: unacceptable character #x0000"),
        (b"name: \xff\n", "mine.yaml:1: this is not UTF-8 text"),
        ("# " + "x" * 1_000_001, "are too many for a recipe"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(write: Write, text: str | bytes, message: str) -> None:
    assert message in refusal(write(text))


def test_an_alias_bomb_is_refused_before_it_goes_off(write: Write) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    told = refusal(write("l0: &l0 [1, 2]\n" + levels))
    assert "do its aliases multiply?" in told
    assert re.match("mine.yaml:[0-9]+: ", told)


def test_anchors_are_allowed(write: Write) -> None:
    path = write(MINE + "sft_model: {optimizer: &o {learning_rate: 1e-4}}\nlora_model: {optimizer: *o}\n")
    recipe = load_recipe(str(path)).recipe
    assert recipe.sft_model.optimizer.learning_rate == recipe.lora_model.optimizer.learning_rate == 1e-4


def test_values_are_read_as_in_yaml_1_2() -> None:
    tree = parse_yaml("{a: 2e-3, b: on, c: 12:30, d: 010, e: 'true', f: 1_000, g: -.inf, h: ~, i: False}", "x")
    assert tree.plain() == {
        "a": 0.002,
        "b": "on",
        "c": "12:30",
        "d": 10,
        "e": "true",
        "f": 1000,
        "g": -float("inf"),
        "h": None,
        "i": False,
    }


def test_dumped_yaml_reads_back_the_same() -> None:
    value = {
        "a": "2e-3",
        "b": "on",
        "c": 1e-8,
        "d": None,
        "e": ["x: y", "# no", "", "two\nlines"],
        "f": {},
        "g": True,
        "h": "null",
        "i": [{"j": []}],
        "k": 'a "quoted" \\ text',
        "l": " padded ",
    }
    assert parse_yaml(dump_yaml(value), "x").plain() == {**value, "e": tuple(value["e"]), "i": ({"j": ()},)}  # type: ignore[arg-type]


def test_a_circle_of_recipes_is_refused(write: Write) -> None:
    write("extends: b\nname: a\n", "a.yaml")
    write("extends: a\nname: b\n", "b.yaml")
    assert "in a circle: a.yaml -> b.yaml -> a.yaml" in refusal("a.yaml")


def test_an_unknown_recipe_is_answered_with_the_nearest_one(write: Write) -> None:
    assert "there is no recipe called 'tinny'" in refusal("tinny")
    assert "did you mean tiny?" in refusal("tinny")
    assert refusal(write("name: a\nextends: tinny\n")).startswith("mine.yaml:2: extends: there is no recipe called")
    assert "there is no such recipe file" in refusal("nowhere.yaml")
    assert "give the name of one recipe" in refusal(write("extends: [tiny]\n"))


def test_a_path_that_is_no_file_is_called_what_it_is(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert refusal("folder.yaml") == "folder.yaml: this is a folder; give the path of a recipe, a .yaml file"
    assert refusal("./") == ".: this is a folder; give the path of a recipe, a .yaml file"
    assert refusal("pipe.yaml").startswith("pipe.yaml: this is a pipe or a device")
    assert refusal("loop.yaml").startswith("loop.yaml: cannot be read: Too many levels of symbolic links")
    write("extends: ./folder.yaml\nname: a\n")
    assert refusal("mine.yaml").startswith("mine.yaml:1: extends: folder.yaml: this is a folder")


def test_another_kind_of_model_takes_over_no_field(write: Write) -> None:
    write(MINE + "base_model:\n  architecture: {model_type: gpt2, n_embd: 64, n_positions: 512}\n")
    own = "base_model: {architecture: {model_type: gpt2, n_embd: 32}}\n"
    write("extends: ./mine.yaml\nname: child\n" + own, "child.yaml")
    assert load_recipe("mine.yaml").recipe.base_model.architecture == {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_positions": 512,
    }
    assert load_recipe("child.yaml").recipe.base_model.architecture == {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_positions": 512,
    }
    key = "base_model.architecture"
    for overrides in ([f"{key}.n_embd=16", f"{key}.model_type=gpt2"], [f"{key}.model_type=gpt2", f"{key}.n_embd=16"]):
        assert load_recipe("tiny", overrides).recipe.base_model.architecture == {"model_type": "gpt2", "n_embd": 16}
    same = load_recipe("tiny", [f"{key}.model_type=llama", f"{key}.hidden_size=64"]).recipe.base_model.architecture
    assert (same["hidden_size"], same["num_hidden_layers"]) == (64, 4)


def test_a_folder_of_recipes_comes_first(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(MINE)
    assert "mine" not in available()
    monkeypatch.setenv("GATEHOUSE_RECIPES", str(tmp_path))
    assert {"mine", "tiny"} <= set(available())
    assert "launchers" not in available()
    assert load_recipe("mine").path == path


def test_overrides_change_values_of_every_kind() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "base_model.steps=90",
            "sources.0.path=/data",
            "sources.0.stdlib=false",
            "evaluation.batch=4",
            "seed=3",
            "sources.0.domains={}",
            "base_model.architecture.rope_theta=5e5",
            "gates.base_model.0.threshold=0",
            "packed_shards.contexts=[64, 128, 256, 512]",
        ],
    ).recipe
    assert (recipe.base_model.steps, recipe.evaluation.batch, recipe.seed) == (90, 4, 3)
    assert (recipe.sources[0].path, recipe.sources[0].stdlib, recipe.adapter_data.domain) == ("/data", False, "general")
    assert recipe.base_model.architecture["rope_theta"] == 5e5
    assert recipe.gates["base_model"][0].threshold == 0
    assert recipe.packed_shards.contexts == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "base_model.stepz=1",
            "override base_model.stepz=1: base_model.stepz: there is no such key; did you mean steps?",
        ),
        ("bass_model.steps=1", "did you mean base_model?"),
        ("extends=smoke", "extends: there is no such key"),
        ("sources.3.path=a", "sources.3: this list has the items 0 to 0"),
        ("sources.first.path=a", "sources.first: this list has the items 0 to 0"),
        ("steps=5", "override steps=5: steps: there is no such key here; did you mean base_model.steps, "),
        ("base_model.steps.more=1", "base_model.steps is a value, it has no keys"),
        ("base_model.steps", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("base_model.steps=abc", "override base_model.steps=abc: base_model.steps: 'abc' is not a whole number"),
        ("base_model.steps=!!int 3", "the tag !!int is refused"),
        ("base_model.curriculum=[{context: 128}]", "base_model.curriculum.0.share: this key is missing"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    assert message in refusal("tiny", override)


def test_all_wrong_overrides_are_shown_at_once() -> None:
    assert len(refusal("tiny", "a=1", "b=2").splitlines()) == 2


def test_files_are_found_beside_the_recipe_first(write: Write, tmp_path: Path) -> None:
    loaded = load_recipe(str(write(MINE)))
    assert loaded.files("evaluation_sets")["harmful"] == FOLDER / "safety/harmful_eval.jsonl"
    assert loaded.files("tokenizer") == {}
    (tmp_path / "safety").mkdir()
    own = write("{}\n", "safety/harmful_eval.jsonl")
    assert loaded.files("evaluation_sets")["harmful"] == own


def test_a_missing_file_names_the_key_and_the_folders(write: Write) -> None:
    loaded = load_recipe(str(write(MINE + "instruction_data:\n  harmful: no.jsonl\n  benign: nor.jsonl\n")))
    with pytest.raises(RecipeError) as caught:
        loaded.files("instruction_data")
    first, second = str(caught.value).splitlines()
    assert first.startswith("mine.yaml:7: instruction_data.harmful: there is no file 'no.jsonl' in . nor in ")
    assert second.startswith("mine.yaml:8: instruction_data.benign")


def test_a_rendered_recipe_is_the_same_recipe(write: Write) -> None:
    recipe = load_recipe(str(write(MINE))).recipe
    text = render(recipe)
    assert "warmup_steps" in text
    assert "beta2: 0.95" in text
    assert load_recipe(str(write(text, "rendered.yaml"))).recipe == recipe


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(write: Write) -> None:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert schema["properties"]["sources"]["description"]
    for name in available():
        assert not list(validator.iter_errors(_json(parse_yaml((FOLDER / f"{name}.yaml").read_text(), name).plain())))
    for wrong in (
        {"name": "a"},
        {"extends": "tiny"},
        {"extends": "tiny", "name": "a", "stepz": 1},
        {"extends": "tiny", "name": "a", "sources": [{"path": "b"}]},
    ):
        assert not validator.is_valid(wrong)


def _json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _json(child) for key, child in value.items()}
    return [_json(child) for child in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("local: {procesess: 2}\n", "l.yaml:1: local.procesess: there is no such key"),
        ("local:\n  kind: moon\n", "l.yaml:2: local.kind: 'moon' is not one of 'local'"),
        ("local:\n  default:\n    zero_stage: 5\n", "l.yaml:3: local.default.zero_stage: 5 is not one of 0, 1, 2 or 3"),
        (
            "local:\n  stages:\n    base_modle: {}\n",
            "l.yaml:3: local.stages.base_modle: there is no such asset; did you mean base_model?",
        ),
        ("local: 5\n", "l.yaml:1: local: 5 is not a mapping of keys to values"),
        ("{}\n", "no launcher is described here"),
    ],
)
def test_launchers_are_explained_alike(write: Write, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_launchers(write(text, "l.yaml"))
    assert message in str(caught.value)


def test_importing_recipes_stays_light() -> None:
    code = "import sys, pipeline.recipes.loader; print([m for m in ('torch', 'dagster', 'mlflow') if m in sys.modules])"
    root = FOLDER.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MIXED = "extends: tiny\nname: mixed\nsources:\n  - {name: web, path: ~/web}\n  - {name: code, path: ~/code}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "base_model: {mixture: {web: 1.0}}",
            "mixture: it gives no share to the source code; write 0 where",
        ),
        ("base_model: {mixture: {web: 0.5, code: 0.5, wiki: 0.0}}", "base_model.mixture: there is no source 'wiki'"),
        (
            "base_model: {mixture: {web: 0.5, code: 0.6}}",
            "mixture: the shares add up to 1.1, and they must",
        ),
        (
            "base_model: {curriculum: [{context: 128, share: 1, mixture: {web: 1.0}}]}",
            "base_model.curriculum[0].mixture: it gives no share to the source code",
        ),
        (
            "base_model: {mixture: {web: 0.5, code: 0.5}, curriculum: [{context: 128, share: 1, weights: {web: 2}}]}",
            "curriculum[0].weights: a mixture gives the shares; write this phase's as `mixture`",
        ),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(write: Write, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(str(write(MIXED + text + "\n")))
    assert problem in str(error.value)


def test_a_mixture_stands_alone(write: Write) -> None:
    mixture = "base_model: {mixture: {web: 0.75, code: 0.25}}\n"
    loaded = load_recipe(str(write(MIXED + mixture)))
    fields = loaded.recipe.section("base_model").identity_fields()
    assert fields["mixture"] == {"web": 0.75, "code": 0.25}
    assert "mixture_error" in loaded.recipe.metrics("base_model")
    assert "mixture_error" not in load_recipe("tiny").recipe.metrics("base_model")
    assert "mixture" not in load_recipe("tiny").recipe.section("base_model").identity_fields()
    heavy = MIXED.replace("path: ~/code", "path: ~/code, weight: 2.0")
    with pytest.raises(RecipeError, match="the source code has a weight too; leave one of them out"):
        load_recipe(str(write(heavy + mixture)))
