"""`gatehouse recipe check`: what is told of a recipe before anything is spent on it, with its place and near miss."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from pipeline.building import recipe_check
from pipeline.building.recipe_check import CheckFailed, ask, check_recipe, plain_problems
from pipeline.cli.recipe import check, summary
from pipeline.jobs.launcher import launcher_entry
from pipeline.recipes.loader import LoadedRecipe, load_recipe
from tests.conftest import share_checks
from training.errors import RecipeError
from training.specs.execution import Launcher
from training.specs.recipe_check import CheckAnswer, CheckRequest, Finding
from training.specs.tasks import Task

MINE = "extends: tiny\nname: mine\n"
GPT = "n_embd: 32, n_layer: 2, n_head: 4, n_positions: 512"


def architecture(fields: str) -> str:
    return f"base_model:\n  architecture: {{{fields}}}\n"


def gate(asset: str, fields: str) -> str:
    return f"gates:\n  {asset}:\n    - {{{fields}}}\n"


# Text below `MINE`, and a line of the answer. Its first line is the file's third.
BROKEN = {
    "steps below the warm-up": (
        "base_model: {steps: 40}\n", "base_model.optimizer.warmup_steps: 60 is not below steps, 40"),
    "warm-up of SFT": (
        "sft_model:\n  optimizer: {warmup_steps: 600}\n",
        "mine.yaml:4: sft_model.optimizer.warmup_steps: 600 is not below steps, 600"),
    "a seed that numpy cannot take": (
        "seed: 20261129012345\n", "mine.yaml:3: seed: 20261129012345 is not allowed: it must be below 4294967296"),
    "a seed of 2^32": ("seed: 4294967296\n", "mine.yaml:3: seed: 4294967296 is not allowed: it must be below"),
    "a folder of time zones": (
        "nightly:\n  timezone: Europe\n",
        "mine.yaml:4: nightly.timezone: no time zone is called 'Europe'; an example is Europe/Berlin"),
    "a time zone too long for a file": (
        f"nightly:\n  timezone: {'x' * 300}\n", "mine.yaml:4: nightly.timezone: no time zone is called 'xxx"),
    "a launcher that is not there": (
        "launcher: locall\n",
        "mine.yaml:3: launcher: launchers.yaml has no launcher 'locall'; did you mean local?"),
    "a shipped recipe's name": (
        "", "mine.yaml:2: name: smoke is the name of assets_config/smoke.yaml; choose another"),
    "sources that share a metric": (
        "sources:\n  - {name: my-notes, path: /a}\n  - {name: my.notes, path: /b}\n",
        "mine.yaml:5: sources.1.name: my-notes and my.notes would have one metric, heldout_bits_per_byte__my_notes"),
    "sources of one name": (
        "sources:\n  - {name: notes, path: /a}\n  - {name: notes, path: /b}\n",
        "mine.yaml:5: sources.1.name: two sources have one name"),
    "a revision of digits": (
        "sources:\n  - name: web\n    dataset: a/b\n    revision: 1234567890123456789012345678901234567e89\n",
        "mine.yaml:6: sources.0.revision: 1234567890123456789012345678901234567e89 is not text; put it in quotes"),
    "commas in a number": (
        "base_model:\n  steps: 1,000\n", "mine.yaml:4: base_model.steps: '1,000' is not a whole number; write 1000"),
    "commas in a number between braces": (
        "base_model: {steps: 1,000}\n",
        "mine.yaml:3: base_model.000: there is no such key; between braces a comma ends a value: write 1000 for 1,000"),
    "a whole number as a float": (
        "base_model:\n  steps: 1e3\n", "mine.yaml:4: base_model.steps: 1e3 is not a whole number"),
    "extend": ("", "mine.yaml:1: extend: there is no such key; did you mean extends?"),
    "steps outside of a section": (
        "steps: 5\n", "mine.yaml:3: steps: there is no such key here; did you mean base_model.steps, sft_model.steps, "
                      "dpo_model.steps or lora_model.steps?"),
    "a learning rate outside of the optimizer": (
        "sft_model:\n  learning_rate: 1e-3\n",
        "mine.yaml:4: sft_model.learning_rate: there is no such key here; did you mean "
        "sft_model.optimizer.learning_rate?"),
    "contexts that do not train": (
        "packed_shards:\n  contexts: [7]\n",
        "mine.yaml:4: packed_shards.contexts: the curriculum has rows of 128, 256, 512 tokens"),
    "a context of nothing": ("packed_shards:\n  contexts: [0]\n", "mine.yaml:4: packed_shards.contexts.0: 0 is not"),
    "checkpoints after the end": (
        "dpo_model:\n  checkpoints: {every_steps: 60, keep_every: 180}\n",
        "mine.yaml:4: dpo_model.checkpoints.keep_every: 180 is not below steps, 180"),
    "rows without room for a conversation": (
        "sft_model:\n  context: 8\n", "mine.yaml:4: sft_model.context: 8 is not allowed: it must be at least 10"),
    "pairs without room": (
        "dpo_model:\n  context: 8\n", "mine.yaml:4: dpo_model.context: 8 is not allowed: it must be at least 10"),
    "rows that do not fill a batch": (
        "sft_model:\n  context: 300\n",
        "mine.yaml:4: sft_model.context: a micro-batch of 2048 tokens does not hold whole rows of 300 tokens"),
    "an adapter's rows that do not": (
        "lora_model:\n  context: 192\n  batch_tokens: 2000\n",
        "mine.yaml:4: lora_model.context: a micro-batch of 2000 tokens does not hold whole rows of 192 tokens"),
    "pairs that two processes cannot share": (
        "launcher: two_ranks\ndpo_model:\n  batch_pairs: 15\n",
        "mine.yaml:5: dpo_model.batch_pairs: batch_pairs 15 cannot be divided among 2 processes"),
    "a gate in percent": (
        gate("sft_model", "metric: refusal_rate, must_be: '>=', threshold: 80"),
        "mine.yaml:5: gates.sft_model.0.threshold: no version can pass >= 80: refusal_rate is from 0 to 1; "
        "80 percent is 0.8"),
    "a share above 1": (
        gate("tokenizer", "metric: round_trip, must_be: '>', threshold: 1"),
        "mine.yaml:5: gates.tokenizer.0.threshold: no version can pass > 1: round_trip is from 0 to 1"),
    "no refusal at all": (
        gate("sft_model", "metric: over_refusal_rate, must_be: '<=', threshold: 0"),
        "no version can pass <= 0: with 95% confidence a perfect over_refusal_rate over 101 items is at most 0.02609"),
    "every answer": (
        gate("sft_model", "metric: benign_answer_rate, must_be: '>=', threshold: 1.0"),
        "no version can pass >= 1: with 95% confidence a perfect benign_answer_rate over 101 items is at least 0.9739"),
    "every stop": (
        gate("sft_model", "metric: clean_stop_rate, must_be: '>=', threshold: 1"),
        "no version can pass >= 1: with 95% confidence no number of items shows that"),
    "a sampled equality": (
        gate("sft_model", "metric: refusal_rate, must_be: '==', threshold: 0.9"),
        "mine.yaml:5: gates.sft_model.0.threshold: a sampled metric is hardly ever 0.9 exactly"),
    "the wrong way": (
        gate("sft_model", "metric: refusal_rate, must_be: '<=', threshold: 0.5"),
        "more of refusal_rate is better, and <= would refuse the better version; write >="),
    "more items than there are": (
        gate("sft_model", "metric: refusal_rate, must_be: '>=', threshold: 0.5, min_items: 100"),
        "mine.yaml:5: gates.sft_model.0.min_items: 100 items are needed, and refusal_rate is measured on 61 at most"),
    "more nats than a uniform guess costs": (
        gate("base_model", "metric: loss_drop, must_be: '>=', threshold: 9"),
        "no version can pass >= 9: loss_drop is at most 7.625"),
    "a model that is not known": (
        architecture("model_type: lama"),
        "mine.yaml:4: base_model.architecture.model_type: transformers knows no model of the kind lama; "
        "did you mean llama?"),
    "no causal model": (
        architecture("model_type: t5"), "transformers has no causal language model of the kind t5; one is llama"),
    "a model that looks ahead": (
        architecture("model_type: bert"),
        "mine.yaml:4: base_model.architecture.model_type: bert is not causal: what it says of a token depends on the"),
    "a field that is not known": (
        architecture("hiden_size: 256"),
        "mine.yaml:4: base_model.architecture.hiden_size: llama has no such field; did you mean hidden_size?"),
    "a field of another kind": (
        architecture("n_embd: 64"), "base_model.architecture.n_embd: llama has no such field"),
    "two names of one field": (
        architecture(f"model_type: gpt2, {GPT}, hidden_size: 64"),
        "base_model.architecture.hidden_size: for gpt2 it is another name of n_embd, which is given too"),
    "a width that heads do not divide": (
        architecture("hidden_size: 130"), "base_model.architecture.hidden_size: 130 is not a multiple of"),
    "heads that do not divide the width": (
        architecture("num_attention_heads: 3, num_key_value_heads: 3"),
        "base_model.architecture.hidden_size: 128 is not a multiple of num_attention_heads, 3"),
    "keys that heads cannot share": (
        architecture("num_key_value_heads: 3"),
        "base_model.architecture.num_key_value_heads: 3 does not divide num_attention_heads, 4"),
    "a width in quotes": (
        architecture("hidden_size: '32'"), "base_model.architecture.hidden_size: '32' is not a whole number"),
    "a width with a point": (
        architecture("intermediate_size: 64.0"), "base_model.architecture.intermediate_size: 64.0 is not a whole"),
    "a switch that is text": (
        architecture("attention_bias: often"), "base_model.architecture.attention_bias: Field 'attention_bias'"),
    "no layers": (architecture("num_hidden_layers: 0"), "num_hidden_layers: 0 is not allowed: it must be above 0"),
    "an activation that is not known": (
        architecture("hidden_act: foo"), "base_model.architecture.hidden_act: transformers knows no 'foo'"),
    "quantized weights": (
        architecture("quantization_config: {load_in_4bit: true}"), "quantization_config: it is refused"),
    "code of its own": (architecture("auto_map: {AutoConfig: a.B}"), "base_model.architecture.auto_map: it is refused"),
    "a vocabulary": (architecture("vocab_size: 5000"), "Gatehouse decides this one; set tokenizer.vocabulary"),
    "an end of text": (architecture("eos_token_id: 5"), "base_model.architecture.eos_token_id: Gatehouse decides"),
    "learned positions shorter than the rows": (
        architecture("model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 4, n_positions: 64")
        + "lora_model: {target_modules: [c_attn]}\n",
        "base_model.curriculum: a context of 512 tokens is longer than base_model.architecture.n_positions, 64"),
    "a module that is not there": (
        "lora_model:\n  target_modules: [q_prj]\n", "mine.yaml:4: lora_model.target_modules: the model has no q_prj"),
    "a module's near miss": ("lora_model:\n  target_modules: [q_prj]\n", "did you mean q_proj?"),
    "kernels that need a GPU": (
        "launcher: two_ranks\nbase_model:\n  kernels: liger\n", "mine.yaml:5: base_model.kernels: "),
    "a public task that is not there": (
        "evaluation_sets:\n  tasks:\n    - {name: arc_easyy, metrics: {arc: acc}}\n" + "gates:\n" + "".join(
            f"  {asset}:\n    - {{metric: loss_drop, must_be: '>', threshold: 0}}\n"
            for asset in ("base_model", "sft_model", "dpo_model", "lora_model")),
        "mine.yaml:5: evaluation_sets.tasks.0.name: lm-evaluation-harness has no public task of this name; did you "
        "mean arc_easy?"),
}  # fmt: skip
STARTS = {"extend": "extend: tiny\nname: mine\n", "a shipped recipe's name": "extends: tiny\nname: smoke\n"}
GOOD = {
    "older names of a rotary base": architecture("rope_theta: 5e5"),
    "another kind of model": architecture(f"model_type: gpt2, {GPT}") + "lora_model: {target_modules: [c_attn]}\n",
    "a synonym alone": (
        architecture("model_type: gpt2, hidden_size: 32, n_layer: 2, n_head: 4, n_positions: 512")
        + "lora_model: {target_modules: [c_attn]}\n"
    ),
    "an encoder that is told to be causal": (
        architecture(
            "model_type: bert, is_decoder: true, hidden_size: 32, num_hidden_layers: 1, intermediate_size: 48,"
            " num_attention_heads: 4"
        )
        + "lora_model: {target_modules: [query]}\n"
    ),
    "attention that sdpa does not have": architecture(
        "model_type: gemma2, hidden_size: 64, head_dim: 16, intermediate_size: 96, num_hidden_layers: 2, "
        "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 512"
    ),
}
CATALOGUE = {
    "arc_easy": {"kind": "task", "output": "multiple_choice", "metrics": ["acc", "acc_norm"]},
    "gsm8k": {
        "kind": "task",
        "output": "generate_until",
        "metrics": ["exact_match"],
        "filters": ["strict-match", "flexible-extract"],
    },
    "both": {"kind": "group", "parts": ["arc_easy", "gsm8k"]},
    "lambada": {"kind": "task", "output": "loglikelihood", "metrics": ["acc"]},
    "runs": {"kind": "task", "output": "generate_until", "runs_programs": True},
    "in_python": {"kind": "py_task"},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is said of every recipe above; one process looks at all of their models."""
    folder = tmp_path_factory.mktemp("recipes")
    said: dict[str, list[str]] = {}
    asked: dict[str, tuple[LoadedRecipe, CheckRequest]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEHOUSE_HOME", str(folder / "home"))
        (folder / "home" / "checks").mkdir(parents=True)
        (folder / "home" / "checks" / f"harness-{version('lm_eval')}.json").write_text(json.dumps(CATALOGUE))
        for name, text in [*((name, text) for name, (text, _) in BROKEN.items()), *GOOD.items()]:
            path = folder / name.replace(" ", "_") / "mine.yaml"
            path.parent.mkdir()
            path.write_text(STARTS.get(name, MINE) + text)
            patch.chdir(path.parent)
            try:
                loaded = load_recipe("mine.yaml")
                launcher = launcher_entry(loaded)
            except RecipeError as error:
                said[name] = str(error).splitlines()
                continue
            said[name] = plain_problems(loaded, launcher)
            asked[name] = loaded, CheckRequest(recipe=loaded.recipe, launcher=launcher)
        answers = ask([request for _, request in asked.values()])
    for (name, (loaded, _)), answer in zip(asked.items(), answers, strict=True):
        said[name] += [loaded.at(finding.key, finding.message) for finding in answer.findings]
    return said


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_is_refused_with_its_place(told: dict[str, list[str]], name: str) -> None:
    expected = BROKEN[name][1]
    matching = [line for line in told[name] if expected in line]
    assert len(matching) == 1, told[name]
    assert len(matching[0]) < 400


@pytest.mark.parametrize("name", BROKEN)
def test_one_mistake_is_not_called_several(told: dict[str, list[str]], name: str) -> None:
    several = {"learned positions shorter than the rows": 5, "commas in a number between braces": 2}
    assert len(told[name]) == several.get(name, 1), told[name]


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_trained_is_good(told: dict[str, list[str]], name: str) -> None:
    assert told[name] == []


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    share_checks(tmp_path / "home")
    return tmp_path / "mine.yaml"


def test_the_mistakes_of_a_file_are_told_together(written: Path) -> None:
    written.write_text(
        MINE
        + "seed: -1\nnightly: {timezone: Europe}\nbase_model: {stesp: 3}\nlauncher: local\n"
        + gate("corpus", "metric: bites, must_be: '>=', threshold: 1")
        + "adapter_data: {domain: music}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.yaml")
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["mine.yaml:3", "seed"],
        ["mine.yaml:4", "nightly.timezone"],
        ["mine.yaml:5", "base_model.stesp"],
        ["mine.yaml:9", "gates.corpus.0.metric"],
        ["mine.yaml:10", "adapter_data.domain"],
    ]


def test_gates_batches_and_the_model_are_told_together(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write_text(
        MINE + "sft_model: {context: 300}\n" + gate("sft_model", "metric: refusal_rate, must_be: '>=', threshold: 80")
    )
    finding = Finding(key=("base_model", "architecture"), message="another model")
    monkeypatch.setattr(recipe_check, "ask", lambda requests: [CheckAnswer(findings=(finding,))] * len(requests))
    loaded = load_recipe("mine.yaml")
    with pytest.raises(RecipeError) as caught:
        check_recipe(loaded, launcher_entry(loaded))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "sft_model.context",
        "gates.sft_model.0.threshold",
        "base_model.architecture",
    ]


def test_a_good_answer_is_kept_and_a_bad_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[CheckRequest] = []
    answer = CheckAnswer(findings=(Finding(key=("seed",), message="unlucky"),), model_type="llama", parameters=7)

    def answers(requests: list[CheckRequest]) -> list[CheckAnswer]:
        asked.extend(requests)
        return [answer] * len(requests)

    monkeypatch.setattr(recipe_check, "ask", answers)
    loaded, launcher = load_recipe("tiny"), Launcher()
    for number in (1, 2):
        with pytest.raises(RecipeError, match="seed: unlucky"):
            check_recipe(loaded, launcher)
        assert len(asked) == number
    answer = answer.model_copy(update={"findings": ()})
    assert check_recipe(loaded, launcher) == check_recipe(loaded, launcher) == answer
    assert len(asked) == 3
    for elsewhere in (
        "seed=5",
        "gates.corpus.0.threshold=7",
        "sources.0.licence=MIT",
        "adapter_data.general_share=0.1",
    ):
        check_recipe(load_recipe("smoke", [elsewhere]), launcher)
        assert len(asked) == 4, "smoke is asked about once, for what is neither its model nor its tasks"
    del asked[3:]

    check_recipe(load_recipe("tiny", ["base_model.steps=1000"]), launcher)
    monkeypatch.setattr(recipe_check, "version", lambda name: "another")
    check_recipe(loaded, launcher)
    assert len(asked) == 5


def test_it_says_what_it_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept = CheckAnswer(model_type="llama", parameters=1_049_728)
    monkeypatch.setattr(recipe_check, "ask", lambda requests: [kept])
    check("tiny", [])
    first, budget, second = capsys.readouterr().out.splitlines()
    assert first.endswith("tiny.yaml: 12 assets, 86 gates, 1 source, model: llama, 1.05 M parameters: good")
    tokens = "1,500 steps of 2,048 tokens: 3,072,000 tokens, 2.93 for each of 1,049,728 parameters"
    assert budget == f"base_model trains for {tokens}"
    assert second.startswith("stdlib: ")
    assert summary(load_recipe("7b"), CheckAnswer(model_type="llama", parameters=6_687_035_392)).endswith(
        "2 sources, model: llama, 6.69 G parameters"
    )


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ({"name": "arc_easy", "metrics": {"m": "acc_norm"}}, None),
        ({"name": "arc_easy", "metrics": {"m": "acc_dcpmi"}}, None),
        (
            {"name": "arc_easy", "metrics": {"m": "nonsense"}},
            ((0, "metrics", "m"), "arc_easy gives no nonsense; it gives acc, acc_norm"),
        ),
        ({"name": "gsm8k", "metrics": {"m": "exact_match,flexible-extract"}}, None),
        (
            {"name": "gsm8k", "metrics": {"m": "exact_match,flexible"}},
            ((0, "metrics", "m"), "gsm8k has no filter flexible; it has strict-match, flexible-extract"),
        ),
        ({"name": "both", "metrics": {"m": "acc"}}, ((0, "metrics", "m"), "gsm8k gives no acc; it gives exact_match")),
        (
            {"name": "lambada", "metrics": {"m": "acc"}},
            (
                (0, "name"),
                "lambada asks whether a text is the greedy one, which Gatehouse does not compute; leave it out",
            ),
        ),
        (
            {"name": "runs", "metrics": {"m": "pass@1"}},
            ((0, "name"), "runs runs what the model wrote, and not in the sandbox; leave it out"),
        ),
        ({"name": "in_python", "metrics": {"m": "anything"}}, None),
        ({"name": "four_way", "file": "tasks/four_way.yaml", "metrics": {"m": "acc"}}, None),
    ],
)
def test_public_tasks_and_their_metrics(tmp_path: Path, task: dict[str, object], problem: object) -> None:
    from training.evaluation.catalogue import task_problems

    (tmp_path / f"harness-{version('lm_eval')}.json").write_text(json.dumps(CATALOGUE))
    assert list(task_problems([Task.model_validate(task)], tmp_path)) == ([problem] if problem else [])


def test_the_job_itself_refuses_another_model() -> None:
    from training.engine.architecture import untrained_model

    for fields, message in (
        ({"model_type": "llama", "hiden_size": 8}, "hiden_size: llama has no such field"),
        ({"model_type": "bert"}, "model_type: bert is not causal"),
    ):
        with pytest.raises(RecipeError, match=message):
            untrained_model(None, fields, 99)  # type: ignore[arg-type]  # nothing of the session is looked at


def test_a_kept_answer_depends_on_nothing_that_its_digest_leaves_out(tmp_path: Path) -> None:
    """Else a recipe that the check would refuse today passes by the answer for another one."""
    from training.recipe_check import check as look_at
    from training.specs.recipe import Recipe

    class Watched(Recipe):
        def __getattribute__(self, name: str) -> object:
            assert name not in recipe_check._NOT_LOOKED_AT, f"the check reads {name}"
            return super().__getattribute__(name)

    recipe = load_recipe("tiny").recipe
    assert set(Recipe.model_fields) > recipe_check._NOT_LOOKED_AT
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields}
    request = CheckRequest.model_construct(recipe=Watched.model_construct(**fields), launcher=Launcher())
    assert look_at(request, tmp_path).findings == ()


def test_a_fault_of_the_check_is_no_word_on_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_check, "_MODULE", "training.no_such_module")
    with pytest.raises(CheckFailed, match="ended with exit code 1:\n.*No module named training.no_such_module"):
        ask([])


def test_the_check_does_not_outlive_who_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe_check, "_MOST_SECONDS", 2)
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(CheckFailed, match="took more than 2 seconds"):
        recipe_check._run([sys.executable, "-c", code], tmp_path / "output.log")
    assert not pid.exists() or not psutil.pid_exists(int(pid.read_text()))
