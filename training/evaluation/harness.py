"""Tasks of EleutherAI's lm-evaluation-harness: which run on a model, within which time, and what came of every item."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import InputRefused, RecipeError
from training.evaluation.harness_limits import OutOfTime, no_downloaded_code, online, sandbox_templates, time_limit
from training.evaluation.models import LoadedModel
from training.evaluation.sandbox import sandbox
from training.evaluation.scoring import TIE_NATS
from training.specs.evaluation import EvaluationSection
from training.specs.tasks import (
    DCPMI,
    MULTIPLE_CHOICE,
    PROGRAM_TASKS,
    TASKS_FILE,
    TASKS_FOLDER,
    Task,
    read_task_file,
)

Row = dict[str, Any]
_SHOWN = 2000  # characters of a prompt or an answer that an item keeps
_CHOICE_SCORES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", DCPMI)


@dataclass(frozen=True)
class TaskResult:
    """What came of one metric of a task.

    Attributes:
        metric: Gatehouse's name of it.
        items: `id`, `score`, for a ratio `weight`, and what explains the score.
        missing: Why there are no items; None when there are.
    """

    metric: str
    items: list[Row] = field(default_factory=list)
    missing: str | None = None


class _Missing(Exception):
    """Why a task, or a metric of it, has no result."""


def read_tasks(suite: Path) -> tuple[Task, ...]:
    """The tasks of an evaluation set's folder.

    Raises:
        InputRefused: The list is not one.
    """
    path = suite / TASKS_FOLDER / TASKS_FILE
    try:
        return tuple(Task.model_validate(row) for row in json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InputRefused(f"{path} is no list of tasks ({error}); materialize evaluation_sets again") from error


def task_metrics(suite: Path) -> dict[str, str]:
    """Metric to what it means, of all tasks of an evaluation set's folder."""
    return {metric: meaning for task in read_tasks(suite) for metric, meaning in task.meanings().items()}


def run_tasks(
    loaded: LoadedModel, suite: Path, section: EvaluationSection, tell: Callable[[str], None]
) -> list[TaskResult]:
    """Give a model every task of the suite, one after the other, each within its time limit.

    A base model reads an item as plain text, any other model in its chat template. A task that fails leaves its metrics
    missing with the reason, and the next one runs. Call it from the main thread: the limit is an alarm signal.

    Args:
        loaded: The model.
        suite: Folder of a version of `evaluation_sets`.
        section: Batch and context.
        tell: Is told each task's name before it runs.

    Returns:
        One result for each metric of each task.
    """
    found = []
    for task in read_tasks(suite):
        tell(f"task {task.name}")
        try:
            with time_limit(task.minutes * 60), no_downloaded_code():
                found += _run(loaded, suite, section, task)
            continue
        except OutOfTime:
            reason = f"the task {task.name} ran past its limit of {task.minutes:g} minutes"
        except _Missing as error:
            reason = f"the task {task.name}: {error}"
        except Exception as error:
            reason = f"the task {task.name} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        found += [TaskResult(metric, missing=reason) for metric in task.metrics]
    return found


def _run(loaded: LoadedModel, suite: Path, section: EvaluationSection, task: Task) -> list[TaskResult]:
    from lm_eval.evaluator import evaluate

    from training.evaluation.harness_model import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sandbox_templates()
    chosen = _local(suite, task) if task.file is not None else _public(task)
    for one in chosen["tasks"].values():
        _prepare(one, task)
    chat = loaded.asset != "base_model"
    model = HarnessModel(loaded, section.batch, section.context, dcpmi=DCPMI in task.metrics.values())
    results = evaluate(
        lm=model,
        task_dict=chosen,
        limit=task.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=task.name.startswith(PROGRAM_TASKS),
    )
    return [
        _result(metric, key, results["samples"], chosen["tasks"], model.elsewhere)
        for metric, key in task.metrics.items()
    ]


def _local(suite: Path, task: Task) -> Mapping[str, Any]:
    """A local task over a file of the suite; nothing but that file is read, and nothing is cached."""
    import datasets
    from lm_eval.tasks import TaskManager

    folder = suite / TASKS_FOLDER
    try:
        file = read_task_file(folder / f"{task.name}.yaml")
    except RecipeError as error:
        raise InputRefused(f"{error}; materialize evaluation_sets again") from error
    # U+2028 and its like may stand inside a row: only "\n" ends one.
    lines = (folder / file.data).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    if not rows:
        raise _Missing(f"{file.data} of the evaluation sets holds no items")
    content = file.model_dump(mode="json", exclude_none=True)
    content["custom_dataset"] = lambda **_: {"test": datasets.Dataset.from_list(rows)}
    chosen: Mapping[str, Any] = TaskManager(include_defaults=False).load([content])
    return chosen


def _public(task: Task) -> Mapping[str, Any]:
    """A task that comes with the harness; its data come from huggingface.co or from the cache of earlier downloads."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # else it draws, and IFEval's verdicts on the language of an answer differ between runs
    manager = _catalogue()
    if task.name not in manager.task_index:
        raise _Missing("lm-evaluation-harness has no public task of this name; a local one needs its `file`")
    with online():
        try:
            chosen: Mapping[str, Any] = manager.load([task.name])
        except OSError as error:
            said = " ".join(str(error).split())[:300]
            raise _Missing(
                f"its data could not be had from huggingface.co: {type(error).__name__}: {said}; fetch them "
                "where there is a network (the cache in $HF_HOME is used), or leave the task out"
            ) from error
    return chosen


@functools.cache
def _catalogue() -> Any:
    """All public tasks by name: the harness reads some 14,000 files for it, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _prepare(one: Any, task: Task) -> None:
    if _runs_programs(one) and not task.name.startswith(PROGRAM_TASKS):
        raise _Missing("it runs what the model wrote, and not in the sandbox")
    if one.OUTPUT_TYPE == "loglikelihood":
        raise _Missing("it asks whether a text is the greedy one, which Gatehouse does not compute")
    if task.shots is not None:
        one.set_config(key="num_fewshot", value=task.shots)
    elif one.get_config("num_fewshot") is None:
        one.set_config(key="num_fewshot", value=0)
    one.set_fewshot_seed(seed=0)


def _runs_programs(one: Any) -> bool:
    return bool(getattr(one, "UNSAFE_CODE", False))


def _result(
    metric: str,
    key: str,
    samples: Mapping[str, list[Row]],
    tasks: Mapping[str, Any],
    elsewhere: Mapping[tuple[str, int, int], float],
) -> TaskResult:
    name, _, wanted = key.partition(",")
    items: list[Row] = []
    for task, rows in samples.items():
        chosen = wanted or rows[0]["filter"]
        for row in rows:
            if row["filter"] != chosen:
                continue
            if name == DCPMI:
                row = row | {DCPMI: _gains(tasks[task], task, row, elsewhere)}
            if name not in row:
                gives = ", ".join(row["metrics"])
                return TaskResult(metric, missing=f"the task {task} gives no {key}; it gives {gives}")
            items.append(_item(tasks[task], task, row, name))
    if not items:
        return TaskResult(metric, missing=f"no item of the task has the filter {wanted}")
    return TaskResult(metric, items)


def _item(one: Any, task: str, row: Row, name: str) -> Row:
    """An item's score and what explains it.

    A public task's items are named by a digest of their content too: where the public data change, versions that were
    measured on the old ones have other items.
    """
    own = row["doc"].get("id") if isinstance(row["doc"], dict) else None
    item: Row = {
        "id": str(own) if own is not None else f"{task}:{row['doc_id']}:{row['doc_hash'][:8]}",
        "prompt": _shown(row["arguments"][0][0]),
    }
    if one.OUTPUT_TYPE == MULTIPLE_CHOICE:
        if name not in _CHOICE_SCORES:
            raise _Missing(f"{name} of a multiple choice is none of {', '.join(_CHOICE_SCORES)}")
        return item | _choice(one, row, name)
    if name == "bits_per_byte":
        nats, size = row[name]
        return item | {"score": -nats / math.log(2), "weight": float(size)}
    if isinstance(row[name], (tuple, list, dict)):
        raise _Missing(f"{name} is no mean over its items, so no interval can be given for it")
    if _runs_programs(one):
        answered = row["filtered_resps"][0]
        program = answered[0] if isinstance(answered, list) else answered
        return item | {
            "score": float(row[name]),
            "answer": _shown(program),
            "fault": sandbox().fault(f"{program}\n{row['target']}"),
        }
    return item | {
        "score": float(row[name]),
        "answer": _shown(row["filtered_resps"][0]),
        "target": _shown(row["target"]),
    }


def _gains(one: Any, task: str, row: Row, elsewhere: Mapping[tuple[str, int, int], float]) -> list[float]:
    """By how many nats each choice is likelier after its own question than after others (DC-PMI)."""
    if one.OUTPUT_TYPE != MULTIPLE_CHOICE or not isinstance(row["target"], int):
        raise _Missing(f"{DCPMI} needs a multiple choice whose right answer is given by its number")
    return [
        own[0] - elsewhere[task, row["doc_id"], place]
        for place, own in enumerate(row["filtered_resps"][: len(one.doc_to_choice(row["doc"]))])
    ]


def _choice(one: Any, row: Row, name: str) -> Row:
    """The verdict on a multiple choice, with each choice's score; a tie for the first place is wrong."""
    choices = [str(choice) for choice in one.doc_to_choice(row["doc"])]
    nats = np.array([found[0] for found in row["filtered_resps"]], dtype=np.float64)
    scores = nats[: len(choices)]
    if name == DCPMI:
        scores = np.array(row[DCPMI], dtype=np.float64)
    elif name == "acc_mutual_info":
        scores = scores - nats[len(choices) :]
    elif name != "acc":
        scores = scores / [len(choice if name == "acc_norm" else choice.encode()) for choice in choices]
    ranked = np.sort(scores)
    tie = len(ranked) > 1 and ranked[-1] - ranked[-2] <= TIE_NATS
    verdict = np.argmax(scores) == row["target"] if name == DCPMI else row[name]
    right = float(verdict) if np.isfinite(scores).all() else math.nan
    return {
        "score": 0.0 if tie else right,
        "choices": [_shown(choice) for choice in choices],
        "target": row["target"],
        "chosen": int(np.argmax(scores)),
        "likelihoods": [float(found) for found in scores],
    }


def _shown(value: object) -> str:
    """The end of a text, where the question stands."""
    return str(value)[-_SHOWN:]
