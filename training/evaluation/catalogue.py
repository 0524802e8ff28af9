"""lm-evaluation-harness's public tasks: their names, and the metrics and filters that each gives."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.specs.base import Spec
from training.specs.recipe_check import Key
from training.specs.tasks import DCPMI, MULTIPLE_CHOICE, PROGRAM_TASKS, Task

# What the harness measures where a task's file names no metrics.
_DEFAULT_METRICS = {
    MULTIPLE_CHOICE: ("acc", "acc_norm"), "generate_until": ("exact_match",),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}  # fmt: skip
_NO_FILTER = "none"
_PYTHON = "py_task"


class PublicTask(Spec):
    """What the harness's own list says of one name.

    Attributes:
        parts: Subtasks of a group or members of a tag; empty for a task.
        metrics: None where Python decides them, and they are known only when the task runs.
        filters: What its answers are passed through, by name.
    """

    kind: str
    parts: tuple[str, ...] = ()
    output: str = ""
    metrics: tuple[str, ...] | None = None
    filters: tuple[str, ...] = (_NO_FILTER,)
    runs_programs: bool = False


Catalogue = dict[str, PublicTask]


def task_problems(tasks: Sequence[Task], cache: Path) -> Iterator[tuple[Key, str]]:
    """Public tasks, or metrics of them, that the harness does not have.

    Args:
        cache: Folder for the list, which takes half a minute to make.

    Yields:
        The key below `evaluation_sets.tasks`, and the message.
    """
    public = [(index, task) for index, task in enumerate(tasks) if task.file is None]
    if not public:
        return
    names = catalogue(cache)
    for index, task in public:
        if task.name not in names:
            close = difflib.get_close_matches(task.name, names, n=1)
            yield (
                (index, "name"),
                (
                    "lm-evaluation-harness has no public task of this name"
                    + (f"; did you mean {close[0]}?" if close else "; a local one needs its `file`")
                ),
            )
            continue
        yield from (((index, *key), message) for key, message in _task_problems(task, names))


def catalogue(cache: Path) -> Catalogue:
    """All public tasks by name, from the cache where this version of the harness has been listed before."""
    path = cache / f"harness-{version('lm_eval')}.json"
    try:
        return {name: PublicTask.model_validate(task) for name, task in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError):
        listed = _listed()
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(
        json.dumps({name: task.model_dump(mode="json", exclude_defaults=True) for name, task in listed.items()}),
        encoding="utf-8",
    )
    temporary.replace(path)
    return listed


def _task_problems(task: Task, names: Catalogue) -> Iterator[tuple[Key, str]]:
    for name, one in _leaves(task.name, names):
        if one.output == "loglikelihood":
            yield ("name",), f"{name} asks whether a text is the greedy one, which Gatehouse does not compute"
            return
        if one.runs_programs and not task.name.startswith(PROGRAM_TASKS):
            yield ("name",), f"{name} runs what the model wrote, and not in the sandbox; leave it out"
            return
    for metric, key in task.metrics.items():
        wanted, _, chosen = key.partition(",")
        for name, one in _leaves(task.name, names):
            if key == DCPMI and one.output == MULTIPLE_CHOICE:  # Gatehouse's own score of any multiple choice
                continue
            if one.metrics is not None and wanted not in one.metrics:
                yield ("metrics", metric), f"{name} gives no {wanted}; it gives {', '.join(one.metrics)}"
                break
            if chosen and chosen not in one.filters:
                yield ("metrics", metric), f"{name} has no filter {chosen}; it has {', '.join(one.filters)}"
                break


def _leaves(name: str, names: Catalogue, above: tuple[str, ...] = ()) -> Iterator[tuple[str, PublicTask]]:
    """The tasks that a name stands for."""
    one = names.get(name)
    if one is None or name in above:
        return
    if not one.parts:
        yield name, one
    for part in one.parts:
        yield from _leaves(part, names, (*above, name))


def _listed() -> Catalogue:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    members: dict[str, list[str]] = {}
    for name, entry in index.items():
        for tag in entry.tags:
            members.setdefault(tag, []).append(name)
    return {name: _described(entry, members.get(name, ())) for name, entry in index.items()}


def _described(entry: Any, members: Sequence[str]) -> PublicTask:
    kind, content = entry.kind.name.lower(), entry.cfg or {}
    if kind in ("group", "tag"):
        named = content.get("task") if kind == "group" else members
        parts = [
            part if isinstance(part, str) else str(part.get("task", part.get("group", "")))
            for part in ([named] if isinstance(named, str) else named or ())
        ]
        return PublicTask(kind=kind, parts=tuple(parts))
    output = str(content.get("output_type", ""))
    return PublicTask(
        kind=kind,
        output=output,
        metrics=None if kind == _PYTHON else _metrics(content, output),
        filters=tuple(str(one["name"]) for one in content.get("filter_list") or ()) or (_NO_FILTER,),
        runs_programs=bool(content.get("unsafe_code")),
    )


def _metrics(content: dict[str, Any], output: str) -> tuple[str, ...] | None:
    listed = content.get("metric_list")
    if listed is None:
        return _DEFAULT_METRICS.get(output)
    names = tuple(str(one.get("metric")) for one in listed)
    # A metric that is a function of the task's own is told by its path, and what it returns by nobody.
    return None if any(os.sep in name or "." in name or not name for name in names) else names
