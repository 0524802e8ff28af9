"""Evaluation tasks in a recipe: what is refused, what their files become, and what they must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.building.planner import code_version
from pipeline.graph import EXCLUSIONS, KINDS
from pipeline.recipes.loader import FOLDER, load_recipe
from tests.unit.data.conftest import Pipeline
from tests.unit.data.test_stages import CORPUS, EVALUATION, STDLIB, prompts
from training.errors import RecipeError
from training.evaluation.harness import read_tasks
from training.specs.artifacts import content_digest

MINE = "extends: tiny\nname: mine\nevaluation_sets:\n  tasks:\n"
FOUR_WAY = (FOLDER / "tasks" / "four_way.yaml").read_text()
LOCAL = "    - {name: four_way, file: four.yaml, metrics: {choice_accuracy_dcpmi: acc_dcpmi}}\n"
GATES = "gates:\n" + "".join(
    f"  {asset}:\n    - {{metric: loads, must_be: '==', threshold: 1}}\n" for asset in KINDS if asset.endswith("_model")
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "four.yaml").write_text(FOUR_WAY)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: wikitext, metrics: {wiki: word_perplexity}}", "0.metrics: word_perplexity is no mean over items"),
        ("{name: boolq, metrics: {BoolQ: acc}}", "0.metrics: a metric's name is lower-case"),
        ("{name: boolq, metrics: {}}", "tasks.0.metrics"),
        ("{name: boolq, metrics: {loads: acc}}", "0.metrics.loads: models have a metric of this name already"),
        ("{name: boolq, metrics: {heldout_bits_per_byte__stdlib: acc}}", "models have a metric of this name already"),
        ("{name: boolq, metrics: {boolq: acc}, minutes: 0}", "0.minutes: 0 is not allowed: it must be above 0"),
        ("{name: boolq, metrics: {boolq: acc}, limit: 0}", "0.limit: 0 is not allowed"),
        ("{name: boolq, metrics: {boolq: acc}, trust_remote_code: true}", "trust_remote_code: there is no such key"),
        (
            "{name: boolq, metrics: {a: acc}}\n    - {name: boolq, metrics: {b: acc}}",
            "mine.yaml:6: evaluation_sets.tasks.1.name: there is a task boolq already",
        ),
        (
            "{name: boolq, metrics: {a: acc}}\n    - {name: arc_easy, metrics: {a: acc}}",
            "mine.yaml:6: evaluation_sets.tasks.1.metrics.a: the task boolq gives a metric of this name already",
        ),
    ],
)
def test_a_wrong_task_is_named_with_its_place(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, f"{MINE}    - {entry}\n{GATES}"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (
            LOCAL,
            ("doc_to_target: answer", "doc_to_target: !function utils.f"),
            "four.yaml:13: the tag !function is refused",
        ),
        (
            LOCAL,
            ("output_type", "process_results: utils.f\noutput_type"),
            "four.yaml:10: process_results: this key is not",
        ),
        (
            LOCAL.replace("four_way", "five_way"),
            ("", ""),
            "mine.yaml:5: evaluation_sets.tasks.0.name: four.yaml describes the task four_way, not five_way",
        ),
        (
            LOCAL.replace("acc_dcpmi", "bits_per_byte"),
            ("", ""),
            "mine.yaml:5: evaluation_sets.tasks.0.metrics.choice_accuracy_dcpmi: four.yaml gives no bits_per_byte; "
            "it gives acc, acc_norm, acc_dcpmi",
        ),
        (
            LOCAL.replace("four.yaml", "none.yaml"),
            ("", ""),
            "mine.yaml:5: evaluation_sets.tasks.0.file: there is no file 'none.yaml' in",
        ),
    ],
)
def test_a_local_file_is_looked_at_before_anything_runs(
    tmp_path: Path, line: str, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "four.yaml").write_text(FOUR_WAY.replace(*change) if change[0] else FOUR_WAY)
    loaded = load_recipe(written(tmp_path, MINE + line + GATES))
    with pytest.raises(RecipeError) as caught:
        loaded.files("evaluation_sets")
    assert message in str(caught.value)


def test_a_task_gives_every_model_its_metric_and_a_gate_may_name_it(tmp_path: Path) -> None:
    gate = GATES.replace(
        "{metric: loads, must_be: '==', threshold: 1}",
        "{metric: boolq, must_be: '>=', threshold: 0.5, champion_margin: 0.05}",
        1,
    )
    recipe = load_recipe(
        written(tmp_path, f"{MINE}    - {{name: boolq, metrics: {{boolq: acc}}, about: Yes or no.}}\n" + gate)
    ).recipe
    assert [gate.metric for gate in recipe.gates["base_model"]] == ["boolq"]
    assert all(recipe.metrics(asset)["boolq"] == "Yes or no." for asset in KINDS if asset.endswith("_model"))
    assert "boolq" not in recipe.metrics("corpus")


def test_tasks_change_the_evaluation_sets_and_nothing_that_is_trained(tmp_path: Path) -> None:
    plain = load_recipe("tiny")
    more = load_recipe(
        written(
            tmp_path,
            "extends: tiny\nname: more\nevaluation_sets:\n  tasks:\n"
            + LOCAL
            + "    - {name: domain_four_way, file: tasks/domain_four_way.yaml, "
            "metrics: {domain_choice_accuracy_dcpmi: acc_dcpmi}}\n" + "    - {name: boolq, metrics: {boolq: acc}}\n",
        )
    )
    changed = [asset for asset in plain.graph if code_version(asset, plain) != code_version(asset, more)]
    assert changed == ["evaluation_sets"]
    # What is made further down depends on one file of them.
    parts = {node.inputs["evaluation_sets"] for node in plain.graph.values() if "evaluation_sets" in node.inputs}
    assert parts == {EXCLUSIONS}


def test_the_suite_holds_its_tasks_and_its_digest_covers_them(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    files = prompts(tmp_path)["eval"]
    pipeline.run("raw_corpus", {"sources": [STDLIB]})
    pipeline.run("corpus", CORPUS, ("raw_corpus",))
    pipeline.run("evaluation_sets", EVALUATION, ("corpus",), files)
    without = pipeline.promoted("evaluation_sets")

    def with_tasks(text: str) -> Path:
        (tmp_path / "four.yaml").write_text(text)
        tasks = [
            {"name": "four_way", "file": "four.yaml", "metrics": {"choice_accuracy_dcpmi": "acc_dcpmi"}},
            {"name": "boolq", "metrics": {"boolq": "acc"}, "limit": 100},
        ]
        return pipeline.run(
            "evaluation_sets",
            EVALUATION | {"tasks": tasks},
            ("corpus",),
            files | {"tasks.0.file": tmp_path / "four.yaml"},
        )

    folder = with_tasks(FOUR_WAY)
    first = pipeline.promoted("evaluation_sets")
    assert (folder / "tasks" / "four_way.yaml").read_text() == FOUR_WAY
    assert [(task.name, task.limit) for task in read_tasks(folder)] == [("four_way", None), ("boolq", 100)]
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    for name, general in (("general", True), ("domain", False)):
        rows = [json.loads(line) for line in (folder / "tasks" / f"{name}_questions.jsonl").read_text().splitlines()]
        assert rows == [row for row in questions if (row["domain"] == "general") == general]
        assert rows
    with_tasks(FOUR_WAY.replace("  - metric: acc_norm\n", ""))
    second = pipeline.promoted("evaluation_sets")
    assert len({without.digest, first.digest, second.digest}) == 3
    assert len({content_digest(made.files, EXCLUSIONS) for made in (without, first, second)}) == 1


def test_the_stage_looks_at_a_local_file_itself(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    files = prompts(tmp_path)["eval"]
    (tmp_path / "four.yaml").write_text(FOUR_WAY.replace("doc_to_target: answer", "doc_to_target: !function utils.f"))
    pipeline.run("raw_corpus", {"sources": [{**STDLIB, "include": ["json/*"]}]})
    pipeline.run("corpus", {"heldout": 0.3}, ("raw_corpus",))
    tasks = [{"name": "four_way", "file": "four.yaml", "metrics": {"choice_accuracy_dcpmi": "acc"}}]
    with pytest.raises(RecipeError, match="four.yaml:13: the tag !function is refused"):
        pipeline.run(
            "evaluation_sets",
            EVALUATION | {"tasks": tasks},
            ("corpus",),
            files | {"tasks.0.file": tmp_path / "four.yaml"},
        )
