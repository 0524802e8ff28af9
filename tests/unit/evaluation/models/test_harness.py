"""lm-evaluation-harness on real small models: what it scores, and what a task may not do."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.recipes.loader import FOLDER, available, load_recipe
from tests.unit.evaluation.models.conftest import (
    COLOUR_OF,
    COLOURS,
    NAMES,
    copy_of,
    question,
    write_sets,
)
from training.errors import InputRefused, RecipeError
from training.evaluation.harness import TaskResult, read_tasks, run_tasks, task_metrics
from training.evaluation.harness_limits import OutOfTime, sandbox_templates, time_limit
from training.evaluation.models import LoadedModel
from training.evaluation.scoring import Span, score, score_texts, total
from training.specs.evaluation import EvaluationSection
from training.specs.tasks import Task, read_task_file

SECTION = EvaluationSection(context=192, max_new_tokens=24)
FOUR_WAY = (FOLDER / "tasks" / "four_way.yaml").read_text()
Row = dict[str, Any]


def rows(count: int = 8) -> list[Row]:
    """Questions about the toy language; the choices keep their order, so the right one moves."""
    names = [NAMES[number % len(NAMES)] for number in range(count)]
    return [
        {
            "id": f"q{number}",
            "prompt": question(name),
            "answer": COLOURS.index(COLOUR_OF[name]),
            "choices": [f"The hat of {name} is {colour}." for colour in COLOURS],
            "domain": "general",
        }
        for number, name in enumerate(names)
    ]


def suite_of(folder: Path, tasks: list[Task], files: dict[str, str], questions: list[Row] | None = None) -> Path:
    """Evaluation sets with tasks, as the stage writes them."""
    suite = write_sets(folder)
    (suite / "tasks").mkdir(exist_ok=True)
    (suite / "tasks" / "tasks.json").write_text(json.dumps([task.model_dump() for task in tasks]))
    for name, text in files.items():
        (suite / "tasks" / f"{name}.yaml").write_text(text)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (rows() if questions is None else questions)]
    (suite / "tasks" / "general_questions.jsonl").write_text("".join(lines))
    return suite


def four_way(*keys: str, minutes: float = 5) -> Task:
    return Task(name="four_way", file="four_way.yaml", metrics={f"m_{key}": key for key in keys}, minutes=minutes)


Loaded = Callable[[str, LlamaForCausalLM], LoadedModel]


@pytest.fixture
def loaded(tokenizer: PreTrainedTokenizerFast) -> Loaded:
    stops = tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in ("<|endoftext|>", "<|end|>"))
    return lambda asset, model: LoadedModel(asset, model.eval(), tokenizer, stops)


def run(model: LoadedModel, suite: Path) -> dict[str, TaskResult]:
    return {result.metric: result for result in run_tasks(model, suite, SECTION, lambda _: None)}


def share(result: TaskResult) -> float:
    assert result.missing is None
    return float(sum(item["score"] for item in result.items)) / len(result.items)


@pytest.mark.parametrize("asset", ["base_model", "sft_model"])
def test_a_trained_model_answers_and_an_untrained_one_guesses(
    asset: str,
    tmp_path: Path,
    loaded: Loaded,
    base: LlamaForCausalLM,
    chat: LlamaForCausalLM,
    untrained: LlamaForCausalLM,
) -> None:
    suite = suite_of(tmp_path / "sets", [four_way("acc", "acc_norm", "acc_dcpmi")], {"four_way": FOUR_WAY})
    model = loaded(asset, chat if asset == "sft_model" else base)
    results = run(model, suite)
    assert share(results["m_acc"]) >= 0.75
    assert share(results["m_acc_dcpmi"]) >= 0.6
    assert share(run(loaded(asset, untrained), suite)["m_acc_dcpmi"]) <= 0.5
    assert run(model, suite) == results, "the same model gives the same items"
    for row, item in zip(rows(), results["m_acc_dcpmi"].items, strict=True):
        assert (item["id"], item["target"], item["choices"]) == (row["id"], row["answer"], row["choices"])
        assert item["score"] == (item["chosen"] == row["answer"])
        assert item["chosen"] == max(range(4), key=item["likelihoods"].__getitem__)
        assert row["prompt"] in item["prompt"]
        assert ("<|assistant|>" in item["prompt"]) == (asset == "sft_model")


def test_likelihoods_are_those_of_the_evaluations_own_scoring(
    tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM
) -> None:
    """`acc` takes a choice after its question. `acc_dcpmi` sets that against the next two questions, and the harness's
    `acc_mutual_info` against the end of a text."""
    model = loaded("sft_model", chat)
    file = FOUR_WAY.replace("metric: acc_norm", "metric: acc_mutual_info")
    results = run(
        model, suite_of(tmp_path / "sets", [four_way("acc", "acc_dcpmi", "acc_mutual_info")], {"four_way": file})
    )
    asked = rows()

    def nats(number: int, choice: str) -> float:
        prompt = model.prompt(asked[number % len(asked)]["prompt"], chat=True)
        return score(model, [Span(prompt, model.encode(choice))], 8, 192)[0].nats

    for number in (0, 7):
        row = asked[number]
        plain, conditional, mutual = (
            results[f"m_{key}"].items[number] for key in ("acc", "acc_dcpmi", "acc_mutual_info")
        )
        choice_nats = [nats(number, choice) for choice in row["choices"]]
        others = [(nats(number + 1, choice) + nats(number + 2, choice)) / 2 for choice in row["choices"]]
        assert plain["likelihoods"] == pytest.approx(choice_nats, abs=1e-3)
        gained = [conditional - reference for conditional, reference in zip(choice_nats, others, strict=True)]
        assert conditional["likelihoods"] == pytest.approx(gained, abs=1e-3)

        alone = [score(model, [Span([model.start], model.encode(choice))], 8, 192)[0].nats for choice in row["choices"]]
        gained = [conditional - reference for conditional, reference in zip(choice_nats, alone, strict=True)]
        assert mutual["likelihoods"] == pytest.approx(gained, abs=1e-3)
        assert mutual["likelihoods"] != conditional["likelihoods"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_an_item(
    separator: str, tmp_path: Path, loaded: Loaded, untrained: LlamaForCausalLM
) -> None:
    asked = rows(3)
    asked[1]["prompt"] = f"one{separator}two"
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {"four_way": FOUR_WAY}, [])
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in asked]
    (suite / "tasks" / "general_questions.jsonl").write_text("".join(lines), encoding="utf-8")

    items = run(loaded("base_model", untrained), suite)["m_acc"].items

    assert [item["prompt"] for item in items] == [row["prompt"] for row in asked]


def test_one_item_alone_is_set_against_the_end_of_a_text(
    tmp_path: Path, loaded: Loaded, untrained: LlamaForCausalLM
) -> None:
    file = FOUR_WAY.replace("metric: acc_norm", "metric: acc_mutual_info")
    tasks = [four_way("acc_dcpmi", "acc_mutual_info")]

    results = run(loaded("base_model", untrained), suite_of(tmp_path / "sets", tasks, {"four_way": file}, rows(1)))

    (conditional,), (mutual,) = results["m_acc_dcpmi"].items, results["m_acc_mutual_info"].items
    assert conditional["likelihoods"] == pytest.approx(mutual["likelihoods"], abs=1e-4)


def test_a_generated_answer_has_no_dcpmi(tmp_path: Path, loaded: Loaded, untrained: LlamaForCausalLM) -> None:
    yaml = FOUR_WAY.split("output_type")[0] + (
        'output_type: generate_until\ndoc_to_text: "{{prompt}}"\ndoc_to_target: "{{choices[answer]}}"\n'
        "generation_kwargs: {max_gen_toks: 2}\nmetric_list: [{metric: exact_match}]\n"
    )

    results = run(
        loaded("base_model", untrained), suite_of(tmp_path / "sets", [four_way("acc_dcpmi")], {"four_way": yaml})
    )

    assert "acc_dcpmi needs a multiple choice" in str(results["m_acc_dcpmi"].missing)


def test_line_ends_of_unicode_inside_an_item_do_not_end_its_row(
    tmp_path: Path, loaded: Loaded, untrained: LlamaForCausalLM
) -> None:
    odd = [row | {"prompt": f"A\u2028B\u0085C {row['prompt']}", "domain": "net\u2028work"} for row in rows()]
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {"four_way": FOUR_WAY}, odd)
    result = run(loaded("base_model", untrained), suite)["m_acc"]
    assert result.missing is None
    assert [item["id"] for item in result.items] == [row["id"] for row in odd]


def test_a_tie_is_wrong(
    tmp_path: Path, loaded: Loaded, tokenizer: PreTrainedTokenizerFast, base: LlamaForCausalLM
) -> None:
    """A model that finds every token equally likely; the harness alone would take the first choice, the right one."""
    blank = copy_of(base, tokenizer)
    with torch.no_grad():
        blank.lm_head.weight.zero_()
    tied = [{**row, "answer": 0, "choices": ["red", "red.", "red", "red"]} for row in rows()]
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {"four_way": FOUR_WAY}, tied)
    results = run(loaded("base_model", blank), suite)
    items = results["m_acc"].items
    assert all(item["chosen"] == item["target"] == 0 for item in items)
    assert share(results["m_acc"]) == 0


def test_generated_answers_and_whole_texts(tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM) -> None:
    said_yaml = FOUR_WAY.split("test_split")[0].replace("four_way", "said") + (
        'test_split: test\noutput_type: generate_until\ndoc_to_text: "{{prompt}}"\n'
        'doc_to_target: "{{choices[answer]}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 24}\n'
        "metric_list: [{metric: exact_match}]\n"
    )
    whole = (
        "task: whole\ndataset_path: json\ndataset_kwargs: {data_files: {test: ../text.jsonl}}\ntest_split: test\n"
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n"
    )
    tasks = [
        Task(name="said", file="said.yaml", metrics={"said": "exact_match"}),
        Task(name="whole", file="whole.yaml", metrics={"whole": "bits_per_byte"}, limit=3),
    ]
    asked = [{**row, "choices": [choice.removesuffix(".") for choice in row["choices"]]} for row in rows()]
    suite = suite_of(tmp_path / "sets", tasks, {"said": said_yaml, "whole": whole}, asked)

    model = loaded("sft_model", chat)
    results = run(model, suite)
    assert share(results["said"]) >= 0.75
    assert all(item["answer"].startswith("The hat of") and "." not in item["answer"] for item in results["said"].items)

    texts = [json.loads(line)["text"] for line in (suite / "text.jsonl").read_text().splitlines()][:3]
    whole_score = total([part for parts in score_texts(model, texts, 8, 192) for part in parts.values()])
    items = results["whole"].items
    assert len(items) == 3
    assert sum(item["weight"] for item in items) == whole_score.bytes
    assert sum(item["score"] for item in items) == pytest.approx(whole_score.nats / math.log(2), rel=1e-4)


def test_a_task_past_its_limit_is_missing_and_the_next_one_runs(
    tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM
) -> None:
    slow = FOUR_WAY.replace("general_questions", "many").replace("four_way", "slow")
    tasks = [Task(name="slow", file="slow.yaml", metrics={"slow": "acc"}, minutes=0.02), four_way("acc")]
    suite = suite_of(tmp_path / "sets", tasks, {"slow": slow, "four_way": FOUR_WAY})
    (suite / "tasks" / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20_000)))

    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 120)
    try:
        started = time.monotonic()
        results = run(loaded("sft_model", chat), suite)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        took = time.monotonic() - started
        assert left == pytest.approx(120 - took, abs=2), "an alarm that was set before is set again"
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)

    assert rung, "the handler that was there before is there again"
    assert results["slow"].missing == "the task slow ran past its limit of 0.02 minutes"
    assert share(results["m_acc"]) > 0


def test_the_limit_is_not_swallowed_by_a_library_that_catches_everything() -> None:
    def deaf() -> None:
        for _ in range(100):
            with contextlib.suppress(Exception):
                time.sleep(0.05)

    with pytest.raises(OutOfTime), time_limit(0.2):
        deaf()
    time.sleep(1.2)  # the repeated alarm is off


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit])
def test_an_interruption_ends_the_evaluation(
    tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    def interrupted(**_: object) -> None:
        raise fault

    monkeypatch.setattr(chat, "forward", interrupted)
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {"four_way": FOUR_WAY})
    with pytest.raises(fault):
        run(loaded("sft_model", chat), suite)


def test_one_tasks_error_leaves_the_others(tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM) -> None:
    broken = FOUR_WAY.replace("{{prompt}}", "{{promt}}").replace("four_way", "broken")
    empty = FOUR_WAY.replace("general_questions", "empty").replace("four_way", "empty")
    tasks = [
        Task(name="broken", file="broken.yaml", metrics={"broken": "acc"}),
        Task(name="empty", file="empty.yaml", metrics={"empty": "acc"}),
        Task(name="nowhere", metrics={"nowhere": "acc"}),
        four_way("acc", "f1_of_it"),
    ]
    suite = suite_of(tmp_path / "sets", tasks, {"broken": broken, "empty": empty, "four_way": FOUR_WAY})
    (suite / "tasks" / "empty.jsonl").write_text("")

    results = run(loaded("sft_model", chat), suite)
    assert "'promt' is undefined" in str(results["broken"].missing)
    assert results["empty"].missing == "the task empty: empty.jsonl of the evaluation sets holds no items"
    assert "has no public task of this name" in str(results["nowhere"].missing)
    assert "gives no f1_of_it; it gives acc" in str(results["m_f1_of_it"].missing)
    assert share(results["m_acc"]) > 0


def test_a_public_task_without_its_data_is_missing(
    tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tasks = [Task(name="wikitext", metrics={"wikitext": "bits_per_byte"}), four_way("acc")]
    results = run(loaded("sft_model", chat), suite_of(tmp_path / "sets", tasks, {"four_way": FOUR_WAY}))
    assert "the task wikitext: its data could not be had from huggingface.co" in str(results["wikitext"].missing)
    assert "EleutherAI/wikitext_document_level" in str(results["wikitext"].missing)
    assert share(results["m_acc"]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("doc_to_target: answer", "doc_to_target: !function utils.steal"), "the tag !function is refused"),
        (("doc_to_target: answer", "doc_to_target: !!python/object/apply:os.system [ls]"), "is refused: a local task"),
        (("metadata:", "include: ../../other.yaml\nmetadata:"), "include: this key is not allowed: a local"),
        (("metadata:", "class: Mine\nmetadata:"), "class: this key is not allowed"),
        (("metadata:", "process_docs: utils.f\nmetadata:"), "process_docs: this key is not allowed"),
        (("metadata:", "unsafe_code: true\nmetadata:"), "unsafe_code: this key is not allowed"),
        (("metadata:", "use_prompt: promptsource:a\nmetadata:"), "use_prompt: this key is not allowed"),
        (("dataset_path: json", "dataset_path: evil/dataset"), "dataset_path: Input should be 'json'"),
        (("general_questions.jsonl", "/etc/passwd"), "dataset_kwargs.data_files.test: String should match"),
        (("general_questions.jsonl", "../../../secrets.jsonl"), "dataset_kwargs.data_files.test: String should match"),
        (("  data_files:", "  trust_remote_code: true\n  data_files:"), "dataset_kwargs.trust_remote_code: this key"),
        (("metric: acc_norm", "metric: code_eval"), "metric_list.1.metric: Input should be 'acc'"),
        (("metric: acc_norm", "metric: acc_norm\n    hf_evaluate: true"), "metric_list.1.hf_evaluate: this key"),
        (("{{prompt}}", "{{ ''.__class__.__mro__ }}"), "doc_to_text: a template holds fields"),
        (("{{prompt}}", "{{ prompt|attr('format') }}"), "doc_to_text: a template holds fields"),
        (("{{prompt}}", "{% include 'x' %}"), "doc_to_text: a template holds fields"),
        (("metric: acc_norm", "metric: bits_per_byte"), "metric_list: multiple_choice has the metrics"),
        (("doc_to_choice", "# doc_to_choice"), "doc_to_choice: it is needed for multiple_choice"),
        (("task: four_way", "- task"), "this is not YAML"),
    ],
)
def test_a_local_task_runs_no_code(
    change: tuple[str, str], message: str, tmp_path: Path, loaded: Loaded, chat: LlamaForCausalLM
) -> None:
    assert change[0] in FOUR_WAY
    path = tmp_path / "four_way.yaml"
    path.write_text(FOUR_WAY.replace(*change))
    with pytest.raises(RecipeError) as caught:
        read_task_file(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    # The job looks again: a file that was put into the evaluation sets in another way does not run either.
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {"four_way": path.read_text()})
    results = run(loaded("sft_model", chat), suite)
    assert message in str(results["m_acc"].missing)


def test_the_problem_of_a_task_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FOUR_WAY.replace("metric: acc_norm", "metric: beauty"))
    line = path.read_text().splitlines().index("  - metric: beauty") + 1
    with pytest.raises(RecipeError, match=f"mine.yaml:{line}: metric_list.1.metric: "):
        read_task_file(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_task_file(tmp_path / "none.yaml")


def test_templates_are_rendered_in_the_sandbox() -> None:
    from lm_eval import utils

    attack = "{{ items.__init__.__globals__ }}"
    assert "__builtins__" in jinja2.Environment().from_string(attack).render(items=random.Random), "it works elsewhere"
    sandbox_templates()
    with pytest.raises(jinja2.exceptions.SecurityError):
        utils.apply_template(attack, {"items": random.Random})
    with pytest.raises(jinja2.exceptions.SecurityError):
        utils.apply_template("{{ items.append(1) }}", {"items": []})
    assert utils.apply_template("{{ text.strip() }}", {"text": " as before "}) == "as before"


def test_a_damaged_list_of_tasks_is_refused(tmp_path: Path) -> None:
    suite = suite_of(tmp_path / "sets", [four_way("acc")], {})
    assert [task.name for task in read_tasks(suite)] == ["four_way"]
    assert task_metrics(suite) == {"m_acc": "acc of lm-evaluation-harness's task four_way"}
    (suite / "tasks" / "tasks.json").write_text("[{}]")
    with pytest.raises(InputRefused, match="is no list of tasks"):
        read_tasks(suite)
    (suite / "tasks" / "tasks.json").unlink()
    with pytest.raises(InputRefused, match="materialize evaluation_sets again"):
        read_tasks(suite)


def test_public_tasks_of_the_recipes_exist_with_their_metrics() -> None:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    index = TaskManager().task_index

    def leaves(name: str) -> list[dict[str, Any]]:
        entry = index[name]
        if not isinstance(entry.cfg and entry.cfg.get("task"), list):
            names = [name] if entry.yaml_path else sorted(entry.tags)
            return [load_yaml(index[leaf].yaml_path, resolve_func=False) for leaf in names]
        return [leaf for part in entry.cfg["task"] for leaf in leaves(part if isinstance(part, str) else part["task"])]

    named = {task.name: task for recipe in available() for task in load_recipe(recipe).recipe.evaluation_sets.tasks}
    public = {name: task for name, task in named.items() if task.file is None}
    assert {
        "wikitext",
        "boolq",
        "arc_easy",
        "arc_challenge",
        "hellaswag",
        "mmlu",
        "gsm8k",
        "ifeval",
        "humaneval_instruct",
    } == set(public)
    for name, task in public.items():
        configs = leaves(name)
        assert len(configs) == (57 if name == "mmlu" else 1)
        for config in configs:
            assert config["output_type"] != "loglikelihood"
            if config.get("unsafe_code"):
                assert (name, task.metrics) == ("humaneval_instruct", {"humaneval_pass_rate": "pass@1"})
                continue  # test_programs.py runs it
            for key in task.metrics.values():
                metric, _, chosen = key.partition(",")
                assert metric in [entry["metric"] for entry in config["metric_list"]]
                assert not chosen or chosen in [entry["name"] for entry in config["filter_list"]]


def test_the_harness_is_loaded_for_tasks_only(tmp_path: Path) -> None:
    code = (
        "import sys; import training.stages.evaluate_model, training.evaluation.harness, pipeline.definitions; "
        "print('lm_eval' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=FOLDER.parent,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == "False"
