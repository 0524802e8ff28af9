"""pydantic's errors in words: which value is wrong, what is allowed, and the nearest known key."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.humanize import nearest
from pipeline.recipes.document import KeyPath, Tree, lookup, without

_LONGEST = 60
_MANY = 100  # so many wrong values are no slip, and what they may hide can wait

_EXPECTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "text; put it in quotes", "tuple_type": "a list; write it as [a, b] or with dashes",
    "dict_type": "a mapping of keys to values", "model_type": "a mapping of keys to values",
}  # fmt: skip
_BOUNDS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"),
           "less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}  # fmt: skip


def mistakes(model: type[BaseModel], document: Tree) -> Iterator[tuple[KeyPath, str]]:
    """The path and the message of every mistake.

    pydantic does not compare values while one of them is wrong. So the wrong ones are left out, and the rest is
    validated again.
    """
    removed: set[KeyPath] = set()
    incomplete: set[KeyPath] = set()
    reported: set[tuple[KeyPath, str]] = set()
    while True:
        try:
            model.model_validate(document.plain(), strict=True)
            return
        except ValidationError as error:
            details = error.errors()

        # A value that was left out is called missing now, and what stood beside it does not fit together without it.
        fresh = [detail for detail in details if tuple(detail["loc"]) not in removed | incomplete]
        for detail in fresh:
            tree = lookup(document, tuple(detail["loc"]))
            for path, message in explain(model, detail, tree.text if tree else ""):
                if path not in removed and (path, message) not in reported:
                    yield path, message
                reported.add((path, message))

        of_values = [detail for detail in fresh if _is_about_one_value(detail, document)]
        single = [tuple(detail["loc"]) for detail in of_values]
        if not single or len(single) > _MANY:
            return
        removed.update(single)
        incomplete |= {tuple(detail["loc"])[:-1] for detail in of_values if detail["type"] != "extra_forbidden"} - {()}
        for path in single:
            document = without(document, path)


def _is_about_one_value(detail: ErrorDetails, document: Tree) -> bool:
    """Whether a mistake is that of one value of a mapping, and not of how several values fit together."""
    path = tuple(detail["loc"])
    tree = lookup(document, path)
    whole = detail["type"] == "value_error" and tree is not None and isinstance(tree.value, dict)
    return bool(path) and isinstance(path[-1], str) and tree is not None and not whole


def explain(model: type[BaseModel], detail: ErrorDetails, written: str = "") -> list[tuple[KeyPath, str]]:
    """The path and the message of each problem that one pydantic error stands for.

    A validator of a whole model may report several problems, one a line, each with its dotted path.

    Args:
        written: The value as the file has it, where it is a scalar.
    """
    path = tuple(detail["loc"])
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]

    if kind == "value_error":
        return [_split(path, line) for line in str(context["error"]).splitlines()]
    if kind == "extra_forbidden":
        return [(path, unknown_key(model, path))]
    if kind == "missing":
        return [(path, "this key is missing" + _about(model, path))]
    if kind in _EXPECTED:
        # A number that should have been text is shown as it was written: 40 digits are another value as a float.
        number = isinstance(given, int | float) and not isinstance(given, bool)
        shown = _cut(written) if written and number else _shown(given)
        return [(path, f"{shown} is not {_EXPECTED[kind]}{_without_commas(given)}")]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return [(path, f"{_shown(given)} is not allowed: it must be {words} {context[key]}")]
    if kind == "literal_error":
        return [(path, f"{_shown(given)} is not one of {context['expected']}")]
    if kind == "string_pattern_mismatch":
        return [(path, f"{_shown(given)} is not allowed: it must match {context['pattern']}")]
    if kind == "too_short":
        # pydantic counts the items that are right: in a list that is not empty they have errors of their own.
        return [] if given else [(path, f"the list needs at least {context['min_length']} item")]
    return [(path, f"{_shown(given)}: {detail['msg']}")]


def unknown_key(model: type[BaseModel], path: KeyPath) -> str:
    """Message about the key at the end of a path, which there is not."""
    key, existing = str(path[-1]), known_keys(model, path[:-1]) or []
    # `{steps: 1,000}` is read as `steps: 1` and a key `000`.
    if re.fullmatch(r"[0-9]{3}", key):
        return f"there is no such key; between braces a comma ends a value: write 1{key} for 1,{key}"

    deeper = dict.fromkeys(".".join(map(str, below)) for below in _below(model, path[:-1]) if below[-1] == key)
    if deeper:
        return f"there is no such key here; did you mean {_listed(list(deeper))}?"
    return "there is no such key" + (nearest(key, existing) or f"; the keys here are {', '.join(existing)}")


def known_keys(model: type[BaseModel], path: Iterable[str | int]) -> list[str] | None:
    """The keys allowed under `path`; None where any key is, or where no key can be."""
    annotation: Any = model
    for key in path:
        annotation = _step(annotation, str(key))
    annotation = _without_none(annotation)
    return [field.alias or name for name, field in annotation.model_fields.items()] if _is_model(annotation) else None


@functools.cache
def _below(model: type[BaseModel], path: KeyPath) -> tuple[KeyPath, ...]:
    """The paths of all keys in the sections below a path."""
    children = [(*path, name) for name in known_keys(model, path) or ()]
    return tuple(
        below
        for child in children
        for below in (*((*child, name) for name in known_keys(model, child) or ()), *_below(model, child))
    )


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _about(model: type[BaseModel], path: KeyPath) -> str:
    annotation: Any = model
    for key in path[:-1]:
        annotation = _step(annotation, str(key))
    annotation = _without_none(annotation)
    field = _field(annotation, str(path[-1])) if _is_model(annotation) else None
    return f": {field.description}" if field and field.description else ""


def _step(annotation: Any, key: str) -> Any:
    """The annotation of what lies under one key."""
    annotation = _without_none(annotation)
    if _is_model(annotation):
        field = _field(annotation, key)
        return field.annotation if field else None
    if get_origin(annotation) in (dict, Mapping):
        return get_args(annotation)[1]
    return get_args(annotation)[0] if get_origin(annotation) is tuple else None


def _without_none(annotation: Any) -> Any:
    """The annotation of a key that may be left out, as it is where it is given."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a key of a file fills; the alias is the key where there is one."""
    return next((field for name, field in model.model_fields.items() if (field.alias or name) == key), None)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _split(path: KeyPath, line: str) -> tuple[KeyPath, str]:
    """A validator's line `gates.base_model: ...` as the path it names and the rest."""
    match = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*): (.*)", line)
    if not match:
        return path, line

    keys = tuple(int(key) if key.isdecimal() else key for key in match[1].split("."))
    return (*path, *keys), match[2]


def _shown(value: Any) -> str:
    if isinstance(value, dict | tuple | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    return _cut(str(value).lower() if isinstance(value, bool) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _without_commas(value: Any) -> str:
    """What to write instead of a number with commas."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", value):
        return f"; write {value.replace(',', '')}"
    return ""
