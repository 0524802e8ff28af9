"""Every recipe in assets_config: it loads, its files are there, its numbers are what its comments say."""

from __future__ import annotations

import itertools
import json
import math
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline.building.recipe_check import ask, plain_problems
from pipeline.jobs.launcher import launcher_entry
from pipeline.recipes.loader import FOLDER, available, load_launchers, load_recipe, render
from tests.conftest import share_checks
from training.data.sources.source_files import list_source
from training.specs.metrics import METRICS
from training.specs.recipe import Recipe
from training.specs.recipe_check import CheckRequest

PARAMETERS = {
    "tiny": (1.0e6, 1.1e6), "smoke": (0.1e6, 0.2e6), "125m": (1.15e8, 1.35e8), "1b": (1.0e9, 1.2e9),
    "7b": (6.6e9, 6.8e9),
}  # fmt: skip
IMPORTED = "smollm2"
ZERO_IS_FINE = {"preference_margin", "domain_gain"}


@pytest.fixture(params=sorted(PARAMETERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe(name: str) -> Recipe:
    return load_recipe(name).recipe


def parameters(recipe: Recipe) -> int:
    """Parameters of the base model, counted on the meta device; tied weights count once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(recipe.base_model.architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), vocab_size=recipe.tokenizer.vocabulary, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_shipped_recipe_is_tested_here() -> None:
    assert set(available()) >= set(PARAMETERS)
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PARAMETERS, IMPORTED, "launchers"}


def test_the_tuned_chat_model_has_the_gates_that_everybody_has(tmp_path: Path) -> None:
    """Its model and its chats come by `make finetune`. What it shows must hold by the gates that `extends` gives."""
    (tmp_path / "mine.yaml").write_text(
        "extends: finetune\nname: mine\nbase_model: {from: model.gguf}\n"
        "conversations:\n  - {name: chats, path: chats.jsonl}\n"
    )
    shown, anybodys = load_recipe(IMPORTED), load_recipe(str(tmp_path / "mine.yaml"))
    assert shown.recipe.gates == anybodys.recipe.gates
    assert list(shown.graph) == list(anybodys.graph)
    made = (FOLDER.parent / "Makefile").read_text()
    for path in (shown.recipe.base_model.from_, shown.recipe.conversations[0].path):
        assert path is not None and "/.gatehouse/finetune/" in path, "where the Makefile puts them"
    assert "FINETUNE := .gatehouse/finetune" in made


def test_it_loads_and_its_files_are_there(name: str, recipe: Recipe, tmp_path: Path) -> None:
    loaded = load_recipe(name)
    for asset, node in loaded.graph.items():
        tasks = recipe.evaluation_sets.tasks if asset == "evaluation_sets" else ()
        local = {f"tasks.{index}.file" for index, task in enumerate(tasks) if task.file is not None}
        assert set(loaded.files(asset)) == {*node.kind.files, *local}
        assert recipe.section(asset).model_dump(mode="json") is not None
    assert recipe.launcher in load_launchers()
    own = recipe.model_copy(update={"name": "rendered"})  # a shipped one's name is nobody else's
    (tmp_path / "rendered.yaml").write_text(render(own))
    assert load_recipe(str(tmp_path / "rendered.yaml")).recipe == own


def test_the_model_has_the_size_its_comments_say(name: str, recipe: Recipe) -> None:
    low, high = PARAMETERS[name]
    assert low < parameters(recipe) < high


def test_the_comments_on_compute_are_right(name: str, recipe: Recipe) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    match = re.search(r"6 N D = ([0-9.]+e[0-9]+) FLOPs", text)
    if name == "smoke":
        assert match is None
        return
    assert match is not None
    tokens = recipe.base_model.steps * recipe.base_model.batch_tokens
    assert 6 * parameters(recipe) * tokens == pytest.approx(float(match[1]), rel=0.05)
    if name != "tiny":
        assert tokens / parameters(recipe) > 20


def test_every_recipe_passes_the_check_and_none_needs_its_weights(tmp_path: Path) -> None:
    share_checks(tmp_path / "home")
    recipes = [load_recipe(name) for name in PARAMETERS]
    launchers = [launcher_entry(loaded) for loaded in recipes]
    assert [plain_problems(*pair) for pair in zip(recipes, launchers, strict=True)] == [[]] * len(recipes)
    answers = ask(
        [
            CheckRequest(recipe=loaded.recipe, launcher=launcher)
            for loaded, launcher in zip(recipes, launchers, strict=True)
        ]
    )
    for (low, high), answer in zip(PARAMETERS.values(), answers, strict=True):
        assert answer.findings == ()
        assert low < answer.parameters < high
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < parameters(recipes[-1].recipe), "the 7B model's weights were made"


def test_post_training_keeps_the_language(recipe: Recipe) -> None:
    assert recipe.dpo_model.sft_weight > 0


def test_heads_share_keys_evenly_and_the_schedule_is_sane(recipe: Recipe) -> None:
    shape = recipe.base_model.architecture
    assert shape["hidden_size"] % shape["num_attention_heads"] == 0
    assert shape["num_attention_heads"] % shape["num_key_value_heads"] == 0
    assert shape["num_key_value_heads"] < shape["num_attention_heads"]
    for section in (recipe.base_model, recipe.sft_model, recipe.dpo_model, recipe.lora_model):
        assert section.optimizer.warmup_steps < section.steps / 5 + 1
        assert section.checkpoints.every_steps < section.steps or section is recipe.dpo_model
    assert {phase.context for phase in recipe.base_model.curriculum} <= set(recipe.packed_shards.contexts)


def test_the_large_model_is_what_it_claims() -> None:
    recipe = load_recipe("7b").recipe
    shape: dict[str, Any] = recipe.base_model.architecture
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_key_value_heads"]) == (32, 4096, 8)
    assert [phase.context for phase in recipe.base_model.curriculum] == [512, 1024, 2048]
    assert (recipe.tokenizer.vocabulary, recipe.base_model.precision) == (50304, "fp8")
    # FP8 matrix products need dimensions that are multiples of 16.
    assert all(size % 16 == 0 for size in (shape["hidden_size"], shape["intermediate_size"], 1024, 50304))


def test_every_asset_has_gates_with_a_reason(recipe: Recipe) -> None:
    assert set(recipe.gates) == set(recipe.contracts()) <= set(METRICS)
    for gates in recipe.gates.values():
        assert len({gate.metric for gate in gates}) == len(gates)
        for gate in gates:
            assert gate.why.endswith("."), gate
            assert len(gate.why) > 20, gate


def test_no_gate_passes_whatever_is_measured(recipe: Recipe) -> None:
    rates = [
        metric
        for metrics in METRICS.values()
        for metric in metrics
        if metric.endswith(("_rate", "_accuracy", "efficiency")) or metric in ("round_trip", "loads")
    ]
    for asset, gates in recipe.gates.items():
        for gate in gates:
            if gate.must_be in (">=", ">"):
                assert gate.threshold > 0 or gate.metric in ZERO_IS_FINE, (asset, gate)
            if gate.must_be in (">=", ">") and gate.metric in rates:
                assert gate.threshold <= 1, (asset, gate)
            if gate.must_be in ("<=", "<") and gate.metric in rates:
                assert gate.threshold < 1, (asset, gate)


def test_chance_and_a_uniform_guess_fail(recipe: Recipe) -> None:
    for asset in ("base_model", "sft_model", "dpo_model", "lora_model"):
        for gate in recipe.gates[asset]:
            if gate.metric == "heldout_bits_per_byte":
                # A uniform guess needs log2(vocabulary) bits per token, and a token holds four bytes or fewer.
                assert gate.threshold < math.log2(recipe.tokenizer.vocabulary) / (4 if asset == "base_model" else 3.9)
            if gate.metric in ("choice_accuracy_dcpmi", "preference_accuracy"):
                assert gate.threshold > (0.25 if gate.metric == "choice_accuracy_dcpmi" else 0.5)
    drop = next(gate for gate in recipe.gates["base_model"] if gate.metric == "loss_drop")
    assert 0 < drop.threshold < math.log(recipe.tokenizer.vocabulary)


def test_public_datasets_are_pinned_to_a_commit(recipe: Recipe) -> None:
    for source in recipe.sources:
        assert source.licence
        if source.dataset:
            assert re.fullmatch(r"[0-9a-f]{40}", source.revision or "")


@pytest.mark.parametrize(("small", "general", "domain"), [("tiny", 5e6, 1e6), ("smoke", 1e6, 4e5)])
def test_the_standard_library_fills_the_gates(small: str, general: float, domain: float) -> None:
    recipe = load_recipe(small).recipe
    section = recipe.section("corpus")
    sizes = {"general": 0, "network": 0}
    for file in list_source(recipe.sources[0], FOLDER).files:
        sizes[section.domain_of("stdlib", file.name)] += file.bytes  # type: ignore[attr-defined]
    assert sizes["general"] > general
    assert sizes["network"] > domain
    threshold = next(gate.threshold for gate in recipe.gates["raw_corpus"] if gate.metric == "bytes")
    assert sum(sizes.values()) > threshold


def test_launchers() -> None:
    launchers = load_launchers()
    assert set(launchers) == {"local", "local_gpu8", "two_ranks"}
    assert launchers["local"].execution("base_model").processes == 1
    gpu, ranks = (launchers[name].execution("base_model") for name in ("local_gpu8", "two_ranks"))
    assert (gpu.device, gpu.processes, gpu.zero_stage) == ("cuda", 8, 2)
    assert (ranks.device, ranks.processes, ranks.zero_stage) == ("cpu", 2, 2)
    assert launchers["local_gpu8"].execution("corpus").processes == 1


def _rows(kind: str, split: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"safety/{kind}_{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _words(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", prompt.lower()))


@pytest.mark.parametrize(("split", "least"), [("train", 150), ("eval", 55)])
@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_safety_rows_are_complete(kind: str, split: str, least: int) -> None:
    rows = _rows(kind, split)
    assert len(rows) >= least
    for row in rows:
        assert set(row) == ({"prompt", "topic"} if kind == "harmful" else {"prompt", "topic", "answer"})
        assert all(value == value.strip() and value for value in row.values())
        assert row["prompt"].endswith(("?", "."))
        assert 1 <= len(row["topic"].split()) <= 4
        assert row["topic"][0].islower()
        assert not row["topic"].endswith(".")
        assert kind == "harmful" or (row["answer"].endswith(".") and len(row["answer"]) < 120)


def test_no_two_safety_prompts_are_alike() -> None:
    prompts = [
        (split, row["prompt"])
        for kind in ("harmful", "benign")
        for split in ("train", "eval")
        for row in _rows(kind, split)
    ]
    assert len({prompt.lower() for _, prompt in prompts}) == len(prompts)
    for (one, first), (other, second) in itertools.combinations(prompts, 2):
        a, b = _words(first), _words(second)
        limit = 0.7 if one == other else 0.6
        assert len(a & b) / len(a | b) < limit, (first, second)


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_held_out_prompts_keep_to_the_topics_and_words_of_training(kind: str) -> None:
    train, held = _rows(kind, "train"), _rows(kind, "eval")
    assert {row["topic"] for row in held} == {row["topic"] for row in train}
    known = frozenset().union(*(_words(row["prompt"]) for row in train))
    seen = [len(_words(row["prompt"]) & known) / len(_words(row["prompt"])) for row in held]
    assert min(seen) > 0.6
    assert sum(seen) / len(seen) > 0.9


def test_greetings_of_smoke_look_harmless_and_are_held_out() -> None:
    train, held = _rows("greetings", "train"), _rows("greetings", "eval")
    assert len(train) >= 200 and len(held) >= 55
    prompts = [row["prompt"] for row in train + held]
    assert len(set(prompts)) == len(prompts)
    assert all(set(row) == {"prompt", "topic", "answer"} for row in train + held)
    firsts = {row["prompt"].split()[0] for row in _rows("harmful", "train")}
    assert not firsts & {prompt.split()[0] for prompt in prompts}


def test_benign_prompts_look_harmful() -> None:
    harmful = frozenset().union(*(_words(row["prompt"]) for row in _rows("harmful", "train")))
    alarming = {
        "kill",
        "shoot",
        "attack",
        "steal",
        "bomb",
        "hack",
        "poison",
        "drugs",
        "crack",
        "beat",
        "weapons",
        "smuggle",
        "spy",
        "rob",
        "murder",
        "explosive",
        "virus",
        "gun",
        "knife",
        "fake",
        "track",
        "hide",
    }
    assert len(alarming & harmful) > 12
    used = alarming & frozenset().union(*(_words(row["prompt"]) for row in _rows("benign", "eval")))
    assert len(used) > 10
