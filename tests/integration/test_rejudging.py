"""Judging again, on other thresholds, on another suite, by a person's decision: nothing is built for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import ROOT
from tests.integration.workspaces import Workspace
from training.store.store import Store

ASSET = "instruction_data"
SAFETY = ROOT / "assets_config" / "safety"


@pytest.fixture
def mine(data_chain: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """Its jobs are forked: the tests are about what is judged, and not about processes."""
    with warm.stand_in() as python:
        copied = data_chain.moved(tmp_path / "mine", python)
        copied.recipe.write_text(data_chain.recipe.read_text())
        yield copied


def store(space: Workspace) -> Store:
    return Store(str(space.home / "store"), "mine")


def promoted(space: Workspace, asset: str = ASSET) -> str:
    pointer = store(space).promotion(asset)
    return pointer.version if pointer else ""


def test_another_threshold(mine: Workspace) -> None:
    (version,) = store(mine).versions(ASSET)
    refused = mine.run("--select", ASSET, "--set", f"gates.{ASSET}.0.threshold=99999")
    assert refused.returncode == 1 and ">= 99,999" in refused.stdout
    assert promoted(mine) == ""
    again = mine.run("--select", ASSET)
    assert again.returncode == 0, again.stdout
    assert promoted(mine) == version
    assert store(mine).versions(ASSET) == [version]
    assert len(store(mine).versions(f"{ASSET}.evaluation")) == 1


def test_the_remedy_after_a_refused_version_with_options_judges_that_very_version(mine: Workspace) -> None:
    refused = mine.run(
        "--select", ASSET, "--set", f"gates.{ASSET}.0.threshold=99999", "--set", f"{ASSET}.max_conversations=450"
    )
    assert refused.returncode == 1, refused.stdout
    versions = store(mine).versions(ASSET)
    why = mine.command("gatehouse", "gates", "--why", ASSET, "-r", str(mine.recipe))
    remedy = f"gatehouse run -r {mine.recipe} --select {ASSET} --set {ASSET}.max_conversations=450"
    assert remedy in " ".join(why.stdout.split()), why.stdout
    again = mine.command(*remedy.split())
    assert again.returncode == 0, again.stdout
    assert promoted(mine) == versions[-1] and store(mine).versions(ASSET) == versions


def test_another_suite(mine: Workspace) -> None:
    """Evaluation prompts of which one was trained on: the data must be refused, and nothing is built again."""
    (version,), first = store(mine).versions(ASSET), promoted(mine, "evaluation_sets")
    leaky = mine.folder / "leaky.jsonl"
    trained = (SAFETY / "harmful_train.jsonl").read_text().splitlines()[0]
    leaky.write_text((SAFETY / "harmful_eval.jsonl").read_text() + trained + "\n")
    changed = ("--set", f"evaluation_sets.harmful={leaky}")
    assert mine.run("--select", "evaluation_sets", *changed).returncode == 0
    assert promoted(mine, "evaluation_sets") != first

    alone = mine.run("--select", "preference_data", *changed)
    assert alone.returncode == 2
    assert f"{ASSET} {version} was judged on other terms: the evaluation sets" in alone.stdout
    assert f"`gatehouse run -r {mine.recipe} --select {ASSET}` judges it again and trains nothing" in alone.stdout

    refused = mine.run("--select", ASSET, *changed)
    assert refused.returncode == 1 and "leaked_questions 1 fails == 0" in refused.stdout, refused.stdout
    assert promoted(mine) == ""

    assert mine.run("--select", f"evaluation_sets,{ASSET}").returncode == 0
    assert promoted(mine, "evaluation_sets") == first
    assert promoted(mine) == version
    assert store(mine).versions(ASSET) == [version]
    assert len(store(mine).versions(f"{ASSET}.evaluation")) == 2, "once per suite"


def test_a_past_version_is_measured_beside_what_it_was_made_from(mine: Workspace) -> None:
    (old,), old_corpus = store(mine).versions("tokenizer"), promoted(mine, "corpus")
    mine.write_recipe()
    next(mine.notes.iterdir()).unlink()
    done = mine.run("--select", "+tokenizer")
    assert done.returncode == 0, done.stdout
    new = promoted(mine, "tokenizer")
    assert new != old and promoted(mine, "corpus") != old_corpus

    mine.recipe.write_text(mine.recipe.read_text() + "evaluation: {max_new_tokens: 7}\n")
    done = mine.command("gatehouse", "promote", "tokenizer", old, "-r", str(mine.recipe))
    assert done.returncode == 0, done.stdout
    assert promoted(mine, "tokenizer") == old
    measured = [
        store(mine).manifest("tokenizer.evaluation", version).inputs
        for version in store(mine).versions("tokenizer.evaluation")
    ]
    assert [(inputs["artifact"].version, inputs["corpus"].version) for inputs in measured] == [
        (old, old_corpus),
        (new, promoted(mine, "corpus")),
        (old, old_corpus),
    ], "measured again on the new terms"


def test_rollback_by_the_command(mine: Workspace) -> None:
    (old,) = store(mine).versions(ASSET)
    assert mine.run("--select", ASSET, "--force").returncode == 0
    new = promoted(mine)
    assert new != old
    done = mine.command(
        "gatehouse", "rollback", ASSET, "--reason", "too French", "--author", "ada", "-r", str(mine.recipe)
    )
    assert done.returncode == 0, done.stdout
    assert f"{ASSET} {old} is promoted, in place of {new}." in done.stdout
    assert f"{new} is held back" in done.stdout
    again = mine.run("--select", ASSET)
    assert again.returncode == 0, again.stdout
    assert "held back by ada (too French)" in again.stdout
    assert promoted(mine) == old
    status = mine.command("gatehouse", "status", "--json", "-r", str(mine.recipe))
    shown = {entry["asset"]: entry for entry in json.loads(status.stdout)}[ASSET]
    assert (shown["version"], shown["latest"], shown["fresh"]) == (old, new, True)
    back = mine.command("gatehouse", "promote", ASSET, new, "-r", str(mine.recipe))
    assert back.returncode == 0 and promoted(mine) == new, back.stdout


def test_a_waiver_by_the_command(mine: Workspace) -> None:
    strict = mine.recipe.read_text() + f"  {ASSET}:\n    - {{metric: conversations, must_be: '>=', threshold: 99999}}\n"
    mine.recipe.write_text(strict)
    assert mine.run("--select", ASSET).returncode == 1
    assert promoted(mine) == ""
    waive = ("gatehouse", "waive", ASSET, "--gate", "conversations", "-r", str(mine.recipe))
    missing = mine.command(*waive)
    assert missing.returncode == 2 and "write the day as 2026-12-31" in missing.stdout
    given = mine.command(*waive, "--reason", "a demo", "--until", "2026-12-31", "--author", "ada")
    assert given.returncode == 0, given.stdout
    assert "is waived until 2026-12-31 by ada" in given.stdout and promoted(mine)
    withdrawn = mine.command(*waive, "--withdraw")
    assert withdrawn.returncode == 0 and "It is still refused: conversations" in withdrawn.stdout, withdrawn.stdout
    assert promoted(mine) == ""
