"""HumanEval's form on a model that learnt to write programs, and the sandbox they run in."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.evaluation.models.conftest import Batch, new_model, train, write_rows, write_sets
from training.data.conversations.chat_template import CHAT_TEMPLATE
from training.evaluation import harness
from training.evaluation.harness import run_tasks
from training.evaluation.harness_limits import no_downloaded_code
from training.evaluation.models import LoadedModel
from training.evaluation.sandbox import CodeEval, sandbox
from training.specs.evaluation import EvaluationSection
from training.specs.tasks import Task

SECTION = EvaluationSection(context=1024, max_new_tokens=24)
ASKED = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```\n"
BEGUN = "Here is the completed function:\n```python\n{prompt}\n"
# Name, argument, documentation, what the model learns to write, and what the tests ask for.
PROBLEMS = (
    ("double", "n", "Twice n.", "    return n + n\n", "assert candidate(21) == 42"),
    ("last", "text", "The last letter.", "    print(text)\n    return text[-1]\n", "assert candidate('hats') == 's'"),
    ("half", "n", "Half of n.", "    return n * 2\n", "assert candidate(8) == 4"),
    ("wait", "n", "Returns n.", "    while True:\n        pass\n", "assert candidate(1) == 1"),
)


def problem(number: int) -> dict[str, str]:
    name, argument, about, solution, test = PROBLEMS[number]
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}({argument}):\n    """{about}"""\n',
        "canonical_solution": solution,
        "test": f"def check(candidate):\n    {test}\n",
        "entry_point": name,
    }


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("assert sorted({3, 1}) == [1, 3]", None),
        ("import hashlib, re, typing\nassert hashlib.md5(b'hat').hexdigest().startswith('46b5')", None),
        ("print('a'); import sys; sys.stderr.write('b')", None),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", None),
        ("def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\nassert depth(900) == 900", None),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("input()", "EOFError: EOF when reading a line"),
        ("\ud800", "SyntaxError: the program is no valid Unicode"),
        ("open('/etc/passwd')", "PermissionError: the sandbox has no files"),
        ("import os; os.listdir('/')", "PermissionError: the sandbox has no files"),
        ("import os; assert not os.environ, os.environ", None),
        ("import os; os.remove('/tmp/x')", "it asked for what the sandbox does not have"),
        ("import os; os._exit(0)", "it asked for what the sandbox does not have"),
        ("import time; time.sleep(3600)", "it asked for what the sandbox does not have"),
        ("import socket", "ModuleNotFoundError: No module named 'socket'"),
        ("import _socket; _socket.socket().connect(('127.0.0.1', 80))", "it asked for what the sandbox does not have"),
        ("import subprocess", "ModuleNotFoundError: No module named 'subprocess'"),
        ("import ctypes", "ModuleNotFoundError: No module named 'ctypes'"),
        ("import os; os.system('true')", "AttributeError: module 'os' has no attribute 'system'"),
        ("while True: pass", "it did not end within 20,000,000,000 instructions"),
        ("text = 'x'\nwhile True: text += text", "MemoryError: "),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "it ran out of stack"),
        ("eval('(' * 5000)", "MemoryError: Parser stack overflowed"),
        ("raise ValueError('x' * 10**6)", f"ValueError: {'x' * 288}"),
    ],
)
def test_what_a_program_meets(program: str, fault: str | None) -> None:
    result = sandbox().fault(program)
    assert result == fault or (fault and result and result.startswith(fault)), result


def test_a_program_leaves_nothing_to_the_next_one() -> None:
    assert sandbox().fault("import math; math.pi = 3; math.mine = 1; import builtins; builtins.len = None") is None
    assert sandbox().fault("import math; assert math.pi > 3 and not hasattr(math, 'mine') and len('a') == 1") is None


def test_the_harness_gets_the_sandbox_and_no_downloaded_metric() -> None:
    with no_downloaded_code():
        replacement = importlib.import_module("evaluate")
        assert importlib.util.find_spec("evaluate"), "libraries ask whether there is one"
        metric = replacement.load("code_eval")
        with pytest.raises(ImportError, match="the metric rouge is Python from the hub"):
            replacement.load("rouge")
    assert isinstance(metric, CodeEval)
    assert importlib.import_module("evaluate").__version__
    tests, programs = ["assert f() == 1", "assert f() == 1"], [["def f(): return 1"], ["def f(): return 2"]]
    assert metric.compute(references=tests, predictions=programs, k=[1])[0] == {"pass@1": 0.5}
    for several, k in ([["", ""]], [1]), ([[""]], [10]):
        with pytest.raises(ValueError, match="decodes greedily only"):
            metric.compute(references=["", ""][:1], predictions=several, k=k)


def test_another_task_that_runs_what_a_model_wrote_does_not_run() -> None:
    task = Task(name="pseudo_to_code_2k", metrics={"m": "acc"})
    with pytest.raises(harness._Missing, match="not in the sandbox"):
        harness._prepare(SimpleNamespace(OUTPUT_TYPE="generate_until", UNSAFE_CODE=True), task)


@pytest.mark.parametrize(("asset", "name"), [("base_model", "humaneval"), ("sft_model", "humaneval_instruct")])
def test_human_eval(
    asset: str, name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public task as it is, over a data set of the same name and form in the current folder."""
    import datasets

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    problems = [problem(number) for number in range(len(PROBLEMS))]
    (tmp_path / "openai" / "openai_humaneval").mkdir(parents=True)
    write_rows(tmp_path / "openai" / "openai_humaneval" / "test.jsonl", problems)

    def prompt(row: dict[str, str]) -> str:
        if asset == "base_model":
            return row["prompt"]
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": ASKED.format(**row)}],
                chat_template=CHAT_TEMPLATE,
                tokenize=False,
                add_generation_prompt=True,
            )
        ) + BEGUN.format(**row)

    stops = tuple(int(tokenizer.convert_tokens_to_ids(token)) for token in ("<|endoftext|>", "<|end|>"))
    loaded = LoadedModel(asset, new_model(tokenizer), tokenizer, stops)
    lessons: Batch = []
    end = "\nprint(1)" if asset == "base_model" else "```"
    encoded = loaded.encode if asset == "base_model" else loaded.encode_rendered
    for row in problems:
        ids = [*encoded(prompt(row)), *loaded.encode(row["canonical_solution"] + end), stops[1]]
        ids = [loaded.start] * (asset == "base_model") + ids
        lessons.append((ids, [True] * len(ids)))
    train(loaded.model, lessons, steps=150).eval()

    suite = write_sets(tmp_path / "sets")
    task = Task(name=name, metrics={"humaneval_pass_rate": "pass@1"})
    (suite / "tasks" / "tasks.json").write_text(json.dumps([task.model_dump()]))
    (result,) = run_tasks(loaded, suite, SECTION, lambda _: None)
    assert result.missing is None
    items: list[dict[str, Any]] = result.items
    assert [item["prompt"] for item in items] == [prompt(row) for row in problems]
    assert [item["answer"] for item in items] == [row["prompt"] + row["canonical_solution"] for row in problems]
    assert [item["score"] for item in items] == [1, 1, 0, 0]
    assert [item["fault"] for item in items] == [
        None,
        None,
        "AssertionError: ",
        "it did not end within 20,000,000,000 instructions",
    ]
